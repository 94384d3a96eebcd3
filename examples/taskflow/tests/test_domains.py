"""What each participant answers, and what it says when the same comes twice or too early."""

from __future__ import annotations

from datetime import timedelta

import pytest
from pydantic import ValidationError
from saga import Message, Participant, Phase
from saga.testing import NOW, assert_once, given

from taskflow.billing.domain import PARTICIPANT as BILLING
from taskflow.billing.domain import Bill, Charge, Charged, GiveUpBilling, Refund, SettleCharge
from taskflow.language import (
    BillDropped,
    ChangePreferences,
    CompleteTask,
    CreateTask,
    EntryClosed,
    EntryRemoved,
    PreferencesSet,
    RegisterUser,
    TaskAnnounced,
    TaskBilled,
    TaskCompleted,
    TaskCorrected,
    TaskCreated,
    TaskIndexed,
    TaskUnbilled,
    TaskWithdrawn,
    UserRegistered,
    UserWelcomed,
    Why,
)
from taskflow.mail.domain import PARTICIPANT as MAIL
from taskflow.mail.domain import NoticeSent, SendCorrection, SendNotice, SendWelcome, SettleNotice
from taskflow.preferences.domain import PARTICIPANT as PREFERENCES
from taskflow.search.domain import PARTICIPANT as SEARCH
from taskflow.tasks.domain import PARTICIPANT as TASKS
from taskflow.users.domain import PARTICIPANT as USERS

ADA, A = "ada@example.org", "write the notes"
LATER = NOW + timedelta(hours=1)
registered = UserRegistered(user=ADA)
create = CreateTask(task=A, user=ADA, title="Write the notes")
created = TaskCreated(task=A, user=ADA, title="Write the notes", bill_by=LATER)
completed = TaskCompleted(task=A)
unbilled = TaskUnbilled(task=A, why=Why.UNPAID)
too_late = TaskUnbilled(task=A, why=Why.TOO_LATE)
withdrawn = TaskWithdrawn(task=A, user=ADA, why=Why.UNPAID)
charge = Charge(task=A, until=LATER)
billed, dropped = TaskBilled(task=A), BillDropped(task=A)
announced, corrected = TaskAnnounced(task=A), TaskCorrected(task=A)
indexed, removed = TaskIndexed(task=A, title="Write the notes"), EntryRemoved(task=A)


@pytest.mark.parametrize(
    ("participant", "message"),
    [
        (USERS, RegisterUser(user=ADA)),
        (TASKS, create),
        (BILLING, created),
        (BILLING, withdrawn),
        (MAIL, registered),
        (MAIL, created),
        (MAIL, withdrawn),
        (SEARCH, created),
        (SEARCH, completed),
        (SEARCH, withdrawn),
        (PREFERENCES, registered),
        (PREFERENCES, ChangePreferences(user=ADA, digest=False)),
    ],
)
def test_what_comes_twice_is_done_once(participant: Participant, message: Message) -> None:
    assert_once(given(participant), message)


def test_a_task_is_completed_and_withdrawn_once() -> None:
    assert given(TASKS).when(create) == (created,)
    assert given(TASKS, created).when(CompleteTask(task=A)) == (completed,)
    assert given(TASKS, created, completed).when(unbilled) == (withdrawn,)
    assert given(TASKS, created, withdrawn).when(CompleteTask(task=A)) == ()


def test_no_task_is_called_like_a_user() -> None:
    with pytest.raises(ValidationError):
        CreateTask(task=ADA, user=ADA, title="Write the notes")


def test_the_bank_is_asked_and_its_answer_told() -> None:
    assert given(BILLING).when(created) == (charge,)
    for answer, told in ((True, billed), (False, unbilled)):
        assert given(BILLING, charge).when(Charged(task=A, charged=answer)) == (told,)


def test_the_bank_is_not_waited_for_any_longer_than_said() -> None:
    due = given(BILLING, charge).state(Bill, A).due()
    assert due is not None
    assert (due.at, due.command) == (LATER, GiveUpBilling(task=A))
    assert given(BILLING, charge).when(due.command) == (too_late,)
    assert given(BILLING, charge, billed).when(due.command) == ()


def test_what_the_bank_says_after_its_time_is_settled() -> None:
    over = given(BILLING, charge, too_late)
    assert over.when(created) == ()
    assert over.when(Charged(task=A, charged=False)) == (dropped,)
    assert over.when(Charged(task=A, charged=True)) == (billed,)
    assert over.when(withdrawn) == (SettleCharge(task=A),)


def test_a_withdrawal_drops_the_bill_at_any_moment() -> None:
    assert given(BILLING).when(withdrawn) == (dropped,)
    assert given(BILLING, charge).when(withdrawn) == (SettleCharge(task=A),)
    assert given(BILLING, charge, billed).when(withdrawn) == (Refund(task=A),)
    assert given(BILLING, dropped).state(Bill, A).phase is Phase.VOID


def test_a_new_user_is_welcomed_and_has_preferences_unless_they_were_first() -> None:
    assert given(MAIL).when(registered) == (SendWelcome(about=ADA),)
    assert given(MAIL, SendWelcome(about=ADA), UserWelcomed(user=ADA)).when(registered) == ()
    assert given(PREFERENCES).when(registered) == (PreferencesSet(user=ADA, digest=True),)
    assert given(PREFERENCES, PreferencesSet(user=ADA, digest=False)).when(registered) == ()


def test_a_mail_is_corrected_by_another_one_if_it_was_sent() -> None:
    notice, settle = SendNotice(about=A), SettleNotice(about=A)
    assert given(MAIL).when(withdrawn) == (corrected,)
    assert given(MAIL, notice).when(withdrawn) == (settle,)
    assert given(MAIL, notice, announced).when(withdrawn) == (SendCorrection(about=A),)
    settling = given(MAIL, notice, settle)
    assert settling.when(NoticeSent(about=A)) == (announced, SendCorrection(about=A))
    assert settling.when(NoticeSent(about=A, sent=False)) == (corrected,)


def test_the_index_says_what_is_true_whatever_comes_first() -> None:
    assert given(SEARCH).when(created) == (indexed,)
    assert given(SEARCH, EntryClosed(task=A)).when(created) == (indexed,)
    assert given(SEARCH, removed).when(created) == ()
    assert given(SEARCH, removed).when(completed) == ()
