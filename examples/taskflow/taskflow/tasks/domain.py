"""A task: open until it is marked done; withdrawn if it is not paid for.

Who listens to it is not known here. A task that is paid for hears nothing of that, and no event
says that all is well: it goes well unless it is withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Self

from saga import Decided, Participant, State

from taskflow.language import (
    CompleteTask,
    CreateTask,
    TaskCompleted,
    TaskCreated,
    TaskUnbilled,
    TaskWithdrawn,
)


class Stage(StrEnum):
    """How far a task is."""

    UNKNOWN = "unknown"
    OPEN = "open"
    DONE = "done"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Task(State):
    """What is known of one task."""

    stage: Stage = Stage.UNKNOWN
    user: str | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case TaskCreated():
                return replace(self, stage=Stage.OPEN, user=message.user)
            case TaskCompleted():
                return replace(self, stage=Stage.DONE)
            case TaskWithdrawn():
                return replace(self, stage=Stage.WITHDRAWN)
            case _:
                return self


def create(command: CreateTask, task: Task, now: datetime) -> TaskCreated | None:
    if task.stage is not Stage.UNKNOWN:
        return None
    return TaskCreated(
        task=command.task,
        user=command.user,
        title=command.title,
        bill_by=now + timedelta(seconds=command.bill_within_seconds),
    )


def complete(command: CompleteTask, task: Task) -> TaskCompleted | None:
    return TaskCompleted(task=command.task) if task.stage is Stage.OPEN else None


def withdraw(event: TaskUnbilled, task: Task) -> TaskWithdrawn | None:
    """Also one that is done by now: it was not paid for."""
    if task.stage not in (Stage.OPEN, Stage.DONE) or task.user is None:
        return None
    return TaskWithdrawn(task=event.task, user=task.user, why=event.why)


PARTICIPANT = Participant("tasks", create, complete, withdraw)
