"""What a saga may declare, so that its archive shows more of a subject than of any other saga's."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Generic, TypeVar

from saga.choreography import Choreography, State
from saga.message import Event
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import Clock, Schema, StateTable

if TYPE_CHECKING:
    from fastapi import APIRouter

S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class SubjectView(Generic[S]):
    """A view that is folded from the events about each subject, kept in a table, and shown.

    Its state has to come out the same in whatever order the events come: those of different
    participants reach the archive side by side.
    """

    name: str
    """What one such subject is called."""
    events: type[Event]
    """Which events are folded: those below this class."""
    table: StateTable[S]
    """Keyed by subject. The state's `evolve` is the fold."""
    schema: Schema
    """Of that table, with a `version_table` and a folder of migrations of its own."""
    routes: Callable[[Database, Choreography, Clock], APIRouter]
    """What the archive's service answers about it, beside what it answers about any subject."""
    headline: Callable[[S, str], str]
    """What is to be said of one, in a line, given how long it took to end, in words, which are
    empty if it has not ended."""

    def belongs_to(self, choreography: Choreography) -> bool:
        """Whether it is a view of this saga."""
        return any(issubclass(kind, self.events) for kind in choreography.events)

    def of(self, subject: str, events: Iterable[tuple[Event, datetime]]) -> S:
        """The view after those of these events that are folded, each with its time."""
        state = self.table.kind(subject)
        for event, at in events:
            if isinstance(event, self.events):
                state = state.evolve(event, at)
        return state
