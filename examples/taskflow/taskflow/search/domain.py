"""The entry of a task in the index: whatever comes first, it says in the end what is true."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from saga import Decided, Participant, State

from taskflow.language import (
    EntryClosed,
    EntryRemoved,
    TaskCompleted,
    TaskCreated,
    TaskIndexed,
    TaskWithdrawn,
)


@dataclass(frozen=True, slots=True)
class Entry(State):
    """What is found of one task: nothing without a title, and nothing once it was removed."""

    title: str | None = None
    done: bool = False
    removed: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case TaskIndexed():
                return replace(self, title=message.title)
            case EntryClosed():
                return replace(self, done=True)
            case EntryRemoved():
                return replace(self, title=None, removed=True)
            case _:
                return self


def index(event: TaskCreated, entry: Entry) -> TaskIndexed | None:
    if entry.removed or entry.title is not None:
        return None
    return TaskIndexed(task=event.task, title=event.title)


def close(event: TaskCompleted, entry: Entry) -> EntryClosed | None:
    return None if entry.done or entry.removed else EntryClosed(task=event.task)


def remove(event: TaskWithdrawn, entry: Entry) -> EntryRemoved | None:
    """Also when the withdrawal comes first: then nothing is indexed afterwards."""
    return None if entry.removed else EntryRemoved(task=event.task)


PARTICIPANT = Participant("search", index, close, remove)
