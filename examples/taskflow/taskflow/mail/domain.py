"""Mails: a welcome to each user, a notice of each task, a correction where the task is withdrawn.

What is sent cannot be unsent, so the compensation of a mail is another one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga import (
    Answer,
    Decided,
    Intent,
    Participant,
    Phase,
    Retry,
    State,
    ask,
    record_undone,
    take_back,
)

from taskflow.language import (
    TaskAnnounced,
    TaskCorrected,
    TaskCreated,
    TaskWithdrawn,
    UserRegistered,
    UserWelcomed,
)


class _Sent(Answer):
    about: str

    @property
    def subject(self) -> str:
        return self.about


class WelcomeSent(_Sent):
    """The welcome is sent."""


class NoticeSent(_Sent):
    """Whether the notice is sent: if not, it never will be."""

    sent: bool = True


class CorrectionSent(_Sent):
    """The correction is sent."""


class _MailIntent(Intent):
    about: str

    @property
    def subject(self) -> str:
        return self.about


class SendWelcome(_MailIntent):
    """Greet a new user."""

    answer: ClassVar[type[Answer]] = WelcomeSent


class SendNotice(_MailIntent):
    """Tell a user of a new task."""

    answer: ClassVar[type[Answer]] = NoticeSent


class SettleNotice(_MailIntent):
    """Ask whether the notice was sent. If not, see to it that it never is."""

    answer: ClassVar[type[Answer]] = NoticeSent


class SendCorrection(_MailIntent):
    """Tell the user that the task was withdrawn."""

    answer: ClassVar[type[Answer]] = CorrectionSent


@dataclass(frozen=True, slots=True)
class Welcome(State):
    """The mail to one new user."""

    phase: Phase = Phase.NEW

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SendWelcome():
                return replace(self, phase=Phase.ASKING)
            case UserWelcomed():
                return replace(self, phase=Phase.TAKEN)
            case _:
                return self


@dataclass(frozen=True, slots=True)
class Notice(State):
    """The mails about one task."""

    phase: Phase = Phase.NEW

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SendNotice():
                return replace(self, phase=Phase.ASKING)
            case SettleNotice():
                return replace(self, phase=Phase.SETTLING)
            case TaskAnnounced():
                return replace(self, phase=Phase.TAKEN)
            case SendCorrection():
                return replace(self, phase=Phase.UNDOING)
            case TaskCorrected():
                return replace(self, phase=Phase.VOID)
            case _:
                return self


def welcome(event: UserRegistered, welcome: Welcome) -> SendWelcome | None:
    return ask(welcome.phase, lambda: SendWelcome(about=event.user))


def record_welcome(answer: WelcomeSent, welcome: Welcome) -> UserWelcomed | None:
    return UserWelcomed(user=answer.about) if welcome.phase is Phase.ASKING else None


def announce(event: TaskCreated, notice: Notice) -> SendNotice | None:
    return ask(notice.phase, lambda: SendNotice(about=event.task))


def record_notice(
    answer: NoticeSent, notice: Notice
) -> TaskAnnounced | TaskCorrected | tuple[TaskAnnounced, SendCorrection] | SendCorrection | None:
    announced = TaskAnnounced(task=answer.about)
    match notice.phase:
        case Phase.ASKING:
            return announced
        case Phase.SETTLING if answer.sent:
            return announced, SendCorrection(about=answer.about)
        case Phase.SETTLING:
            return TaskCorrected(task=answer.about)
        case Phase.UNDOING:  # The question of the withdrawal, answered twice.
            return SendCorrection(about=answer.about)
        case _:
            return None


def correct(
    event: TaskWithdrawn, notice: Notice
) -> TaskCorrected | SettleNotice | SendCorrection | None:
    return take_back(
        notice.phase,
        void=lambda: TaskCorrected(task=event.task),
        settle=lambda: SettleNotice(about=event.task),
        undo=lambda: SendCorrection(about=event.task),
    )


def record_correction(answer: CorrectionSent, notice: Notice) -> TaskCorrected | None:
    return record_undone(notice.phase, lambda: TaskCorrected(task=answer.about))


PARTICIPANT = Participant(
    "mail",
    welcome,
    record_welcome,
    announce,
    record_notice,
    correct,
    record_correction,
    retry=Retry(max_calls=8, delay=0.5, backoff=2.0, max_delay=15.0),
)
