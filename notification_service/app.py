"""The notification service: mails customers, and shows to an operator what it cannot decide."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import datetime
from email.message import EmailMessage
from pathlib import Path
from typing import Annotated, Final, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from common.events import Letter
from notification_service.domain import (
    PARTICIPANT,
    RESENDING_MAX,
    DismissNotification,
    Notification,
    NotificationStatus,
    PutOff,
    Resend,
    ResendNotification,
    Result,
    Send,
    SendAnswered,
)
from notification_service.mail import (
    CONNECTIONS_MAX,
    FolderMailer,
    Mailer,
    MailError,
    MailForgotten,
    MailRefused,
    MailRejected,
    MailUnconfirmed,
    SmtpMailer,
    Writer,
    address_book,
)
from notification_service.store import (
    NOTIFICATIONS,
    TABLES,
    count_unknown,
    oldest,
    questions,
)
from saga.auth.scopes import needs
from saga.message import Answer
from saga.personal.persons import Persons, SealingAway
from saga.personal.seal import Forgotten, sealed
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.work import Done, Duplicate
from saga.runtime.metrics import Figure
from saga.runtime.problem import Problem, problems
from saga.runtime.service import Running, Service, main
from saga.runtime.settings import Settings, SettingsError
from saga.runtime.web import CHANGING, answer_from
from saga.text import harmless

LISTED_MAX = 500
DETAIL_MAX = 255
RESEND_SECONDS = RESENDING_MAX.total_seconds() * 2 / 3
"""How long sending a mail again may take: it has ended before it is taken for cut short."""


class MailSettings(Settings):
    """The notification service's settings."""

    smtp_url: str | None = None
    """The mail server; without one, mails are files in `mail_dir`."""
    smtp_timeout_seconds: Annotated[float, Field(gt=0, le=600)] = 30.0
    """How long the mail server may take to answer, each time."""
    mail_dir: Path | None = None
    """The folder for mails that go to no server; by default `mail` in `data_dir`."""
    mail_from: str = "orders@shop.example"
    mail_to: str = "{customer}@customers.example"
    """The address of a customer who goes by a name."""


class NotificationView(BaseModel):
    """The mail about one order's end. Times are UTC."""

    model_config = ConfigDict(from_attributes=True)

    order_id: UUID = Field(validation_alias="key")
    status: NotificationStatus
    letter: Letter | None
    begun_at: datetime | None
    detail: str

    @classmethod
    def of(cls, notification: Notification) -> Self:
        return cls.model_validate(notification)


def routes(running: Running) -> APIRouter:
    """`/notifications`."""
    router = APIRouter(tags=["notifications"])

    async def find(order_id: UUID) -> Notification:
        key = str(order_id)
        found = await answer_from(
            running.database, lambda connection: NOTIFICATIONS.find(connection, key)
        )
        if found is None:
            raise Problem(404, f"there is no notification about order {order_id}")
        return found

    async def find_unknown(order_id: UUID) -> None:
        status = (await find(order_id)).status
        if status is not NotificationStatus.UNKNOWN:
            raise Problem(
                409,
                f"the notification about order {order_id} is {status}; only one that is unknown "
                f"is for an operator to decide",
                notification_status=status,
            )

    async def decided(order_id: UUID, outcome: Done | Duplicate) -> Notification:
        """What a decision led to; 409 if another one was faster."""
        if isinstance(outcome, Done) and outcome.events and isinstance(outcome.own, Notification):
            return outcome.own
        await find_unknown(order_id)
        raise Problem(409, f"another request about order {order_id} was faster; look again")

    @router.get(
        "/notifications",
        responses=problems(422),
        dependencies=[needs("mails:read", personal=True)],
    )
    async def list_(
        status: NotificationStatus = NotificationStatus.UNKNOWN,
        limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 100,
    ) -> list[NotificationView]:
        """The oldest mails that stand there; `unknown` is what an operator has to decide on."""
        found = await answer_from(
            running.database, lambda connection: oldest(connection, status, limit)
        )
        return [NotificationView.of(notification) for notification in found]

    @router.get(
        "/notifications/{order_id}",
        responses=problems(404, 422),
        dependencies=[needs("mails:read", personal=True)],
    )
    async def get(order_id: UUID) -> NotificationView:
        """The mail about one order's end."""
        return NotificationView.of(await find(order_id))

    @router.post(
        "/notifications/{order_id}/resend",
        responses=problems(404, 409, 422, 502, *CHANGING),
        dependencies=[needs("mails:write", personal=True)],
    )
    async def resend(order_id: UUID) -> NotificationView:
        """Send an unknown one, even if that makes two; 502 if it is unknown as before."""
        await find_unknown(order_id)
        outcome = await running.give(ResendNotification(order_id=order_id))
        resent = await decided(order_id, outcome)
        if resent.status is NotificationStatus.UNKNOWN:
            raise Problem(502, f"{resent.detail}; the notification is unknown as before")
        return NotificationView.of(resent)

    @router.post(
        "/notifications/{order_id}/dismiss",
        responses=problems(404, 409, 422, *CHANGING),
        dependencies=[needs("mails:write", personal=True)],
    )
    async def dismiss(order_id: UUID) -> NotificationView:
        """Leave an unknown one as it is."""
        await find_unknown(order_id)
        outcome = await running.give(DismissNotification(order_id=order_id))
        return NotificationView.of(await decided(order_id, outcome))

    return router


FIGURES: Final = (
    Figure(
        "notification_mails_unknown",
        "Mails that may or may not have been sent.",
        count_unknown,
    ),
)


def build_with(
    writer: Writer,
    mailer: Mailer,
    folders: Mapping[str, Path] | None = None,
    *,
    resend_seconds: float | None = RESEND_SECONDS,
    persons: Persons | None = None,
) -> Service:
    """The notification service, with this way to send, which writes into these `folders`; one that
    is known not to wait needs no `resend_seconds`."""

    in_question: dict[str, str] = {}

    async def recall(database: Database) -> None:
        in_question.update(await database.read(questions))

    async def write(intent: Send | Resend) -> EmailMessage:
        """The mail, to a customer whose name is read here and nowhere else. Waits for nothing: what
        cannot be read now is tried again with the event."""
        letter = intent.letter
        try:
            if persons is not None and sealed(letter.customer):
                name = await persons.open_now(letter.customer)
                letter = letter.model_copy(update={"customer": name})
            return writer.write(intent.order_id, letter)
        except Forgotten as error:
            raise MailForgotten(str(error)) from error
        except SealingAway as error:
            raise MailRefused(f"whom it is for cannot be read: {error}") from error
        except ValueError as error:
            raise MailRejected(f"no mail can be written: {error}") from error

    async def send(intent: Send | Resend) -> Answer:
        if isinstance(intent, Send) and (why := in_question.get(intent.subject)):
            return SendAnswered(
                order_id=intent.order_id, result=Result.UNKNOWN, detail=why, number=intent.number
            )
        result, detail = Result.ACCEPTED, ""
        try:
            if isinstance(intent, Resend) and resend_seconds is not None:
                async with asyncio.timeout(resend_seconds):
                    await mailer.send(await write(intent))
            else:
                await mailer.send(await write(intent))
        except TimeoutError:
            result, detail = Result.UNKNOWN, f"no answer within {resend_seconds:g} s"
        except MailRefused as error:
            result, detail = Result.REFUSED, str(error)
        except MailRejected as error:
            result, detail = Result.REJECTED, str(error)
        except MailForgotten as error:
            result, detail = Result.FORGOTTEN, str(error)
        except MailUnconfirmed as error:
            result, detail = Result.UNKNOWN, str(error)
        return SendAnswered(
            order_id=intent.order_id,
            result=result,
            detail=harmless(detail)[:DETAIL_MAX],
            again=isinstance(intent, Resend),
            number=intent.number,
        )

    async def put_off(intent: PutOff) -> Answer:
        if intent.result is Result.REJECTED:
            raise MailRejected(intent.detail)
        raise MailRefused(intent.detail)

    return Service(
        PARTICIPANT,
        TABLES,
        ask={Send: send, Resend: send, PutOff: put_off},
        routes=routes,
        figures=FIGURES,
        recall=recall,
        # What is taken and not yet sent when the service is killed is for an operator: no more of
        # it than can be sent at once.
        prefetch=CONNECTIONS_MAX,
        folders=folders or {},
        persons=persons,
    )


def build(settings: MailSettings) -> Service:
    """The notification service. Raises `SettingsError`."""
    variable = "MAIL_TO"
    persons = Persons(settings)
    try:
        addresses = address_book(settings.mail_to)
        variable = "MAIL_FROM"
        writer = Writer(settings.mail_from, addresses)
        mailer: Mailer
        folders: dict[str, Path] = {}
        if settings.smtp_url is not None:
            variable = "SMTP_URL"
            mailer = SmtpMailer(
                settings.smtp_url, settings.smtp_timeout_seconds, quoting=not persons.sealing
            )
        else:
            variable = "MAIL_DIR" if settings.mail_dir else "DATA_DIR"
            folders["mails"] = (settings.mail_dir or settings.data_dir / "mail").absolute()
            mailer = FolderMailer(folders["mails"])
    except MailError as error:
        raise SettingsError(f"{variable}: {error}") from error
    return build_with(writer, mailer, folders, persons=persons)


def serve() -> None:
    """Run the service with its settings from the environment."""
    main(build, MailSettings)


if __name__ == "__main__":
    serve()
