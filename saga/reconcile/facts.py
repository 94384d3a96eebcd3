"""Where messages are, each fact as its witness has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime

from saga.errors import Explained
from saga.reconcile.history import History, OwedMessage


class ReconcileError(Explained):
    """Something to be compared cannot be read. Names it and the way out."""


@dataclass(frozen=True, slots=True)
class RestingMessage:
    """One message resting in a queue. `key` names the message wherever it is: see `key_of`."""

    key: str
    subject: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """Where else a participant's messages may be, besides done and dead.

    `ready` are in its work queues; `read` says that a consumer is at work on them, and may hold
    more; `waiting` are the keys found there, known only where there is no consumer.
    """

    ready: int = 0
    read: bool = False
    waiting: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class MessageFates:
    """What became of every message. Mappings are by participant.

    Read in a sequence that makes most comparisons free of races: the databases, the outsides' books
    and the outboxes first, then the history, which by then holds all that these had published; then
    what has been done of it, then what is dead, what waits, and what is in the work queues: each
    before the place that a message goes to from there.
    """

    started_at: datetime
    grace_seconds: float
    history: History
    sequences: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many events each participant has committed, by subject; of one in another language, at
    least."""
    undone: Mapping[str, Mapping[str, OwedMessage]] = field(default_factory=dict)
    """Keyed by key: the messages each participant should have dealt with and has no inbox row
    for."""
    letters: Mapping[str, Sequence[RestingMessage]] = field(default_factory=dict)
    """What is dead, in a queue or in the operator's store."""
    waiting: Mapping[str, Sequence[RestingMessage]] = field(default_factory=dict)
    """What waits on the broker to be tried again."""
    settled: Mapping[str, Set[str]] = field(default_factory=dict)
    """The keys of messages that an operator has discarded, or replaced by a corrected copy."""
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    unpublished: int = 0
    """Rows in the outboxes."""
