"""A mail about an order's end: begun, sent, and never again by itself once it may have gone out."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import (
    CancellationReason,
    DismissalReason,
    Letter,
    LetterKind,
    NotificationBegun,
    NotificationDismissed,
    NotificationSent,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
)
from notification_service.domain import (
    CUT_SHORT,
    PARTICIPANT,
    RESENDING_MAX,
    DismissNotification,
    GiveUpResending,
    Notification,
    NotificationStatus,
    PutOff,
    Resend,
    ResendNotification,
    Result,
    Send,
    SendAnswered,
)
from saga.due import Due
from saga.envelope import wrap
from saga.message import Event, Intent, Priority
from saga.runtime.kernel.fold import Fold
from saga.testing import NOW, GivenParticipant, given
from tests.unit.strategies import events, moments

ORDER = UUID(int=1)
LETTER = Letter(kind=LetterKind.CONFIRMED, customer="ada", currency="EUR", total_cents=500)

confirmed = OrderConfirmed(order_id=ORDER, customer="ada", currency="EUR", total_cents=500)
cancelled = OrderCancelled(
    order_id=ORDER, customer="ada", reason=CancellationReason.PAYMENT_DECLINED
)
begun = NotificationBegun(order_id=ORDER, letter=LETTER)
send = Send(order_id=ORDER, letter=LETTER)
# Numbered by the events so far: `given` counts none.
resend = Resend(order_id=ORDER, letter=LETTER, number=0)
accepted = SendAnswered(order_id=ORDER, result=Result.ACCEPTED)
refused = SendAnswered(order_id=ORDER, result=Result.REFUSED, detail="451 later")
rejected = SendAnswered(order_id=ORDER, result=Result.REJECTED, detail="550 who?")
lost = SendAnswered(order_id=ORDER, result=Result.UNKNOWN, detail="connection lost")
forgotten = SendAnswered(order_id=ORDER, result=Result.FORGOTTEN, detail="forgotten")
sent = NotificationSent(order_id=ORDER)
unconfirmed = NotificationUnconfirmed(order_id=ORDER, detail=lost.detail)
put_off = PutOff(order_id=ORDER, result=Result.REFUSED, detail=refused.detail)
dismissed = NotificationDismissed(order_id=ORDER)
please_resend = ResendNotification(order_id=ORDER)
give_up = GiveUpResending(order_id=ORDER)
please_dismiss = DismissNotification(order_id=ORDER)

HISTORY: dict[NotificationStatus, Sequence[Event | Intent]] = {
    NotificationStatus.NONE: (),
    NotificationStatus.SENDING: (begun, send),
    NotificationStatus.WAITING: (begun, send, put_off),
    NotificationStatus.SENT: (begun, send, sent),
    NotificationStatus.UNKNOWN: (begun, send, unconfirmed),
    NotificationStatus.RESENDING: (begun, send, unconfirmed, resend),
    NotificationStatus.DISMISSED: (begun, send, unconfirmed, dismissed),
}


def at(status: NotificationStatus) -> GivenParticipant:
    world = given(PARTICIPANT, *HISTORY[status])
    assert world.state(Notification, ORDER).status is status
    return world


def status_of(world: GivenParticipant) -> NotificationStatus:
    return world.state(Notification, ORDER).status


# --- by itself ------------------------------------------------------------------------------------


def test_a_confirmed_order_is_told_with_what_was_paid() -> None:
    assert given(PARTICIPANT).when(confirmed) == (begun, send)


def test_a_cancelled_order_is_told_with_the_reason() -> None:
    letter = Letter(
        kind=LetterKind.CANCELLED, customer="ada", reason=CancellationReason.PAYMENT_DECLINED
    )

    assert given(PARTICIPANT).when(cancelled) == (
        NotificationBegun(order_id=ORDER, letter=letter),
        Send(order_id=ORDER, letter=letter),
    )


def test_an_accepted_mail_is_sent() -> None:
    assert at(NotificationStatus.SENDING).when(accepted) == (sent,)


@pytest.mark.parametrize("answer", [refused, rejected], ids=["refused", "rejected"])
def test_a_mail_that_was_not_accepted_is_put_off_and_sent_when_the_event_is_tried_again(
    answer: SendAnswered,
) -> None:
    world = at(NotificationStatus.SENDING)

    assert world.live(answer) == (
        PutOff(order_id=ORDER, result=answer.result, detail=answer.detail, number=1),
    )
    assert world.live(confirmed) == (Send(order_id=ORDER, letter=LETTER, number=2),)
    assert status_of(world) is NotificationStatus.SENDING


@pytest.mark.parametrize("answer", [refused, rejected], ids=["refused", "rejected"])
def test_an_answer_to_an_earlier_attempt_has_nothing_sent_while_the_last_one_goes_on(
    answer: SendAnswered,
) -> None:
    world = at(NotificationStatus.WAITING)
    world.live(confirmed)

    (put_off,) = world.live(answer)

    assert isinstance(put_off, PutOff), "its event is not done by that"
    assert status_of(world) is NotificationStatus.SENDING
    assert world.live(confirmed) == (NotificationUnconfirmed(order_id=ORDER, detail=CUT_SHORT),)


@pytest.mark.parametrize("answer", [refused, rejected], ids=["refused", "rejected"])
def test_putting_off_is_decided_anew_when_nobody_knows_whether_that_was_committed(
    answer: SendAnswered,
) -> None:
    world = at(NotificationStatus.WAITING)

    assert world.live(answer) == (
        PutOff(order_id=ORDER, result=answer.result, detail=answer.detail, number=1),
    )
    assert status_of(world) is NotificationStatus.WAITING


def test_a_mail_with_no_answer_is_left_to_a_person() -> None:
    world = at(NotificationStatus.SENDING)

    assert world.live(lost) == (unconfirmed,)
    assert world.state(Notification, ORDER).detail == lost.detail


def test_a_mail_that_was_cut_short_is_left_to_a_person() -> None:
    assert at(NotificationStatus.SENDING).when(confirmed) == (
        NotificationUnconfirmed(order_id=ORDER, detail=CUT_SHORT),
    )


def test_whoever_knows_only_the_events_does_not_send_it_again_either() -> None:
    fold = Fold(PARTICIPANT)
    fold.take(wrap(begun, id="1", source=fold.source, time=NOW, priority=Priority.NORMAL))

    (state,) = fold.states.values()
    assert isinstance(state, Notification)
    assert state.status is NotificationStatus.SENDING
    assert state.tries == 1


def test_the_second_attempt_may_be_put_off_like_the_first() -> None:
    world = at(NotificationStatus.WAITING)
    world.live(confirmed)
    answer = refused.model_copy(update={"number": 2})

    assert world.live(answer) == (put_off.model_copy(update={"number": 2}),)
    assert status_of(world) is NotificationStatus.WAITING
    assert world.live(confirmed) == (Send(order_id=ORDER, letter=LETTER, number=3),)


@pytest.mark.parametrize("end", [accepted, lost], ids=["accepted", "lost"])
def test_what_has_come_to_an_end_counts_one_attempt(end: SendAnswered) -> None:
    world = at(NotificationStatus.WAITING)
    world.live(confirmed)
    assert world.state(Notification, ORDER).tries == 2

    world.live(end)

    assert world.state(Notification, ORDER).tries == 1


@pytest.mark.parametrize(
    "status",
    [NotificationStatus.SENDING, NotificationStatus.WAITING, NotificationStatus.RESENDING],
)
def test_a_mail_to_who_was_forgotten_is_settled_and_not_tried_again(
    status: NotificationStatus,
) -> None:
    assert at(status).when(forgotten) == (
        NotificationDismissed(order_id=ORDER, reason=DismissalReason.FORGOTTEN),
    )


@pytest.mark.parametrize(
    "status",
    [NotificationStatus.SENT, NotificationStatus.UNKNOWN, NotificationStatus.DISMISSED],
)
def test_forgetting_somebody_changes_nothing_about_other_mails(status: NotificationStatus) -> None:
    assert at(status).when(forgotten) == ()


def test_an_unknown_mail_that_turns_out_to_be_accepted_is_sent() -> None:
    assert at(NotificationStatus.UNKNOWN).when(accepted) == (sent,)


@pytest.mark.parametrize(
    "status",
    [NotificationStatus.SENT, NotificationStatus.UNKNOWN, NotificationStatus.DISMISSED],
)
@pytest.mark.parametrize("event", [confirmed, cancelled], ids=["confirmed", "cancelled"])
def test_an_event_that_comes_again_sends_nothing(
    status: NotificationStatus, event: OrderConfirmed | OrderCancelled
) -> None:
    assert at(status).when(event) == ()


@pytest.mark.parametrize("answer", [accepted, refused, lost], ids=["accepted", "refused", "lost"])
def test_an_answer_about_what_was_sent_changes_nothing(answer: SendAnswered) -> None:
    assert at(NotificationStatus.SENT).when(answer) == ()


@pytest.mark.parametrize("answer", [refused, lost], ids=["refused", "lost"])
def test_what_was_dismissed_stays_so_if_it_was_not_accepted(answer: SendAnswered) -> None:
    assert at(NotificationStatus.DISMISSED).when(answer) == ()


def test_what_was_dismissed_and_went_out_after_all_is_sent() -> None:
    assert at(NotificationStatus.DISMISSED).when(accepted) == (sent,)


@pytest.mark.parametrize("answer", [refused, rejected, lost], ids=["refused", "rejected", "lost"])
def test_what_is_unknown_stays_so_unless_it_is_accepted(answer: SendAnswered) -> None:
    assert at(NotificationStatus.UNKNOWN).when(answer) == ()


EVENT, CRASH = "event", "crash"


@for_all(
    happenings=st.lists(
        st.one_of(st.sampled_from([EVENT, CRASH]), st.sampled_from([*Result])), max_size=20
    )
)
def test_by_itself_it_sends_again_only_what_was_not_accepted(happenings: Sequence[str]) -> None:
    world = given(PARTICIPANT)
    out: list[str | None] = []
    """What became of each mail that was handed over; None is open, or never came back."""
    asking = False
    for happening in happenings:
        if happening == CRASH:
            asking = False
        elif happening == EVENT:
            for result in world.live(confirmed):
                if isinstance(result, Send):
                    assert all(end in (Result.REFUSED, Result.REJECTED) for end in out)
                    out.append(None)
                    asking = True
        elif asking:
            asking = False
            out[-1] = happening
            world.live(SendAnswered(order_id=ORDER, result=Result(happening)))
    if Result.ACCEPTED in out:
        assert status_of(world) is NotificationStatus.SENT


# --- by an operator
# ----------------------------------------------------------------------------------


def test_a_person_may_have_an_unknown_mail_sent_again() -> None:
    world = at(NotificationStatus.UNKNOWN)

    assert world.live(please_resend) == (resend,)
    assert status_of(world) is NotificationStatus.RESENDING
    assert world.live(accepted) == (sent,)
    assert world.state(Notification, ORDER).resent_at is None


@pytest.mark.parametrize("result", [Result.REFUSED, Result.REJECTED, Result.UNKNOWN])
def test_what_was_sent_again_in_vain_is_unknown_as_before(result: Result) -> None:
    world = at(NotificationStatus.RESENDING)
    answer = SendAnswered(order_id=ORDER, result=result, detail="no", again=True, number=0)

    assert world.live(answer) == (NotificationUnconfirmed(order_id=ORDER, detail="no"),)
    assert status_of(world) is NotificationStatus.UNKNOWN


@pytest.mark.parametrize("answer", [refused, rejected, lost], ids=["refused", "rejected", "lost"])
def test_a_late_answer_to_the_first_sending_does_not_end_the_second(answer: SendAnswered) -> None:
    assert at(NotificationStatus.RESENDING).when(answer) == ()


@pytest.mark.parametrize(
    "answer",
    [refused.model_copy(update={"number": 0}), refused.model_copy(update={"again": True})],
    ids=["to a first sending of the same number", "to another sending again"],
)
def test_only_the_answer_to_this_sending_again_ends_it(answer: SendAnswered) -> None:
    assert at(NotificationStatus.RESENDING).when(answer) == ()


def test_nothing_is_due_where_it_is_not_known_when_sending_again_began() -> None:
    assert Notification(str(ORDER), status=NotificationStatus.RESENDING).due() is None
    assert Notification(str(ORDER), status=NotificationStatus.SENT, resent_at=NOW).due() is None


def test_sending_again_that_takes_too_long_was_cut_short() -> None:
    world = at(NotificationStatus.RESENDING)

    assert world.state(Notification, ORDER).due() == Due(NOW + RESENDING_MAX, give_up)
    assert world.when(give_up) == (NotificationUnconfirmed(order_id=ORDER, detail=CUT_SHORT),)


@pytest.mark.parametrize(
    "status", sorted({*NotificationStatus} - {NotificationStatus.RESENDING}, key=str)
)
def test_only_what_is_being_sent_again_is_given_up(status: NotificationStatus) -> None:
    assert at(status).state(Notification, ORDER).due() is None
    assert at(status).when(give_up) == ()


def test_whoever_knows_only_the_events_has_what_was_being_sent_again_as_unknown() -> None:
    world = given(PARTICIPANT, begun, unconfirmed)

    assert status_of(world) is NotificationStatus.UNKNOWN


def test_a_person_may_leave_an_unknown_mail_as_it_is() -> None:
    world = at(NotificationStatus.UNKNOWN)

    assert world.live(please_dismiss) == (dismissed,)
    assert world.state(Notification, ORDER).detail == lost.detail


@pytest.mark.parametrize(
    "status", sorted({*NotificationStatus} - {NotificationStatus.UNKNOWN}, key=str)
)
@pytest.mark.parametrize("command", [please_resend, please_dismiss], ids=["resend", "dismiss"])
def test_only_what_is_unknown_is_for_a_person(
    status: NotificationStatus, command: ResendNotification | DismissNotification
) -> None:
    assert at(status).when(command) == ()


# --- evolve ---------------------------------------------------------------------------------------


@for_all(status=st.sampled_from([*NotificationStatus]), event=events, now=moments)
def test_a_notification_takes_any_event_without_raising(
    status: NotificationStatus, event: Event, now: datetime
) -> None:
    assert isinstance(at(status).state(Notification, ORDER).evolve(event, now), Notification)
