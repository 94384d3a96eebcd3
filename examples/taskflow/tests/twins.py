"""The task tracker with one mistake each, of those that people make: the checker finds them all."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Self, get_type_hints

from saga import Decided, Participant, Phase, Saga, State

from taskflow import A_BILL, A_NOTICE, A_USER, SAGA
from taskflow.billing import domain as billing
from taskflow.billing.domain import Bill, Charged, Refund, SettleCharge
from taskflow.language import (
    BillDropped,
    CompleteTask,
    EntryClosed,
    EntryRemoved,
    TaskAnnounced,
    TaskBilled,
    TaskCompleted,
    TaskCorrected,
    TaskCreated,
    TaskIndexed,
    TaskUnbilled,
    TaskWithdrawn,
    UserWelcomed,
    Why,
)
from taskflow.mail import domain as mail
from taskflow.mail.domain import (
    Notice,
    NoticeSent,
    SendCorrection,
    SettleNotice,
    Welcome,
    WelcomeSent,
)
from taskflow.search import domain as search
from taskflow.search.domain import Entry
from taskflow.tasks import domain as tasks
from taskflow.tasks.domain import Stage, Task

Twin = tuple[Saga, str]
"""A saga with a mistake, and the scenario in which it is found."""
TWINS: Final[dict[str, Callable[[], Twin]]] = {}


def twin(scenario: str) -> Callable[[Callable[[], Participant]], Callable[[], Participant]]:
    """Registers the mistake that is in the participant which a function makes."""

    def register(make: Callable[[], Participant]) -> Callable[[], Participant]:
        TWINS[make.__name__] = lambda: (SAGA.with_(make()), scenario)
        return make

    return register


def swapped(participant: Participant, *instead: Callable[..., Any]) -> Participant:
    """The participant with these functions for the reactions of the same names."""
    named = {function.__name__: function for function in instead}
    functions = [named.get(each.name, each.function) for each in participant.reactions]
    return Participant(participant.name, *functions, package=participant.package)


def retyped(participant: Participant, kind: type[State], other: type[State]) -> Participant:
    """The participant with states of another kind for those of one."""

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reaction(*arguments: Any) -> Any:
            return function(*arguments)

        hints = get_type_hints(function)
        reaction.__annotations__ = {n: other if hint is kind else hint for n, hint in hints.items()}
        return reaction

    return swapped(participant, *(taking(each.function) for each in participant.reactions))


# --- search ---------------------------------------------------------------------------------------


@twin(A_BILL.name)
def the_entry_of_a_withdrawn_task_is_left_in_the_index() -> Participant:
    def remove(event: TaskWithdrawn, entry: Entry) -> EntryRemoved | None:
        return None

    return swapped(search.PARTICIPANT, remove)


@twin(A_BILL.name)
def a_withdrawal_that_comes_first_leaves_no_marker() -> Participant:
    def remove(event: TaskWithdrawn, entry: Entry) -> EntryRemoved | None:
        return None if entry.title is None else search.remove(event, entry)

    return swapped(search.PARTICIPANT, remove)


@twin(A_BILL.name)
def the_marker_of_a_withdrawal_is_not_looked_at() -> Participant:
    def index(event: TaskCreated, entry: Entry) -> TaskIndexed | None:
        return search.index(event, replace(entry, removed=False))

    return swapped(search.PARTICIPANT, index)


@twin(A_BILL.name)
def a_completion_that_comes_first_is_forgotten() -> Participant:
    def close(event: TaskCompleted, entry: Entry) -> EntryClosed | None:
        return None if entry.title is None else search.close(event, entry)

    return swapped(search.PARTICIPANT, close)


# --- billing --------------------------------------------------------------------------------------

_Recorded = TaskBilled | TaskUnbilled | BillDropped | tuple[TaskBilled, Refund] | Refund | None


@twin(A_BILL.name)
def a_charge_on_its_way_is_taken_for_none() -> Participant:
    def drop(event: TaskWithdrawn, bill: Bill) -> BillDropped | SettleCharge | Refund | None:
        if bill.phase is Phase.ASKING:
            return BillDropped(task=event.task)
        return billing.drop(event, bill)

    return swapped(billing.PARTICIPANT, drop)


@twin(A_BILL.name)
def what_was_charged_too_late_is_not_given_back() -> Participant:
    def record_charge(answer: Charged, bill: Bill) -> _Recorded:
        recorded = billing.record_charge(answer, bill)
        return recorded[0] if isinstance(recorded, tuple) else recorded

    return swapped(billing.PARTICIPANT, record_charge)


@twin(A_BILL.name)
def a_refusal_after_the_time_is_over_is_told_once_more() -> Participant:
    def record_charge(answer: Charged, bill: Bill) -> _Recorded:
        return billing.record_charge(answer, replace(bill, given_up=False))

    return swapped(billing.PARTICIPANT, record_charge)


@twin(A_BILL.name)
def time_over_is_taken_for_a_refusal_by_the_bank() -> Participant:
    class Hasty(Bill):
        __slots__ = ()

        def evolve(self, message: Decided, at: datetime) -> Self:
            if isinstance(message, TaskUnbilled):
                message = TaskUnbilled(task=message.task, why=Why.UNPAID)
            return Bill.evolve(self, message, at)

    return retyped(billing.PARTICIPANT, Bill, Hasty)


@twin(A_BILL.name)
def the_banks_consent_is_dropped() -> Participant:
    def record_charge(answer: Charged, bill: Bill) -> _Recorded:
        return None if answer.charged else billing.record_charge(answer, bill)

    return swapped(billing.PARTICIPANT, record_charge)


# --- mail, tasks ----------------------------------------------------------------------------------


@twin(A_NOTICE.name)
def a_notice_that_was_sent_is_not_corrected() -> Participant:
    def correct(
        event: TaskWithdrawn, notice: Notice
    ) -> TaskCorrected | SettleNotice | SendCorrection | None:
        return None if notice.phase is Phase.TAKEN else mail.correct(event, notice)

    return swapped(mail.PARTICIPANT, correct)


@twin(A_NOTICE.name)
def a_notice_that_was_being_sent_is_not_corrected() -> Participant:
    def record_notice(
        answer: NoticeSent, notice: Notice
    ) -> (
        TaskAnnounced | TaskCorrected | tuple[TaskAnnounced, SendCorrection] | SendCorrection | None
    ):
        return mail.record_notice(answer.model_copy(update={"sent": False}), notice)

    return swapped(mail.PARTICIPANT, record_notice)


@twin(A_USER.name)
def a_welcome_is_told_of_with_every_answer() -> Participant:
    def record_welcome(answer: WelcomeSent, welcome: Welcome) -> UserWelcomed | None:
        return UserWelcomed(user=answer.about)

    return swapped(mail.PARTICIPANT, record_welcome)


@twin(A_BILL.name)
def a_task_that_is_done_is_not_withdrawn() -> Participant:
    def withdraw(event: TaskUnbilled, task: Task) -> TaskWithdrawn | None:
        return None if task.stage is Stage.DONE else tasks.withdraw(event, task)

    return swapped(tasks.PARTICIPANT, withdraw)


@twin(A_BILL.name)
def a_withdrawn_task_can_be_done() -> Participant:
    def complete(command: CompleteTask, task: Task) -> TaskCompleted | None:
        return None if task.stage is Stage.UNKNOWN else TaskCompleted(task=command.task)

    return swapped(tasks.PARTICIPANT, complete)
