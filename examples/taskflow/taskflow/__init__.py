"""The task tracker as a whole: what no single participant may know.

Two kinds of sagas run here. A user is registered, and each subscriber does its part: nothing ends
it. A task is created and indexed, announced and paid for; it is withdrawn if the bank refuses, and
goes well otherwise, without an event that says so.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from saga import (
    ARCHIVE,
    Broken,
    DeskBookkeeper,
    Foreign,
    Given,
    Intent,
    Outside,
    Phase,
    Plan,
    Priority,
    Saga,
    Scenario,
    States,
    Stimulus,
    derived_id,
)
from saga.message import Command

from taskflow.billing.domain import PARTICIPANT as BILLING
from taskflow.billing.domain import Bill
from taskflow.language import (
    ChangePreferences,
    CompleteTask,
    CreateTask,
    RegisterUser,
    TaskCompleted,
    TaskCreated,
    TaskWithdrawn,
    UserRegistered,
    Why,
)
from taskflow.mail.domain import PARTICIPANT as MAIL
from taskflow.mail.domain import Notice, Welcome
from taskflow.outside import (
    BankBooks,
    Choice,
    PostBooks,
    Remembered,
    asks_bank,
    asks_post,
    decides,
)
from taskflow.preferences.domain import PARTICIPANT as PREFERENCES
from taskflow.preferences.domain import Preferences
from taskflow.search.domain import PARTICIPANT as SEARCH
from taskflow.search.domain import Entry
from taskflow.tasks.domain import PARTICIPANT as TASKS
from taskflow.tasks.domain import Stage, Task
from taskflow.users.domain import PARTICIPANT as USERS
from taskflow.users.domain import User

BANK: Final = Outside(
    "bank",
    asked_by=BILLING.name,
    blank=BankBooks(),
    decisions=(Choice.YES, Choice.NO),
    ask=lambda desk: asks_bank(DeskBookkeeper(desk)),
    read=BankBooks.read,
    setting="BANK_URL",
    file="bank.db",
    memory=Remembered,
)
POST: Final = Outside(
    "post",
    asked_by=MAIL.name,
    blank=PostBooks(),
    decisions=(Choice.YES,),
    ask=lambda desk: asks_post(DeskBookkeeper(desk)),
    read=PostBooks.read,
    setting="POST_URL",
    file="post.db",
    memory=Remembered,
)


# --- who only listens: a program for Node, of which the signatures are here
# ------------------------


def count_user(event: UserRegistered) -> None:
    """One user more."""


def count_created(event: TaskCreated) -> None:
    """One task more."""


def count_completed(event: TaskCompleted) -> None:
    """One task more that is done."""


def count_withdrawn(event: TaskWithdrawn) -> None:
    """One task less."""


ANALYTICS: Final = Foreign(
    "analytics",
    count_user,
    count_created,
    count_completed,
    count_withdrawn,
    # Where there is no Node, what it is to count waits for it.
    command=("node", "analytics/start.mjs") if shutil.which("node") else (),
)


# --- what must hold, beside what follows from roles -----------------------------------------------


def charged_wrongly(tasks: States[Task], bills: States[Bill], bank: BankBooks) -> Iterator[Broken]:
    """A task that stands is paid for, and one that was withdrawn is not."""
    for key, task in tasks.items():
        line = bank.find(key)
        paid = line is not None and line.stands
        stands = task.stage is not Stage.WITHDRAWN
        if paid is not stands or (bills.of(key).phase is Phase.TAKEN) is not stands:
            said = "paid" if paid else "not paid"
            yield key, f"it is {task.stage}, its bill {bills.of(key).phase}, and it is {said}"


def found_wrongly(tasks: States[Task], entries: States[Entry]) -> Iterator[Broken]:
    """A task that stands is found, as done if it is done; one that was withdrawn is not."""
    for key, task in tasks.items():
        entry = entries.of(key)
        if task.stage is Stage.WITHDRAWN:
            if not entry.removed:
                yield key, "it was withdrawn, and its entry may be found"
        elif entry.title is None or entry.done is not (task.stage is Stage.DONE):
            yield key, f"it is {task.stage}, and its entry says {entry.title!r}, {entry.done}"


def told_wrongly(tasks: States[Task], notices: States[Notice], post: PostBooks) -> Iterator[Broken]:
    """Users have heard of each task that stands, and of no withdrawn one without a correction."""
    for key, task in tasks.items():
        line = post.find(key)
        told = line is not None and line.stands
        if told is not (task.stage is not Stage.WITHDRAWN):
            yield key, f"it is {task.stage}, the mail {notices.of(key).phase}, and told: {told}"


def neglected(
    users: States[User], welcomes: States[Welcome], preferences: States[Preferences]
) -> Iterator[Broken]:
    """A registered user was welcomed, and has preferences."""
    for key, user in users.items():
        if user.registered_at is not None and welcomes.of(key).phase is not Phase.TAKEN:
            yield key, f"the welcome is {welcomes.of(key).phase}"
        if user.registered_at is not None and preferences.of(key).digest is None:
            yield key, "there are no preferences"


# --- how that is tried ----------------------------------------------------------------------------

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
ADA: Final = "ada@example.org"
A: Final = "write the notes"
_CREATE: Final = CreateTask(task=A, user=ADA, title="Write the notes")
_MOMENTS: Final = (NOW, NOW + timedelta(hours=2))

A_USER: Final = Scenario(
    "a user",
    sent=[
        (USERS.name, RegisterUser(user=ADA)),
        (PREFERENCES.name, ChangePreferences(user=ADA, digest=False)),
    ],
    moments=_MOMENTS,
    names={ADA: "ada"},
    only={USERS.name, MAIL.name, PREFERENCES.name, ANALYTICS.name},
)
A_BILL: Final = Scenario(
    "a task and its bill",
    sent=[(TASKS.name, _CREATE)],
    stimuli=[
        Stimulus("it is done", TASKS.name, CompleteTask(task=A), NOW, at_rest=True),
    ],
    moments=_MOMENTS,
    names={A: "A"},
    only={TASKS.name, BILLING.name, SEARCH.name, ANALYTICS.name},
)
A_NOTICE: Final = Scenario(
    "a task and its mail",
    sent=[(TASKS.name, _CREATE)],
    moments=_MOMENTS,
    names={A: "A"},
    only={TASKS.name, BILLING.name, MAIL.name},
)


def plan(chance: random.Random, tasks: int) -> Plan:
    """Draw a load: users, and tasks of which some are not paid for, and some are done."""
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}

    def give(participant: str, command: Command, at: float) -> None:
        key = derived_id(command.subject, command.type)
        over_broker, priority = chance.random() < 0.5, chance.choice(list(Priority))
        given.append(Given(participant, command, key, at, over_broker, priority))

    for number in range(tasks):
        at = chance.random() * 3
        user = f"user{chance.randrange(10**6)}.{number}@example.org"
        if number % 3 == 0:
            give(USERS.name, RegisterUser(user=user), at)
            if chance.random() < 0.5:
                give(PREFERENCES.name, ChangePreferences(user=user, digest=False), at + 1)
        kind = chance.choices(("usual", "broke", "slow"), (7, 2, 1))[0]
        task = f"task {chance.randrange(10**6)}/{number} {kind}"
        create = CreateTask(
            task=task,
            user=user,
            title=f"{kind} thing {number}",
            bill_within_seconds=2 if kind == "slow" else 10**6,
        )
        give(TASKS.name, create, at)
        if chance.random() < 0.3:
            give(TASKS.name, CompleteTask(task=task), at + chance.random() * 5)
        ends[task] = _ENDS[kind]
    return Plan(given, ends, decisions={BANK.name: _decide})


_ENDS: Final = {
    "usual": frozenset[str](),
    "broke": frozenset({str(Why.UNPAID)}),
    "slow": frozenset({str(Why.TOO_LATE)}),
}


def _decide(intent: Intent) -> Choice:
    return decides(intent.subject)


SAGA: Final = Saga(
    "taskflow",
    participants=(USERS, TASKS, BILLING, MAIL, SEARCH, PREFERENCES, ANALYTICS),
    observers=(ARCHIVE,),
    subject=Task,
    outside=(BANK, POST),
    at_rest=(charged_wrongly, found_wrongly, told_wrongly, neglected),
    scenarios=(A_USER, A_BILL, A_NOTICE),
    load=plan,
)
