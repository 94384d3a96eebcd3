"""The archive: a service that keeps every event of a saga, and answers questions about them."""

from typing import Final

from saga.choreography import Observer

OBSERVER: Final = Observer("history", "saga.archive")
