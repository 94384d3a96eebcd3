"""Mails over SMTP: accepted, refused, lost on the way, cut short, and decided on by an operator."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.utils import parseaddr
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa
from aiosmtpd.smtp import SMTP, Envelope, Session

from common.events import CancellationReason, Letter, LetterKind, OrderCancelled, OrderConfirmed
from notification_service.app import MailSettings, build, build_with, routes
from notification_service.domain import (
    RESENDING_MAX,
    Notification,
    NotificationStatus,
    Send,
    SendAnswered,
)
from notification_service.mail import (
    FolderMailer,
    Mailer,
    MailError,
    MailRefused,
    MailRejected,
    MailUnconfirmed,
    SmtpMailer,
    Writer,
    address_book,
)
from notification_service.store import TABLES, notifications, put_in_question, questions
from saga.envelope import Envelope as Message
from saga.envelope import wrap
from saga.message import Event, Priority
from saga.runtime.kernel.tables import utc_now
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.kernel.work import Done, Duplicate, Failed, Outcome
from saga.runtime.settings import HttpSettings, Sealing, SettingsError
from saga.runtime.tasks import cancel_all
from saga.text import harmless
from tests.integration.kernels import Replica, client_of, replica
from tests.polling import until

ORDER = UUID(int=1)
LETTER = Letter(kind=LetterKind.CONFIRMED, customer="ada", currency="EUR", total_cents=123456)
WRITER = Writer("orders@shop.example", address_book("{customer}@customers.example"))
TIMEOUT_SECONDS = 60.0


@dataclass
class Server:
    """A mail server that does as it is told; `accepted` is what it has answered for, or would have.

    At `data`, None hangs up before the answer, and `silent` waits until it may answer.
    """

    rcpt: str = "250 OK"
    data: str | None = "250 OK"
    silent: bool = False
    answers: asyncio.Event = field(default_factory=asyncio.Event)
    """What a silent one waits for."""
    accepted: list[bytes] = field(default_factory=list)
    port: int = 0

    async def handle_RCPT(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if self.rcpt.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.rcpt

    async def handle_DATA(  # noqa: N802 - aiosmtpd's
        self, server: SMTP, session: Session, envelope: Envelope
    ) -> str:
        if self.data is None or self.silent or self.data.startswith("250"):
            assert isinstance(envelope.content, bytes)
            self.accepted.append(envelope.content)
        if self.silent:
            await self.answers.wait()
        if self.data is None:
            assert isinstance(server.transport, asyncio.Transport)
            server.transport.abort()
        return self.data or "250 too late"

    @property
    def mails(self) -> list[Any]:
        return [message_from_bytes(mail) for mail in self.accepted]


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    handler = Server()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(
        lambda: SMTP(handler, enable_SMTPUTF8=False, loop=loop), "127.0.0.1", 0
    )
    handler.port = listener.sockets[0].getsockname()[1]
    yield handler
    handler.answers.set()
    listener.close()


def mailer(server: Server, timeout_seconds: float = TIMEOUT_SECONDS) -> SmtpMailer:
    return SmtpMailer(f"smtp://127.0.0.1:{server.port}", timeout_seconds)


def mail() -> EmailMessage:
    return WRITER.write(ORDER, LETTER)


# --- handing over ---------------------------------------------------------------------------------


async def test_an_accepted_mail_says_who_paid_how_much_for_what(server: Server) -> None:
    await mailer(server).send(mail())

    (got,) = server.mails
    assert got["From"] == "orders@shop.example"
    assert got["To"] == "ada@customers.example"
    assert got["Subject"] == "Your order is confirmed"
    assert got["Message-ID"] == f"<order.confirmed.{ORDER}@shop.example>"
    assert got["Auto-Submitted"] == "auto-generated"
    text = got.get_payload()
    assert f"your order {ORDER} is confirmed and paid: 1234.56 EUR" in " ".join(text.split())


async def test_a_mail_has_only_ascii_on_the_way_whatever_it_says(server: Server) -> None:
    letter = LETTER.model_copy(update={"customer": "Zoë"})
    await mailer(server).send(WRITER.write(ORDER, letter))

    assert server.accepted[0].isascii()
    (got,) = server.mails
    assert "Dear Zoë," in got.get_payload(decode=True).decode()


async def test_a_mail_that_is_refused_for_now_may_be_sent_later(server: Server) -> None:
    server.rcpt = "451 greylisted"
    with pytest.raises(MailRefused, match="refused the recipient: 451 greylisted"):
        await mailer(server).send(mail())

    server.rcpt, server.data = "250 OK", "452 no space"
    with pytest.raises(MailRefused, match="refused the mail: 452 no space"):
        await mailer(server).send(mail())


async def test_a_mail_that_is_refused_for_good_is_rejected(server: Server) -> None:
    server.rcpt = "550 nobody here"
    with pytest.raises(MailRejected, match="refused the recipient: 550 nobody here"):
        await mailer(server).send(mail())

    server.rcpt, server.data = "250 OK", "554 spam"
    with pytest.raises(MailRejected, match="refused the mail: 554 spam"):
        await mailer(server).send(mail())


@pytest.mark.parametrize("quoting", [True, False])
async def test_an_error_does_not_repeat_the_address_that_a_server_quotes(
    server: Server, quoting: bool
) -> None:
    quotes = SmtpMailer(f"smtp://127.0.0.1:{server.port}", TIMEOUT_SECONDS, quoting=quoting)
    answer = "550 5.1.1 <Ada@customers.example>: Recipient address rejected"
    repeated = " <(the recipient)>: Recipient address rejected" if quoting else ""

    server.rcpt = answer
    with pytest.raises(MailRejected) as refused:
        await quotes.send(mail())
    server.rcpt, server.data = "250 OK", answer
    with pytest.raises(MailRejected) as rejected:
        await quotes.send(mail())

    for error in refused, rejected:
        assert str(error.value).endswith(f": 550 5.1.1{repeated}")


async def test_with_sealing_no_word_of_a_mail_server_is_repeated(
    server: Server, tmp_path: Path
) -> None:
    server.rcpt = "451 <ada@shop.example>: greylisted"
    url = f"smtp://127.0.0.1:{server.port}"
    service = build(MailSettings(smtp_url=url, data_dir=tmp_path, personal=Sealing.SEALED))

    intent = Send(order_id=ORDER, letter=LETTER.model_copy(update={"customer": "ada@shop.example"}))
    answer = await service.ask[Send](intent)

    assert isinstance(answer, SendAnswered)
    assert answer.detail.endswith("refused the recipient: 451")


async def test_a_server_that_is_away_has_refused_the_mail() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # No process listens there, and none can.
        away = SmtpMailer(f"smtp://127.0.0.1:{taken.getsockname()[1]}", TIMEOUT_SECONDS)
        with pytest.raises(MailRefused, match="took no mail"):
            await away.send(mail())


async def test_a_connection_that_is_lost_after_the_text_leaves_it_unconfirmed(
    server: Server,
) -> None:
    server.data = None

    with pytest.raises(MailUnconfirmed, match="was lost before it answered"):
        await mailer(server).send(mail())


async def test_a_server_that_does_not_answer_in_time_leaves_it_unconfirmed(
    server: Server,
) -> None:
    server.silent = True

    with pytest.raises(MailUnconfirmed, match="was lost before it answered"):
        await mailer(server, timeout_seconds=2.0).send(mail())


async def test_a_mail_without_a_server_is_a_file_that_is_there_whole(tmp_path: Path) -> None:
    await FolderMailer(tmp_path / "mail").send(mail())

    (file,) = (tmp_path / "mail").iterdir()
    assert file.name == f"order.confirmed.{ORDER}.eml"
    assert message_from_bytes(file.read_bytes())["To"] == "ada@customers.example"


# --- writing --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", CancellationReason)
def test_a_cancellation_tells_its_reason_in_words(reason: CancellationReason) -> None:
    letter = Letter(kind=LetterKind.CANCELLED, customer="ada", reason=reason)

    text = WRITER.write(ORDER, letter).get_content()
    assert f"your order {ORDER} was cancelled: " in text
    assert reason not in text
    assert "$" not in text


@pytest.mark.parametrize("customer", ["a\u2028d\u202ea", "ada\x85Bcc: x@y.example", "[/b]<b>$ada"])
def test_a_name_that_means_something_elsewhere_is_text_in_a_mail(customer: str) -> None:
    """Older events have such names."""
    mail = WRITER.write(ORDER, LETTER.model_copy(update={"customer": customer}))

    assert harmless(customer) in mail.get_content()
    assert mail["Bcc"] is None
    assert parseaddr(mail["To"])[1].endswith("@customers.example")
    assert all(char.isprintable() or char in "\r\n" for char in mail.as_string())


@pytest.mark.parametrize(
    ("customer", "address"),
    [
        ("ada", "ada@customers.example"),
        ("ada@home.example", "ada@home.example"),
        ("Ada Lovelace", "Ada%20Lovelace@customers.example"),
        ("zoë <x@y.example>", "zo%C3%AB%20%3Cx%40y.example%3E@customers.example"),
    ],
)
def test_a_customer_has_an_address(customer: str, address: str) -> None:
    assert address_book("{customer}@customers.example")(customer) == address


def test_a_template_with_a_placeholder_nobody_fills_is_refused_at_the_start(
    tmp_path: Path,
) -> None:
    (tmp_path / "confirmed.txt").write_text("Hello\n\n$customr")
    with pytest.raises(MailError, match=r"confirmed\.txt has \$customr; known are \$customer, "):
        Writer("a@b.example", address_book("{customer}@b.example"), tmp_path)

    (tmp_path / "confirmed.txt").write_text("Hello\n\n$customer")
    with pytest.raises(MailError, match=r"cannot read the template .*cancelled\.txt"):
        Writer("a@b.example", address_book("{customer}@b.example"), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"smtp_url": "mail.example:25"}, "SMTP_URL: names no mail server; write it as smtp://"),
        ({"smtp_url": "smtp://me:secret@mail.example"}, "SMTP_URL: would send a password"),
        ({"mail_from": "nobody"}, "MAIL_FROM: 'nobody' is no address"),
        ({"mail_to": "{name}@x.example"}, "MAIL_TO: '{name}@x.example' makes no address"),
        ({"mail_dir": Path("/proc/no")}, "MAIL_DIR: cannot make the folder /proc/no"),
    ],
)
async def test_a_setting_that_cannot_be_used_is_named(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        build(MailSettings(**wrong))
    assert said in str(error.value)
    assert "secret" not in str(error.value)


# --- a service ------------------------------------------------------------------------------------


def service(database_url: str, mailer: Mailer) -> Any:
    built = build_with(WRITER, mailer)
    return replica(database_url, built.participant, TABLES, built.ask)


def confirmed(order: int = 1) -> OrderConfirmed:
    return OrderConfirmed(order_id=UUID(int=order), customer="ada", currency="EUR", total_cents=500)


def enveloped(event: Event) -> Message[Any]:
    """The same event has the same id each time."""
    return wrap(
        event,
        id=f"{event.type} {event.subject}",
        source="/services/order",
        time=utc_now(),
        priority=Priority.NORMAL,
        sequence=2,
    )


async def deliver(kernel: Replica, event: Event) -> Outcome:
    """As the consumer does."""
    return await kernel.kernel.handle(enveloped(event))


async def status(kernel: Replica, order: int = 1) -> NotificationStatus:
    found = await kernel.find(Notification, UUID(int=order))
    assert found is not None
    return found.status


async def forget_what_was_done(kernel: Replica) -> None:
    inbox = kernel.tables.inbox
    await kernel.database.transaction(lambda connection: connection.execute(inbox.delete()))


async def test_with_all_inboxes_emptied_no_mail_is_sent_twice(
    database_url: str, server: Server
) -> None:
    happened = [
        confirmed(1),
        OrderCancelled(
            order_id=UUID(int=2), customer="bob", reason=CancellationReason.OUT_OF_STOCK
        ),
        confirmed(3),
    ]
    async with service(database_url, mailer(server)) as notification:
        await asyncio.gather(*(deliver(notification, event) for event in happened))
        for _ in range(2):
            await forget_what_was_done(notification)
            await asyncio.gather(*(deliver(notification, event) for event in happened))

    assert len(server.accepted) == 3
    assert len({got["Message-ID"] for got in server.mails}) == 3


async def test_a_mail_in_question_is_sent_by_a_person_only(
    database_url: str, server: Server
) -> None:
    built = build_with(WRITER, mailer(server))
    assert built.recall is not None
    async with replica(database_url, built.participant, TABLES, built.ask) as notification:
        order = str(UUID(int=1))
        await notification.database.transaction(
            lambda connection: put_in_question(connection, [order], "a backup was restored")
        )
        await built.recall(notification.database)
        for number in (1, 2):
            assert isinstance(await deliver(notification, confirmed(number)), Done)
        assert await status(notification, 1) is NotificationStatus.UNKNOWN
        assert await status(notification, 2) is NotificationStatus.SENT
        assert len(server.accepted) == 1

        async with client_of(notification, routes) as person:
            await person.post(f"/notifications/{order}/resend")
        assert await status(notification, 1) is NotificationStatus.SENT
        assert len(server.accepted) == 2


async def test_a_mail_whose_outcome_is_known_is_not_put_in_question(
    database_url: str, server: Server
) -> None:
    async with service(database_url, mailer(server)) as notification:
        await deliver(notification, confirmed(1))
        orders = [str(UUID(int=number)) for number in (1, 2)]
        counts = [
            await notification.database.transaction(
                lambda connection: put_in_question(connection, orders, "a backup was restored")
            )
            for _ in range(2)
        ]
        assert counts == [1, 0]
        assert (await notification.database.read(questions)).keys() == {orders[1]}


async def test_a_refused_mail_is_sent_when_its_event_is_tried_again(
    database_url: str, server: Server
) -> None:
    server.rcpt = "451 greylisted"
    async with service(database_url, mailer(server)) as notification:
        for _ in range(2):
            outcome = await deliver(notification, confirmed())
            assert isinstance(outcome, Failed)
            assert isinstance(outcome.error, MailRefused), "what the consumer tries again"
            assert await status(notification) is NotificationStatus.WAITING
            assert await notification.inbox() == set()
        server.rcpt = "250 OK"
        outcome = await deliver(notification, confirmed())

        assert isinstance(outcome, Done)
        assert await status(notification) is NotificationStatus.SENT
    assert len(server.accepted) == 1


async def test_a_rejected_mail_is_a_dead_letter_and_sent_when_that_is_replayed(
    database_url: str, server: Server
) -> None:
    server.rcpt = "550 nobody here"
    async with service(database_url, mailer(server)) as notification:
        outcome = await deliver(notification, confirmed())
        assert isinstance(outcome, Failed)
        assert isinstance(outcome.error, MailRejected), "what the consumer does not try again"
        server.rcpt = "250 OK"
        await deliver(notification, confirmed())

        assert await status(notification) is NotificationStatus.SENT


async def test_a_mail_lost_after_its_text_is_shown_and_not_sent_again_by_itself(
    database_url: str, server: Server
) -> None:
    server.data = None
    async with service(database_url, mailer(server)) as notification:
        await deliver(notification, confirmed())
        server.data = "250 OK"
        await forget_what_was_done(notification)
        await deliver(notification, confirmed())

        assert await status(notification) is NotificationStatus.UNKNOWN
        async with client_of(notification, routes) as person:
            (shown,) = (await person.get("/notifications")).json()
    assert shown["order_id"] == str(ORDER)
    assert "was lost before it answered" in shown["detail"]
    assert len(server.accepted) == 1


async def test_a_crash_while_sending_is_shown_and_does_not_send_again(
    database_url: str, server: Server
) -> None:
    server.silent = True
    async with service(database_url, mailer(server)) as dying:
        sending = asyncio.create_task(deliver(dying, confirmed()))
        await until(lambda: len(server.accepted) == 1)
        assert await status(dying) is NotificationStatus.SENDING
        assert await dying.inbox() == set()
    await cancel_all(sending)
    server.silent = False

    async with service(database_url, mailer(server)) as notification:
        await deliver(notification, confirmed())
        assert await status(notification) is NotificationStatus.UNKNOWN
        async with client_of(notification, routes) as person:
            (shown,) = (await person.get("/notifications?status=unknown")).json()
    assert shown["letter"]["customer"] == "ada"
    assert len(server.accepted) == 1


async def test_a_mail_is_sent_though_the_brokers_connection_was_lost_while_it_was_handed_over(
    database_url: str, server: Server
) -> None:
    server.silent = True
    async with service(database_url, mailer(server)) as notification:
        kernel = notification.kernel
        works = [kernel.take(enveloped(confirmed()), lambda _: None)]
        await until(lambda: len(server.accepted) == 1)
        kernel.abandon_all(works)
        again = asyncio.create_task(deliver(notification, confirmed()))
        await asyncio.sleep(0)
        server.answers.set()

        assert isinstance(await again, Duplicate)
        assert await status(notification) is NotificationStatus.SENT
    assert len(server.accepted) == 1


async def test_an_answer_counts_though_another_replica_gave_the_mail_up_meanwhile(
    database_url: str, server: Server
) -> None:
    if database_url.startswith("sqlite"):
        pytest.skip("a database file has one owner")
    server.silent = True
    async with service(database_url, mailer(server)) as notification:
        sending = asyncio.create_task(deliver(notification, confirmed()))
        await until(lambda: len(server.accepted) == 1)
        async with service(database_url, mailer(server)) as other:
            await deliver(other, confirmed())
            assert await status(other) is NotificationStatus.UNKNOWN
        server.answers.set()
        await sending

        assert await status(notification) is NotificationStatus.SENT


# --- an operator
# -------------------------------------------------------------------------------------


@pytest.fixture
async def undecided(
    database_url: str, server: Server
) -> AsyncIterator[tuple[Replica, httpx.AsyncClient]]:
    """A service with one mail that may or may not have been sent."""
    server.data = None
    async with service(database_url, mailer(server)) as notification:
        await deliver(notification, confirmed())
        server.data = "250 OK"
        async with client_of(notification, routes) as person:
            yield notification, person


async def test_a_person_has_an_unknown_mail_sent_again_under_the_same_message_id(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    _, person = undecided

    answer = await person.post(f"/notifications/{ORDER}/resend")

    assert (answer.status_code, answer.json()["status"]) == (200, "sent")
    assert [got["Message-ID"] for got in server.mails] == [mail()["Message-ID"]] * 2
    assert (await person.get("/notifications")).json() == []
    again = await person.post(f"/notifications/{ORDER}/resend")
    assert again.status_code == 409
    assert "is sent; only one that is unknown" in again.json()["detail"]


async def test_a_mail_server_that_takes_longer_than_an_answer_gets_one_mail_and_it_is_noted(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    notification, _ = undecided
    server.silent = True
    quick = HttpSettings(http_answer_seconds=0.2)
    async with client_of(notification, routes, quick) as person:
        early = [await person.post(f"/notifications/{ORDER}/resend") for _ in range(3)]
        server.answers.set()

        async def noted() -> bool:
            shown = await person.get(f"/notifications/{ORDER}")
            return bool(shown.json()["status"] == "sent")

        await until(noted)

    assert [answer.status_code for answer in early] == [503, 409, 409], "and then it is resending"
    assert len(server.mails) == 2  # the one that is unknown, and this one
    assert len(server.accepted) == 2


async def test_a_person_dismisses_an_unknown_mail(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    _, person = undecided

    answer = await person.post(f"/notifications/{ORDER}/dismiss")

    assert (answer.status_code, answer.json()["status"]) == (200, "dismissed")
    assert (await person.post(f"/notifications/{ORDER}/resend")).status_code == 409
    assert len(server.accepted) == 1


@pytest.mark.parametrize(("rcpt", "data"), [("451 later", "250 OK"), ("250 OK", None)])
async def test_a_mail_that_a_person_had_sent_again_in_vain_is_unknown_as_before(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server, rcpt: str, data: str | None
) -> None:
    notification, person = undecided
    server.rcpt, server.data = rcpt, data

    answer = await person.post(f"/notifications/{ORDER}/resend")

    assert answer.status_code == 502
    assert "unknown as before" in answer.json()["detail"]
    assert await status(notification) is NotificationStatus.UNKNOWN


async def test_a_mail_that_several_people_have_sent_again_at_once_is_sent_once(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    _, person = undecided

    answers = await asyncio.gather(
        *(person.post(f"/notifications/{ORDER}/resend") for _ in range(3))
    )

    assert sorted(answer.status_code for answer in answers) == [200, 409, 409]
    assert len(server.accepted) == 2, "the lost one, and one more"


async def test_a_mail_that_is_being_sent_again_cannot_be_dismissed(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    notification, person = undecided
    server.silent = True
    resending = asyncio.create_task(person.post(f"/notifications/{ORDER}/resend"))
    await until(lambda: len(server.accepted) == 2)

    refused = await person.post(f"/notifications/{ORDER}/dismiss")
    server.answers.set()

    assert (refused.status_code, refused.json()["notification_status"]) == (409, "resending")
    assert (await resending).status_code == 200
    assert await status(notification) is NotificationStatus.SENT


async def test_a_mail_whose_sending_again_was_cut_short_is_for_a_person_again(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    notification, person = undecided
    server.silent = True
    cut_short = asyncio.create_task(person.post(f"/notifications/{ORDER}/resend"))
    await until(lambda: len(server.accepted) == 2)
    keeper = Timekeeper(notification.kernel, notification.database, TABLES, poll_seconds=0.01)
    keeping = asyncio.create_task(keeper.run())
    await asyncio.sleep(0.1)
    assert await status(notification) is NotificationStatus.RESENDING, "it may still go on"

    async def is_unknown() -> bool:
        return await status(notification) is NotificationStatus.UNKNOWN

    long_ago = sa.update(notifications).values(
        resent_at=utc_now() - RESENDING_MAX, due_at=utc_now()
    )
    await notification.database.transaction(lambda connection: connection.execute(long_ago))
    await until(is_unknown)
    await cancel_all(keeping, cut_short)

    assert len((await person.get("/notifications")).json()) == 1


async def test_a_mail_that_cannot_be_read_hides_no_other_and_is_shown(
    undecided: tuple[Replica, httpx.AsyncClient], server: Server
) -> None:
    notification, person = undecided
    server.data = None
    await deliver(notification, confirmed(2))
    ruined = sa.text("UPDATE notifications SET letter = '{' WHERE order_id = :order")
    await notification.database.transaction(lambda c: c.execute(ruined, {"order": str(ORDER)}))

    shown = {found["order_id"]: found for found in (await person.get("/notifications")).json()}

    assert len(shown) == 2
    assert "cannot be read" in shown[str(ORDER)]["detail"]


async def test_an_order_without_a_notification_is_not_found(
    undecided: tuple[Replica, httpx.AsyncClient],
) -> None:
    _, person = undecided

    for answer in [
        await person.get(f"/notifications/{UUID(int=9)}"),
        await person.post(f"/notifications/{UUID(int=9)}/resend"),
        await person.post(f"/notifications/{UUID(int=9)}/dismiss"),
    ]:
        assert answer.status_code == 404
        assert "there is no notification about order" in answer.json()["detail"]
