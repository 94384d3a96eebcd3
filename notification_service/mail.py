"""Mails: what they say, whom they go to, and how they are handed over."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Callable, Collection, Iterator
from email import policy
from email.headerregistry import BaseHeader, HeaderRegistry
from email.message import EmailMessage
from pathlib import Path
from string import Template
from typing import Protocol
from urllib.parse import quote, unquote
from uuid import UUID

import aiosmtplib
import yarl

from common.events import CancellationReason, Letter, LetterKind
from saga.personal.needle import Needle, can_be_sought
from saga.retry import TransientError
from saga.runtime.urls import unambiguous
from saga.text import harmless

CONNECTIONS_MAX = 16
"""Connections to the mail server at once."""
TEMPLATES = Path(__file__).with_name("templates")
PLACEHOLDERS = {"customer", "order_id", "total", "reason"}
LINE_MAX = 900
"""Characters of a line of a mail; RFC 5322 allows of 998. A Message-ID must not be folded."""

_REASONS = {
    CancellationReason.OUT_OF_STOCK: "something you ordered is out of stock",
    CancellationReason.UNKNOWN_SKU: "we do not have something you ordered",
    CancellationReason.PRICE_MISMATCH: "a price has changed meanwhile",
    CancellationReason.PAYMENT_DECLINED: "the payment was declined",
    CancellationReason.CUSTOMER_REQUEST: "you asked us to",
    CancellationReason.DEADLINE_EXCEEDED: "we could not complete it in time",
}
_ADDRESS = re.compile(r"[\w.!#$%&'*+/=?^`{|}~-]+@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", re.ASCII)
_TAKEN_OUT = b"Whom this mail was for was forgotten, and it was taken out.\r\n"
_ENHANCED = re.compile(r"[245]\.\d{1,3}\.\d{1,3}(?!\S)", re.ASCII)
"""A status code of RFC 3463, which a server's answer may begin with."""
_PERMANENT = range(500, 600)


class _Headers(HeaderRegistry):
    """Makes every header of one class.

    We know what our headers say: not parsing each of them saves most of a mail's CPU. The standard
    library makes a class for each header it sets or reads, which takes half of the rest, and which
    only the garbage collector frees.
    """

    def __init__(self) -> None:
        super().__init__(use_default_map=False)
        self._class = super().__getitem__("any")

    def __getitem__(self, name: str) -> type[BaseHeader]:
        return self._class


_POLICY = policy.SMTP.clone(cte_type="7bit", max_line_length=LINE_MAX, header_factory=_Headers())


class MailError(ValueError):
    """A template or a setting that no mail can be made or sent with. Names it and the way out."""


class MailRefused(TransientError):
    """The mail was not accepted, for a reason that may pass."""


class MailRejected(Exception):
    """The mail was not accepted, and never will be as it is."""


class MailForgotten(Exception):
    """The mail's customer was forgotten. Nothing was sent."""


class MailUnconfirmed(Exception):
    """The mail was handed over, or nearly, and it is unknown whether it was accepted."""


AddressBook = Callable[[str], str]
"""Tells a customer's address."""


def address_book(pattern: str) -> AddressBook:
    """An address book with no entries: who goes by an address has that one, and who goes by a name
    has `pattern` with the name, percent-encoded, for `{customer}`. Raises `MailError`."""
    tried = pattern.replace("{customer}", "customer", 1)
    if {"{", "}"} & {*tried} or not _ADDRESS.fullmatch(tried):
        raise MailError(f"{pattern!r} makes no address; write it as {{customer}}@example.com")

    def look_up(customer: str) -> str:
        if _ADDRESS.fullmatch(customer):
            return customer
        return pattern.replace("{customer}", quote(customer, safe=""))

    return look_up


class Writer:
    """Writes mails after the templates in a folder: `<kind>.txt`, whose first line is the subject.

    Raises `MailError` for what is missing there, or has an unknown placeholder.
    """

    def __init__(self, sender: str, addresses: AddressBook, templates: Path = TEMPLATES) -> None:
        if not _ADDRESS.fullmatch(sender):
            raise MailError(f"{sender!r} is no address; write it as orders@example.com")
        self._sender = sender
        self._addresses = addresses
        self._templates = {kind: _template(templates / f"{kind}.txt") for kind in LetterKind}

    def write(self, order_id: UUID, letter: Letter) -> EmailMessage:
        """The mail. Its Message-ID follows from the event: an order ends once."""
        words = {
            "customer": harmless(letter.customer),
            "order_id": str(order_id),
            "total": _amount(letter.total_cents, letter.currency),
            "reason": _REASONS[letter.reason] if letter.reason is not None else "",
        }
        subject, _, text = self._templates[letter.kind].substitute(words).partition("\n")
        mail = EmailMessage(_POLICY)
        mail["From"] = self._sender
        mail["To"] = self._addresses(letter.customer)
        mail["Subject"] = subject
        domain = self._sender.rpartition("@")[2]
        mail["Message-ID"] = f"<order.{letter.kind}.{order_id}@{domain}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: no automatic answers, please
        mail.set_content(text.strip() + "\n")
        return mail


def _template(path: Path) -> Template:
    try:
        template = Template(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise MailError(f"cannot read the template {path}: {error}") from error
    if not template.is_valid() or (strange := {*template.get_identifiers()} - PLACEHOLDERS):
        wrong = ", ".join(f"${name}" for name in sorted(strange)) if template.is_valid() else "a $"
        known = ", ".join(f"${name}" for name in sorted(PLACEHOLDERS))
        raise MailError(f"the template {path} has {wrong}; known are {known}, and $$ for a $")
    return template


def _amount(cents: int | None, currency: str | None) -> str:
    whole, part = divmod(cents or 0, 100)
    return f"{whole}.{part:02} {currency or ''}".strip()


class Mailer(Protocol):
    """Hands mails over. Safe to call from many tasks of one event loop."""

    async def send(self, mail: EmailMessage) -> None:
        """Return once the mail is accepted. Raises `MailRefused` and `MailRejected`, both of
        which say that it was not, and `MailUnconfirmed`, which says that it is unknown."""
        ...


class FolderMailer:
    """Puts mails into a folder, a file each, named after its Message-ID; for development."""

    def __init__(self, folder: Path) -> None:
        """Raises `MailError`."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MailError(
                f"cannot make the folder {folder}: {error.strerror}; name another"
            ) from error
        self._folder = folder

    async def send(self, mail: EmailMessage) -> None:
        """See `Mailer`. A mail is there whole, or not at all."""
        try:
            await asyncio.to_thread(self._write, mail)
        except OSError as error:
            raise MailRefused(f"cannot write to {self._folder}: {error.strerror}") from error

    def _write(self, mail: EmailMessage) -> None:
        name = str(mail["Message-ID"]).strip("<>").rpartition("@")[0]
        part = self._folder / f".{name}.part"
        try:
            part.write_bytes(mail.as_bytes())
            os.replace(part, self._folder / f"{name}.eml")
        except OSError:
            part.unlink(missing_ok=True)  # It would take room for nothing.
            raise


def mailed_in(folder: Path) -> Iterator[str]:
    """The ids of the orders about which there are mails in a `FolderMailer`'s folder. Raises
    `OSError`."""
    for name in os.listdir(folder):
        if name.startswith("order.") and name.endswith(".eml"):
            yield name.removesuffix(".eml").rpartition(".")[2]


def take_out(folder: Path, order_ids: Collection[str], names: Collection[str]) -> int:
    """Take out what mails in a `FolderMailer`'s folder say: those about the orders, and those with
    a name in them that is neither too short nor too long to be looked for. That they were sent can
    still be told. Returns how many. Blocks; raises `OSError`."""
    needles = [Needle(name) for name in names if can_be_sought(name)]
    count = 0
    for file in sorted(folder.glob("*.eml")):
        text = file.read_bytes()
        if text == _TAKEN_OUT:
            continue
        whose = file.name.removesuffix(".eml").rpartition(".")[2]
        if whose in order_ids or any(needle.find_in([text]).count for needle in needles):
            # In the same blocks of the disk: in new ones, the old text would stay where it was.
            with file.open("r+b") as stream:
                stream.write(bytes(len(text)))
                stream.flush()
                os.fsync(stream.fileno())
                stream.seek(0)
                stream.write(_TAKEN_OUT)
                stream.truncate()
            count += 1
    return count


class SmtpMailer:
    """Hands mails to a mail server, over a connection each."""

    def __init__(self, url: str, timeout_seconds: float, *, quoting: bool = True) -> None:
        """`url` is `smtp://host:25`, `smtp+starttls://user:password@host:587` or
        `smtps://user:password@host:465`. Errors repeat what the server said, without the
        recipient's address; unless `quoting`, only its codes. Raises `MailError`."""
        try:
            parsed = yarl.URL(unambiguous(url))
        except ValueError:
            parsed = yarl.URL()
        ports = {"smtp": 25, "smtp+starttls": 587, "smtps": 465}
        if parsed.scheme not in ports or not parsed.host:
            raise MailError(
                "names no mail server; write it as smtp://host:25, "
                "smtp+starttls://user:password@host:587 or smtps://user:password@host:465, with "
                "special characters as %XX"
            )
        if parsed.scheme == "smtp" and parsed.user:
            raise MailError(
                "would send a password that can be read on the way; "
                "write smtp+starttls:// or smtps://"
            )
        self._host, self._port = parsed.host, parsed.port or ports[parsed.scheme]
        self._scheme = parsed.scheme
        self._user = unquote(parsed.raw_user or "") or None
        self._password = unquote(parsed.raw_password or "") or None
        self._timeout_seconds = timeout_seconds
        self._quoting = quoting
        self._connections = asyncio.Semaphore(CONNECTIONS_MAX)

    async def send(self, mail: EmailMessage) -> None:
        """See `Mailer`."""
        async with self._connections:
            server = aiosmtplib.SMTP(
                hostname=self._host,
                port=self._port,
                username=self._user,
                password=self._password,
                use_tls=self._scheme == "smtps",
                start_tls=self._scheme == "smtp+starttls",
                timeout=self._timeout_seconds,
            )
            try:
                await self._hand_over(server, mail)
            finally:
                server.close()

    async def _hand_over(self, server: aiosmtplib.SMTP, mail: EmailMessage) -> None:
        where = f"the mail server {self._host}:{self._port}"
        to = str(mail["To"])
        try:
            await server.connect()
            await server.mail(str(mail["From"]))
            await server.rcpt(to)
        except aiosmtplib.SMTPRecipientRefused as error:
            raise self._refusal(f"{where} refused the recipient", error, to) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailRefused(f"{where} took no mail: {self._said(error, to)}") from error
        try:
            await server.data(mail.as_bytes())
        except aiosmtplib.SMTPDataError as error:  # It has answered, and that answer is no.
            raise self._refusal(f"{where} refused the mail", error, to) from error
        except (aiosmtplib.SMTPException, OSError) as error:
            raise MailUnconfirmed(
                f"{where} was lost before it answered: {self._said(error, to)}"
            ) from error

    def _refusal(
        self, what: str, error: aiosmtplib.SMTPResponseException, to: str
    ) -> MailRejected | MailRefused:
        kind = MailRejected if error.code in _PERMANENT else MailRefused
        return kind(f"{what}: {self._said(error, to)}")

    def _said(self, error: Exception, to: str) -> str:
        """What went wrong. It gets into databases, dead letters, logs and the history, so it does
        not name whom the mail is for, as servers like to."""
        if not isinstance(error, aiosmtplib.SMTPResponseException):
            return _without(to, str(error)) or type(error).__name__
        if self._quoting:
            return f"{error.code} {_without(to, error.message)}"
        enhanced = _ENHANCED.match(error.message)
        return f"{error.code} {enhanced[0]}" if enhanced else str(error.code)


def _without(address: str, text: str) -> str:
    return re.sub(re.escape(address), "(the recipient)", text, flags=re.IGNORECASE)
