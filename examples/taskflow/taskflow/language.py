"""What the participants say to each other: commands and events, and nothing else they share.

There are two kinds of subjects. A user goes by an address, such as `ada@example.org`; a task by a
name without an `@`. So no user and no task are ever called the same, and what the history tells of
a subject is of one thing.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import StringConstraints
from saga import Command, Event, EventTypes, Moment, Role

UserKey = Annotated[str, StringConstraints(pattern=r"^[^@\s]+@[^@\s]+$", max_length=100)]
TaskKey = Annotated[str, StringConstraints(pattern=r"^[^@]+$", max_length=100)]
Title = Annotated[str, StringConstraints(min_length=1, max_length=200)]


class _UserCommand(Command):
    intake: ClassVar[bool] = True

    user: UserKey

    @property
    def subject(self) -> str:
        return self.user


class _TaskCommand(Command):
    intake: ClassVar[bool] = True

    task: TaskKey

    @property
    def subject(self) -> str:
        return self.task


class _UserEvent(Event):
    user: UserKey

    @property
    def subject(self) -> str:
        return self.user


class _TaskEvent(Event):
    task: TaskKey

    @property
    def subject(self) -> str:
        return self.task


# --- users: a saga without an end -----------------------------------------------------------------


class RegisterUser(_UserCommand):
    """A user registers, to keep tasks."""

    type: ClassVar[str] = "user.register"


class ChangePreferences(_UserCommand):
    """A user wants a weekly digest, or none."""

    type: ClassVar[str] = "preferences.change"

    digest: bool


class UserRegistered(_UserEvent):
    """There is a new user."""

    type: ClassVar[str] = "user.registered"
    publisher: ClassVar[str] = "users"


class UserWelcomed(_UserEvent):
    """The new user has got a mail."""

    type: ClassVar[str] = "user.welcomed"
    publisher: ClassVar[str] = "mail"
    final: ClassVar[bool] = True


class PreferencesSet(_UserEvent):
    """These are a user's preferences from now on."""

    type: ClassVar[str] = "preferences.set"
    publisher: ClassVar[str] = "preferences"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    digest: bool


# --- tasks: a saga that ends only if it fails -----------------------------------------------------


class CreateTask(_TaskCommand):
    """A user has something to do."""

    type: ClassVar[str] = "task.create"

    user: UserKey
    title: Title
    bill_within_seconds: int = 3600


class CompleteTask(_TaskCommand):
    """It is done."""

    type: ClassVar[str] = "task.complete"


class TaskCreated(_TaskEvent):
    """There is something to do. It is to be paid for before `bill_by`."""

    type: ClassVar[str] = "task.created"
    publisher: ClassVar[str] = "tasks"

    user: UserKey
    title: Title
    bill_by: Moment


class TaskCompleted(_TaskEvent):
    """It is done."""

    type: ClassVar[str] = "task.completed"
    publisher: ClassVar[str] = "tasks"


class Why(StrEnum):
    """Why a task was not paid for, so that it was withdrawn."""

    UNPAID = "unpaid"
    TOO_LATE = "too_late"


class TaskWithdrawn(_TaskEvent):
    """It is as if it had never been created."""

    type: ClassVar[str] = "task.withdrawn"
    publisher: ClassVar[str] = "tasks"
    role: ClassVar[Role] = Role.CANCELLATION

    user: UserKey
    why: Why

    @property
    def outcome(self) -> str:
        return str(self.why)


class TaskBilled(_TaskEvent):
    """It is paid for."""

    type: ClassVar[str] = "task.billed"
    publisher: ClassVar[str] = "billing"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True


class TaskUnbilled(_TaskEvent):
    """The bank has refused for good, or has not answered in time."""

    type: ClassVar[str] = "task.unbilled"
    publisher: ClassVar[str] = "billing"
    role: ClassVar[Role] = Role.FAILURE

    why: Why


class BillDropped(_TaskEvent):
    """The money was given back, or none will ever be taken."""

    type: ClassVar[str] = "bill.dropped"
    publisher: ClassVar[str] = "billing"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (TaskBilled,)
    final: ClassVar[bool] = True


class TaskAnnounced(_TaskEvent):
    """The user has got a mail about it."""

    type: ClassVar[str] = "task.announced"
    publisher: ClassVar[str] = "mail"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True


class TaskCorrected(_TaskEvent):
    """The user has got a mail that corrects the first one, or will never get any."""

    type: ClassVar[str] = "task.corrected"
    publisher: ClassVar[str] = "mail"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (TaskAnnounced,)
    final: ClassVar[bool] = True


class TaskIndexed(_TaskEvent):
    """It is found by the words of its title."""

    type: ClassVar[str] = "task.indexed"
    publisher: ClassVar[str] = "search"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True

    title: Title


class EntryClosed(_TaskEvent):
    """It is found as one that is done."""

    type: ClassVar[str] = "entry.closed"
    publisher: ClassVar[str] = "search"
    final: ClassVar[bool] = True


class EntryRemoved(_TaskEvent):
    """It is not found, and never will be."""

    type: ClassVar[str] = "entry.removed"
    publisher: ClassVar[str] = "search"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (TaskIndexed,)
    final: ClassVar[bool] = True
