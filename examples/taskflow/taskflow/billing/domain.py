"""The bill of a task: the bank is asked to charge the user, until it answers or time is over.

The bank is asked outside of any transaction, so a crash may come between question and answer, and a
withdrawal at any moment; `saga.ask`, `record` and `take_back` say what is right then. When the time
is over, the bank may have charged all the same: that is settled once the task is withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga import (
    Answer,
    Command,
    Decided,
    Due,
    Intent,
    Participant,
    Phase,
    Retry,
    State,
    ask,
    record,
    record_undone,
    take_back,
)

from taskflow.language import (
    BillDropped,
    TaskBilled,
    TaskCreated,
    TaskKey,
    TaskUnbilled,
    TaskWithdrawn,
    Why,
)


class GiveUpBilling(Command):
    """The bank takes too long."""

    type: ClassVar[str] = "billing.give_up"

    task: TaskKey

    @property
    def subject(self) -> str:
        return self.task


class Charged(Answer):
    """Whether the bank has charged the user."""

    task: str
    charged: bool

    @property
    def subject(self) -> str:
        return self.task


class Refunded(Answer):
    """The money is with the user again."""

    task: str

    @property
    def subject(self) -> str:
        return self.task


class _BankIntent(Intent):
    task: str

    @property
    def subject(self) -> str:
        return self.task


class Charge(_BankIntent):
    """Ask the bank to charge the user."""

    answer: ClassVar[type[Answer]] = Charged

    until: datetime | None = None
    """When it has to be charged at the latest."""


class SettleCharge(_BankIntent):
    """Ask whether it was charged. If not, the bank sees to it that it never will be."""

    answer: ClassVar[type[Answer]] = Charged


class Refund(_BankIntent):
    """Ask the bank to give the money back."""

    answer: ClassVar[type[Answer]] = Refunded


@dataclass(frozen=True, slots=True)
class Bill(State):
    """The bill of one task. What only a question tells is forgotten with its answer: at rest, a
    state follows from events alone."""

    phase: Phase = Phase.NEW
    until: datetime | None = None
    given_up: bool = False
    """Time was over before the bank had answered."""

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case Charge():
                return replace(self, phase=Phase.ASKING, until=message.until)
            case SettleCharge():
                return replace(self, phase=Phase.SETTLING, until=None)
            case TaskUnbilled(why=Why.TOO_LATE):
                return replace(self, phase=Phase.ASKING, until=None, given_up=True)
            case TaskUnbilled():
                return replace(self, phase=Phase.REFUSED, until=None)
            case TaskBilled():
                return replace(self, phase=Phase.TAKEN, until=None)
            case Refund():
                return replace(self, phase=Phase.UNDOING)
            case BillDropped():
                return replace(self, phase=Phase.VOID, until=None)
            case _:
                return self

    def due(self) -> Due[GiveUpBilling] | None:
        """The bank is not waited for any longer."""
        if self.phase is not Phase.ASKING or self.until is None:
            return None
        return Due(self.until, GiveUpBilling(task=self.key))


def charge(event: TaskCreated, bill: Bill) -> Charge | None:
    if bill.given_up:
        return None
    return ask(bill.phase, lambda: Charge(task=event.task, until=event.bill_by))


def record_charge(
    answer: Charged, bill: Bill
) -> TaskBilled | TaskUnbilled | BillDropped | tuple[TaskBilled, Refund] | Refund | None:
    if bill.given_up and bill.phase is Phase.ASKING and not answer.charged:
        return BillDropped(task=answer.task)
    return record(
        bill.phase,
        answer.charged,
        taken=lambda: TaskBilled(task=answer.task),
        refused=lambda: TaskUnbilled(task=answer.task, why=Why.UNPAID),
        void=lambda: BillDropped(task=answer.task),
        undo=lambda: Refund(task=answer.task),
    )


def give_up(command: GiveUpBilling, bill: Bill) -> TaskUnbilled | None:
    if bill.due() is None:
        return None
    return TaskUnbilled(task=command.task, why=Why.TOO_LATE)


def drop(event: TaskWithdrawn, bill: Bill) -> BillDropped | SettleCharge | Refund | None:
    return take_back(
        bill.phase,
        void=lambda: BillDropped(task=event.task),
        settle=lambda: SettleCharge(task=event.task),
        undo=lambda: Refund(task=event.task),
    )


def record_refund(answer: Refunded, bill: Bill) -> BillDropped | None:
    return record_undone(bill.phase, lambda: BillDropped(task=answer.task))


PARTICIPANT = Participant(
    "billing",
    charge,
    record_charge,
    give_up,
    drop,
    record_refund,
    retry=Retry(max_calls=8, delay=0.5, backoff=2.0, max_delay=15.0),
)
