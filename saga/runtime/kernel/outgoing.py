"""Events on their way from the outbox to the broker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from saga.envelope import Attributes, Envelope


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One committed event on its way to the broker; `envelope` is what is in `body`, unless the
    row was read from the table."""

    event_id: str
    routing_key: str
    body: bytes
    envelope: Attributes | None = None

    @classmethod
    def of(cls, envelope: Envelope[Any]) -> Outgoing:
        return cls(envelope.id, envelope.routing_key, envelope.to_bytes(), envelope)


class Publisher(Protocol):
    """What the outbox needs of the broker."""

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """Publish persistently, in order; for each None once the broker confirmed it, or why it
        did not (being unroutable is such a reason). Never raises."""
        ...
