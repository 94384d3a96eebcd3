"""A mail to the customer when the order has ended: begun, then sent, or left to an operator.

A mail cannot be taken back, and a mail server keeps no idempotency keys. So what was being sent
when the service crashed, or when the connection broke over the text, is not sent again by itself:
it is `unknown`, until an operator has it sent again, or dismisses it. What the server refused is
sent when the event is tried again.

While a mail is being sent again, which a state of its own tells all replicas, it can neither be
sent once more nor be dismissed. Where that is cut short, time ends it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self
from uuid import UUID

from common.events import (
    Detail,
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
from saga.choreography import Participant, State
from saga.due import Due
from saga.message import Answer, Command, Decided, Intent
from saga.retry import Retry

CUT_SHORT = "the process that was sending it was stopped"
RESENDING_MAX = timedelta(minutes=15)
"""How long a mail may be on its way again; what takes longer was cut short, as by a crash."""


class Result(StrEnum):
    """What became of a mail that was handed over."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    """It was not accepted now, and may be later."""
    REJECTED = "rejected"
    """It was not accepted, and never will be as it is."""
    UNKNOWN = "unknown"
    FORGOTTEN = "forgotten"
    """Nothing was handed over, and never will be: its customer was forgotten."""


class SendAnswered(Answer):
    """What the mail server said, or that it said nothing; `detail` tells why."""

    order_id: UUID
    result: Result
    detail: Detail = ""
    again: bool = False
    """Whether it answers a `Resend`."""
    number: int = 1
    """Of the attempt that it answers."""

    @property
    def subject(self) -> str:
        return str(self.order_id)


class _MailIntent(Intent):
    answer: ClassVar[type[Answer]] = SendAnswered

    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class Send(_MailIntent):
    """Hand the mail over, for the first time or after a refusal. `number` counts the attempts."""

    letter: Letter
    number: int = 1


class Resend(_MailIntent):
    """Hand over again, because an operator said so, what may have been sent already. `number` tells
    one attempt from another."""

    letter: Letter
    number: int = 1


class PutOff(_MailIntent):
    """Note that nothing was sent, and fail: trying the event again is what sends it. One that was
    `rejected` is dead at once."""

    result: Result
    detail: Detail
    number: int = 1
    """Of the attempt that was refused."""


class _MailCommand(Command):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class ResendNotification(_MailCommand):
    """Send an unconfirmed mail, even if that makes two."""

    type: ClassVar[str] = "notification.resend"


class DismissNotification(_MailCommand):
    """Leave an unconfirmed mail as it is."""

    type: ClassVar[str] = "notification.dismiss"


class GiveUpResending(_MailCommand):
    """The process that was sending an unconfirmed mail again takes too long."""

    type: ClassVar[str] = "notification.give_up_resending"


class NotificationStatus(StrEnum):
    """Where a mail stands. In `sending` and `resending` it may have gone out without our knowing
    yet; `waiting` was refused, and the event waits for its next try or is dead."""

    NONE = "none"
    SENDING = "sending"
    WAITING = "waiting"
    SENT = "sent"
    UNKNOWN = "unknown"
    RESENDING = "resending"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True)
class Notification(State):
    """The mail about one order's end. It is `sending` by its first event, not only by the intent:
    a state that is rebuilt from the events must not send it again either."""

    status: NotificationStatus = NotificationStatus.NONE
    letter: Letter | None = None
    begun_at: datetime | None = None
    detail: str = ""
    """Why it is unknown whether it was sent."""
    resent_at: datetime | None = None
    """When sending it again began, if that goes on."""
    tries: int = 0
    """How often it was handed over, as long as no answer is an event. An answer to an earlier
    attempt says nothing of the last one, which another replica may be at."""

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case NotificationBegun():
                return replace(
                    self,
                    status=NotificationStatus.SENDING,
                    letter=message.letter,
                    begun_at=at,
                    tries=1,
                )
            case Send():
                return replace(self, status=NotificationStatus.SENDING, tries=message.number)
            case PutOff() if message.number == self.tries:
                return replace(self, status=NotificationStatus.WAITING)
            case Resend():
                return replace(
                    self,
                    status=NotificationStatus.RESENDING,
                    resent_at=at,
                    tries=message.number,
                )
            case NotificationSent():
                return self._is(NotificationStatus.SENT)
            case NotificationUnconfirmed():
                return self._is(NotificationStatus.UNKNOWN, message.detail)
            case NotificationDismissed():
                return self._is(NotificationStatus.DISMISSED, self.detail)
            case _:
                return self

    def due(self) -> Due[GiveUpResending] | None:
        """One that is sent again too long, was cut short."""
        if self.status is not NotificationStatus.RESENDING or self.resent_at is None:
            return None
        return Due(self.resent_at + RESENDING_MAX, GiveUpResending(order_id=UUID(self.key)))

    def _is(self, status: NotificationStatus, detail: str = "") -> Self:
        # One attempt: what rows say that were ended before attempts were numbered.
        return replace(self, status=status, detail=detail, resent_at=None, tries=1)


_Begun = tuple[NotificationBegun, Send] | Send | NotificationUnconfirmed | None


def tell_confirmed(event: OrderConfirmed, notification: Notification) -> _Begun:
    letter = Letter(
        kind=LetterKind.CONFIRMED,
        customer=event.customer,
        currency=event.currency,
        total_cents=event.total_cents,
    )
    return _send(event.order_id, letter, notification)


def tell_cancelled(event: OrderCancelled, notification: Notification) -> _Begun:
    letter = Letter(kind=LetterKind.CANCELLED, customer=event.customer, reason=event.reason)
    return _send(event.order_id, letter, notification)


def record(
    answer: SendAnswered, notification: Notification
) -> NotificationSent | PutOff | NotificationUnconfirmed | NotificationDismissed | None:
    match notification.status, answer.result:
        case NotificationStatus.SENT, _:
            return None
        # If it was unknown, it no longer is; if it was dismissed, it went out all the same.
        case _, Result.ACCEPTED:
            return NotificationSent(order_id=answer.order_id)
        case (
            NotificationStatus.SENDING | NotificationStatus.WAITING | NotificationStatus.RESENDING,
            Result.FORGOTTEN,
        ):
            return NotificationDismissed(order_id=answer.order_id, reason=DismissalReason.FORGOTTEN)
        case NotificationStatus.SENDING, Result.UNKNOWN:
            return NotificationUnconfirmed(order_id=answer.order_id, detail=answer.detail)
        case NotificationStatus.RESENDING, _ if answer.again and (
            answer.number == notification.tries
        ):  # It is unknown as before.
            return NotificationUnconfirmed(order_id=answer.order_id, detail=answer.detail)
        case (
            NotificationStatus.SENDING | NotificationStatus.WAITING,
            Result.REFUSED | Result.REJECTED,
        ):
            # Even if it waits already: the database may have committed that and gone before saying
            # so. Without it the event would be done, and no process left to send the mail.
            # And one to an earlier attempt changes nothing, but neither is its event done.
            return PutOff(
                order_id=answer.order_id,
                result=answer.result,
                detail=answer.detail,
                number=answer.number,
            )
        case _:
            return None


def resend(command: ResendNotification, notification: Notification) -> Resend | None:
    if notification.status is not NotificationStatus.UNKNOWN or notification.letter is None:
        return None
    # There is one event more each time that it is unknown.
    return Resend(
        order_id=command.order_id, letter=notification.letter, number=notification.sequence
    )


def dismiss(
    command: DismissNotification, notification: Notification
) -> NotificationDismissed | None:
    if notification.status is not NotificationStatus.UNKNOWN:
        return None
    return NotificationDismissed(order_id=command.order_id)


def give_up_resending(
    command: GiveUpResending, notification: Notification
) -> NotificationUnconfirmed | None:
    if notification.status is not NotificationStatus.RESENDING:
        return None
    return NotificationUnconfirmed(order_id=command.order_id, detail=CUT_SHORT)


def _send(order_id: UUID, letter: Letter, notification: Notification) -> _Begun:
    match notification.status:
        case NotificationStatus.NONE:
            begun = NotificationBegun(order_id=order_id, letter=letter)
            return begun, Send(order_id=order_id, letter=letter)
        case NotificationStatus.WAITING:
            return Send(order_id=order_id, letter=letter, number=notification.tries + 1)
        case NotificationStatus.SENDING:
            return NotificationUnconfirmed(order_id=order_id, detail=CUT_SHORT)
        case _:
            return None


PARTICIPANT = Participant(
    "notification",
    tell_confirmed,
    tell_cancelled,
    record,
    resend,
    dismiss,
    give_up_resending,
    # No customer waits at a till: a mail server may be away for a long weekend, some four days.
    retry=Retry(max_calls=100, delay=5.0, backoff=2.0, max_delay=3600.0),
)
