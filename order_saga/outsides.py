"""Whom the services of the order saga ask: the payment provider, and a mail server."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import EmailMessage
from enum import StrEnum
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from pydantic import TypeAdapter
from sqlalchemy.engine import Connection

from common.events import Currency
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.mail import (
    MailForgotten,
    MailRefused,
    MailRejected,
    MailUnconfirmed,
    Writer,
    address_book,
    mailed_in,
)
from notification_service.mail import take_out as take_out_of_mails
from notification_service.store import put_in_question
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.domain import Charge, Payment, PaymentStatus, Refund, SettleCharge
from payment_service.gateway import GatewayUnavailable, NameOf, SandboxGateway, ledger_file
from payment_service.gateway import take_out as take_out_of_ledger
from payment_service.ledger import (
    ChargeOutcome,
    Decline,
    Ledger,
    LedgerCharge,
    Receipt,
    refunded,
)
from saga.choreography import State
from saga.message import Ask, Intent
from saga.outside import Desk, ErasureRequest, Outside, OutsideError
from saga.personal.persons import Persons

_CURRENCY: Final[TypeAdapter[Any]] = TypeAdapter(Currency)


class DeskGateway:
    """A `PaymentGateway` in memory, by the rules of `payment_service.ledger`."""

    def __init__(self, desk: Desk[Ledger], name_of: NameOf | None = None) -> None:
        self._desk = desk
        self._name_of = name_of

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        name = customer if self._name_of is None else await self._name_of(customer)
        return await self._desk.hear(
            lambda: self._charge(key, customer, currency, amount_cents), lambda: name or ""
        )

    def _charge(
        self, key: str, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        line = self._desk.books.find(key) or LedgerCharge(
            key, customer, currency, amount_cents, self._desk.decision, f"receipt {key}"
        )
        answer = line.answer(customer, currency, amount_cents)
        self._desk.books = self._desk.books.with_line(line)
        self._desk.said = "declined" if line.declined else "charged"
        return answer

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        await self._desk.hear(lambda: self._refund(key, currency, amount_cents))

    def _refund(self, key: str, currency: str, amount_cents: int) -> None:
        line = refunded(self._desk.books.find(key), key, currency, amount_cents)
        self._desk.books = self._desk.books.with_line(line)
        self._desk.said = "refunded"

    async def close(self) -> None:
        """Nothing to close."""


def asks_provider(desk: Desk[Ledger]) -> Mapping[type[Intent], Ask]:
    """As the payment service puts its questions. What serves them is imported only here: a web
    framework and a broker's client, which takes longer than most commands."""
    from payment_service.app import build_with

    return build_with(DeskGateway(desk)).ask


def opens_provider(desk: Desk[Ledger], persons: Persons) -> Mapping[type[Intent], Ask]:
    """The same, where names are sealed."""
    from payment_service.app import build_with, names_by

    return build_with(DeskGateway(desk, names_by(persons)), persons=persons).ask


class LedgerMemory:
    """What the provider's ledger tells of questions that no event tells of."""

    def __init__(self, ledger: Ledger) -> None:
        self._lines = {line.key: line for line in ledger}

    @property
    def keys(self) -> Collection[str]:
        return self._lines.keys()

    def asked(self, state: State) -> Intent | None:
        with suppress(ValueError):  # See `contradiction`.
            return self._question(state)
        return None

    def _question(self, state: State) -> Intent | None:
        """What `asked` gives. Raises ValueError for a charge of which no order is the reason."""
        line = self._lines.get(state.key)
        if line is None or not isinstance(state, Payment):
            return None
        match state.status:
            case PaymentStatus.NONE:
                return Charge(
                    order_id=UUID(state.key),
                    customer=line.customer,
                    currency=_CURRENCY.validate_python(line.currency),
                    amount_cents=line.amount_cents,
                )
            case PaymentStatus.CHARGED if line.refunded_cents:
                return Refund(
                    order_id=UUID(state.key),
                    currency=_CURRENCY.validate_python(line.currency),
                    amount_cents=line.refunded_cents,
                )
            case _:
                return None

    def taken_back(self, state: State) -> Intent | None:
        line = self._lines.get(state.key)
        if line is None or not line.refunded_cents or not isinstance(state, Payment):
            return None
        if state.status is not PaymentStatus.CHARGING:
            return None
        return SettleCharge(
            order_id=UUID(state.key),
            customer=state.customer,
            currency=state.currency,
            amount_cents=state.amount_cents,
        )

    def contradiction(self, state: State) -> str | None:
        line = self._lines.get(state.key)
        try:
            self._question(state)
        except ValueError:
            return "the provider took money under this key, which the saga cannot have asked for"
        if not isinstance(state, Payment) or line is None or not line.kept_cents:
            return None
        if state.status in (PaymentStatus.VOIDED, PaymentStatus.DECLINED):
            return f"payment says {state.status}, but the provider took {line.kept_cents} cents"
        return None


def read_ledger(url: str) -> Ledger:
    """The sandbox's ledger as it is. Raises `OutsideError`."""
    try:
        path = ledger_file(url)
        if not path.is_file():  # The sandbox would make an empty one.
            raise OutsideError(
                f"the payment provider's ledger is not at {path}: put it there, or correct its "
                f"URL; no event tells what was asked and not answered yet"
            )
        gateway = SandboxGateway(url)
        try:
            return Ledger(tuple(sorted(gateway.ledger(), key=lambda line: line.key)))
        finally:
            asyncio.run(gateway.close())
    except (sa.exc.DBAPIError, ValueError) as error:
        raise OutsideError(f"cannot read the payment provider's ledger: {error}") from error


def forget_payer(whom: ErasureRequest) -> int:
    """Take a customer out of the sandbox's books. Raises `OutsideError`."""
    if whom.books_url is None:
        raise OutsideError(
            "the deployment does not say where the payment provider keeps its books; add its URL"
        )
    try:
        path = ledger_file(whom.books_url)
        if not path.is_file():  # While the key is there, these can still be told from others'.
            raise OutsideError(
                f"the payment provider's ledger is not at {path}: put it there, or correct its URL"
            )
        return take_out_of_ledger(whom.books_url, whom.references, whom.values)
    except (sqlite3.Error, ValueError) as error:
        raise OutsideError(f"cannot write in the payment provider's ledger: {error}") from error


PROVIDER = Outside(
    "provider",
    asked_by=PAYMENT.name,
    blank=Ledger(),
    decisions=(ChargeOutcome.CHARGED, ChargeOutcome.CARD_DECLINED),
    ask=asks_provider,
    opens=opens_provider,
    fails=(GatewayUnavailable,),
    read=read_ledger,
    setting="SANDBOX_URL",
    file="provider.db",
    memory=LedgerMemory,
    forget=forget_payer,
)


# --- the mail server ----------------------------------------------------------------------------


class Mailing(StrEnum):
    """What becomes of a mail that is handed over."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    REJECTED = "rejected"
    LOST = "lost before it was taken"
    TAKEN = "taken without a word"
    FORGOTTEN = "not written: its customer was forgotten"


@dataclass(frozen=True, slots=True)
class MailLog:
    """Keyed by order: how often a mail about it was taken; in the order of their ids."""

    taken: tuple[tuple[str, int], ...] = ()

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.taken)

    def of(self, order_id: str) -> int:
        return dict(self.taken).get(order_id, 0)

    def with_one(self, order_id: str) -> MailLog:
        counts = dict(self.taken)
        counts[order_id] = counts.get(order_id, 0) + 1
        return MailLog(tuple(sorted(counts.items())))


class DeskMailer:
    """A `Mailer` in memory."""

    def __init__(self, desk: Desk[MailLog]) -> None:
        self._desk = desk

    async def send(self, mail: EmailMessage) -> None:
        await self._desk.hear(lambda: self._take(mail), lambda: str(mail["To"]))

    def _take(self, mail: EmailMessage) -> None:
        match self._desk.decision:
            case Mailing.REFUSED:
                raise MailRefused("not now")
            case Mailing.REJECTED:
                raise MailRejected("never")
            case Mailing.FORGOTTEN:
                raise MailForgotten("forgotten")
            case Mailing.LOST:
                raise MailUnconfirmed("no answer")
            case _:
                pass
        order_id = str(mail["Message-ID"]).partition("@")[0].rpartition(".")[2]
        self._desk.books = self._desk.books.with_one(order_id)
        if self._desk.decision is Mailing.TAKEN:
            raise MailUnconfirmed("no answer")


def mail_folder(data_folder: Path) -> Path:
    """The folder that takes the place of a server."""
    return Path(os.environ.get("MAIL_DIR") or data_folder / "mail")


def forget_addressee(whom: ErasureRequest) -> int:
    """Take a customer's mails out of the folder that takes the place of a server. Raises
    `OutsideError` and `OSError`."""
    folders = whom.papers or (mail_folder(whom.folder),)
    for folder in folders:
        if not folder.parent.is_dir():  # Before the first mail, there is no folder of theirs.
            raise OutsideError(f"mails cannot be looked at: there is no folder {folder.parent}")
    return sum(take_out_of_mails(folder, whom.subjects, whom.values) for folder in folders)


def mailed_about(data_folder: Path) -> Collection[str]:
    """The orders about which there are mails in the folder that takes the place of a server."""
    folder = mail_folder(data_folder)
    return set(mailed_in(folder)) if folder.is_dir() else ()


def leave_to_an_operator(connection: Connection, subjects: Collection[str], why: str) -> int:
    """Leave to an operator the mails about those of the subjects that are orders, but for
    mails whose outcome is known."""
    return put_in_question(connection, filter(_is_order, subjects), why)


def _is_order(subject: str) -> bool:
    """Whether it may be an order's id; a SKU is none."""
    with suppress(ValueError):
        return str(UUID(subject)) == subject
    return False


_WRITER: Final = Writer("orders@shop.example", address_book("{customer}@shop.example"))


def asks_mail_server(desk: Desk[MailLog]) -> Mapping[type[Intent], Ask]:
    """As the notification service puts its questions."""
    from notification_service.app import build_with

    return build_with(_WRITER, DeskMailer(desk), resend_seconds=None).ask


def opens_mail_server(desk: Desk[MailLog], persons: Persons) -> Mapping[type[Intent], Ask]:
    """The same, where names are sealed."""
    from notification_service.app import build_with

    return build_with(_WRITER, DeskMailer(desk), resend_seconds=None, persons=persons).ask


MAIL_SERVER = Outside(
    "mail server",
    asked_by=NOTIFICATION.name,
    blank=MailLog(),
    decisions=tuple(Mailing),
    ask=asks_mail_server,
    opens=opens_mail_server,
    fails=(MailRefused, MailRejected),
    idempotent=False,
    traces=mailed_about,
    papers=lambda data_folder: (mail_folder(data_folder),),
    forget=forget_addressee,
    doubt=leave_to_an_operator,
    no_books=(
        "a mail server keeps none; what it may have taken without a word is an event, and "
        "for an operator to decide"
    ),
)
