"""Reading each body of a run once: several services get it, some more than once, and the verdict
reads all of them again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from saga.envelope import Decoder, Envelope
from saga.message import Command, Event

REMEMBERED_MAX: Final = 4_096
"""Bodies; more than a run has."""


class RememberingDecoder(Decoder):
    """Gives the same envelope for the same body, as do all that remember in the same place. It
    must not be changed: reactions that do are found by `saga.purity`."""

    def __init__(
        self, types: Iterable[type[Event | Command]], remembered: dict[bytes, Envelope[Any]]
    ) -> None:
        super().__init__(types)
        self._remembered = remembered

    def decode(self, body: bytes) -> Envelope[Any]:
        """See `Decoder.decode`."""
        found = self._remembered.get(body)
        # What another decoder has read may be of a type that this one does not know.
        if found is None or found.type not in self._types:
            found = super().decode(body)
            if len(self._remembered) < REMEMBERED_MAX:
                self._remembered[body] = found
        return found
