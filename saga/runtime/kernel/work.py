"""A message on its way through the kernel, and how that may end."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from saga.choreography import State
from saga.envelope import Envelope
from saga.message import Message
from saga.runtime.kernel.lanes import Lanes
from saga.runtime.kernel.step import Firing

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Span


@dataclass(frozen=True, slots=True)
class Done:
    """Committed: `events` will be published, `own` is the new state of the message's subject.

    No events: the message changed nothing.
    """

    events: tuple[Envelope[Any], ...]
    own: State


@dataclass(frozen=True, slots=True)
class Duplicate:
    """Done already, some time before."""


class Conflicting(Exception):
    """A message has the source and the id of another one that was done, and is not the same."""


@dataclass(frozen=True, slots=True)
class Failed:
    """Nothing of it was kept, because of `error`; trying again at once would fail again."""

    error: Exception


Outcome = Done | Duplicate | Failed


@dataclass(slots=True, eq=False)
class Work:
    """A message on its way through; `message` is the answer once an intent has been asked."""

    envelope: Envelope[Any]
    message: Message
    then: Callable[[Outcome], None] | None
    """Called with how it ended; None once that is awaited no more."""
    lanes: Lanes[Work]
    taken_at: datetime
    attempt: int
    digest: bytes | None = None
    """See `saga.envelope.digest_of`; None if it is not to be compared."""
    firing: Firing | None = None
    """What is due, if the message is given because of that."""
    asked: bool = False
    """Whether it led to a question: then it is brought to its end, awaited or not. What the outside
    did cannot be undone, and only we know of it."""
    began: float = field(default_factory=time.monotonic)
    context: Context | None = None
    """Where its spans belong, if they are recorded."""
    span: Span | None = None
    """Its last reaction's."""
