"""The payment provider: what is asked of one, and a sandbox to stand in for one."""

from __future__ import annotations

import asyncio
import functools
import random
import sqlite3
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import uuid4

import sqlalchemy as sa
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.engine import Connection, Engine

from payment_service.ledger import (
    ChargeOutcome,
    Decline,
    GatewayRefused,
    LedgerCharge,
    Receipt,
    refunded,
)
from saga.errors import Explained
from saga.retry import TransientError
from saga.runtime.kernel.sqlite import BUSY_TIMEOUT_SECONDS, made_by_one, scrub, sqlite_engine
from saga.runtime.urls import printable, sqlite_path

GROUP_MAX = 256
"""Questions answered in one transaction of the sandbox."""
WAITING_MAX = 10_000
"""Questions waiting for a transaction, beyond which the sandbox is unavailable."""
FULL_DISK_SECONDS = 1_200.0
"""How long the sandbox waits for room on its ledger's disk, before it is unavailable: less than the
half an hour after which the broker takes a delivery back."""
FULL_DISK_POLL_SECONDS = 0.2
ANSWER_DELAY_MAX_MS = 600_000
AMOUNT_MAX_CENTS = 2**63 - 1


NameOf = Callable[[str], Awaitable[str | None]]
"""The name that a sealed customer stands for, read at the last moment; None if it cannot be read
any more."""


class GatewayUnavailable(TransientError):
    """Nothing is known of what happened, if anything. Ask again under the same key."""


class GatewayConfigurationError(Explained, ValueError):
    """The sandbox's store cannot be used. The message names it and the way out."""


class PaymentGateway(Protocol):
    """A payment provider. Safe to call from many tasks of one event loop.

    Each key is one charge, whatever the number of questions: asked again, it is answered as
    before. A caller that is cancelled knows as little as one that got `GatewayUnavailable`.
    """

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        """Take the money. Raises `GatewayUnavailable`, and `GatewayRefused` if the key is
        known for another customer, currency or amount."""
        ...

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        """Give back what was charged under `key`, once.

        Raises `GatewayUnavailable`, and `GatewayRefused` if nothing was charged under the key, or
        less, or another amount or currency was given back.
        """
        ...

    async def close(self) -> None:
        """Answer what has been asked, then let go of connections and threads."""
        ...


@dataclass(frozen=True, slots=True)
class Account:
    """How the sandbox treats a customer; one it has no account of can pay anything at once.

    Charges lower `funds_cents` and refunds raise it; None is without end. The answer to a charge
    is held back for `answer_delay_ms` after its effect is durable.
    """

    customer: str
    funds_cents: int | None = None
    card_blocked: bool = False
    answer_delay_ms: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.answer_delay_ms <= ANSWER_DELAY_MAX_MS:
            raise ValueError(f"answer_delay_ms is {self.answer_delay_ms}: not in 0 to 600000")


class FaultMode(StrEnum):
    """How the sandbox fails: before it does anything, or after all of it is done."""

    NONE = "none"
    UNAVAILABLE = "unavailable"
    LOST_ANSWER = "lost_answer"


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that hits `share` (0 to 1) of all questions, at random."""

    mode: FaultMode = FaultMode.NONE
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share}: not in 0 to 1")


_metadata = sa.MetaData()
_charges = sa.Table(
    "charges",
    _metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("customer", sa.String, nullable=False),
    sa.Column("currency", sa.String, nullable=False),
    sa.Column("amount_cents", sa.BigInteger, nullable=False),
    sa.Column("outcome", sa.String, nullable=False),
    sa.Column("reference", sa.String, nullable=False),
    sa.Column("charged_at_ms", sa.BigInteger, nullable=False),
    sa.Column("asked", sa.Integer, nullable=False),
    sa.Column("refunded_cents", sa.BigInteger, nullable=False),
    sa.Column("refunded_at_ms", sa.BigInteger),
)
_accounts = sa.Table(
    "accounts",
    _metadata,
    sa.Column("customer", sa.String, primary_key=True),
    sa.Column("funds_cents", sa.BigInteger),
    sa.Column("card_blocked", sa.Boolean, nullable=False),
    sa.Column("answer_delay_ms", sa.Integer, nullable=False),
)
_payers = sa.Table(
    "payers",
    _metadata,
    sa.Column("customer", sa.String, primary_key=True),
    sa.Column("name", sa.String, nullable=False),
)
"""Whose a reference is, where it is another text than the name: as a provider knows its payers."""
_faults = sa.Table(
    "faults",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),  # There is one row, number 1.
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("share", sa.Float, nullable=False),
)
# Made once: a statement is full of reference cycles, which only the garbage collector frees.
_FIND_CHARGES = sa.select(_charges).where(_charges.c.key.in_(sa.bindparam("keys", expanding=True)))
_FIND_ACCOUNTS = sa.select(_accounts).where(
    _accounts.c.customer.in_(sa.bindparam("customers", expanding=True))
)
_FIND_PAYERS = sa.select(_payers).where(
    _payers.c.customer.in_(sa.bindparam("customers", expanding=True))
)
_FIND_FAULT = sa.select(_faults.c.mode, _faults.c.share)


@dataclass(frozen=True, slots=True)
class _Question:
    """A charge or, without a customer, a refund."""

    key: str
    customer: str | None
    currency: str
    amount_cents: int
    payer: str | None = None
    """The customer's name, where `customer` is another text."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What to return or raise, and how long to hold it back."""

    said: Receipt | Decline | GatewayRefused | GatewayUnavailable
    delay_ms: int = 0


def take_out(url: str, customers: Iterable[str], names: Mapping[str, str]) -> int:
    """Take the names of these customers, whom lines of the ledger call by other texts, out of the
    sandbox's books, and the `names` out of accounts that were not used yet: they are the keys of
    what comes in their place. The lines stay as they are, and an account stays, under such a text.
    No byte of the names is left in the file. Returns in how many rows they were. Blocks; raises
    `sqlite3.Error`, and `GatewayConfigurationError`."""
    path = ledger_file(url)
    if not path.is_file():
        return 0
    count = 0
    with closing(sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS)) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        with connection:
            # Books of before there were references have no payers.
            for customer in customers if _payers.name in tables else ():
                count += connection.execute(
                    "UPDATE OR REPLACE accounts SET customer = ?1"
                    " WHERE customer IN (SELECT name FROM payers WHERE customer = ?1)",
                    [customer],
                ).rowcount
                count += connection.execute(
                    "DELETE FROM payers WHERE customer = ?", [customer]
                ).rowcount
            for name, customer in names.items():
                count += connection.execute(
                    "UPDATE OR REPLACE accounts SET customer = ? WHERE customer = ?",
                    [customer, name],
                ).rowcount
    scrub(path)
    return count


class SandboxGateway:
    """A provider for tests and demos, with a ledger of its own in a SQLite file.

    Concurrent questions share a transaction, in a thread of its own. Any number of processes may
    open the same file at the same time: one to serve, others to `set_accounts` and `set_fault`
    while it does, and to read its `ledger`. Those three block while another
    process writes, and raise SQLAlchemy's `OperationalError` if that takes 10 seconds.

    Lines of the ledger name a customer by the reference that we give, a sealed name for instance,
    so that the same charge is the same whether or not the name can still be read. Accounts go by
    the name itself.
    """

    def __init__(self, url: str, *, seed: int | None = None, name_of: NameOf | None = None) -> None:
        """Open the ledger at `url`, such as `sqlite:///data/provider.db`, and make what is missing.

        `seed` is for which questions a fault of some share hits; `name_of` reads a sealed customer.
        Raises `GatewayConfigurationError`.
        """
        self._name_of = name_of
        path = ledger_file(url)
        self._engine = sqlite_engine(url)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_tables(self._engine)
        except (OSError, sa.exc.DBAPIError) as error:
            self._engine.dispose()
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error.strerror
            raise GatewayConfigurationError(
                f"cannot keep the payment sandbox's ledger in {path}: {reason}; "
                f"make that a file that can be written, or choose another"
            ) from error
        self._random = random.Random(seed)
        self._waiting: deque[tuple[_Question, asyncio.Future[_Answer]]] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sandbox")
        self._answering: asyncio.Task[None] | None = None
        self._closed = False

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        """See `PaymentGateway`. The first question decides; the account may change afterwards."""
        name = customer if self._name_of is None else await self._name_of(customer)
        payer = None if name == customer else name
        return await self._ask(_Question(key, customer, currency, amount_cents, payer))

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        """See `PaymentGateway`."""
        await self._ask(_Question(key, None, currency, amount_cents))

    async def close(self) -> None:
        """See `PaymentGateway`. May be called again."""
        self._closed = True
        if self._answering is not None:
            await self._answering
        self._thread.shutdown()
        self._engine.dispose()

    def set_accounts(self, accounts: Iterable[Account]) -> None:
        """Open these accounts, or replace them; all in one transaction."""
        rows = [asdict(account) for account in accounts]
        with self._engine.begin() as connection:
            _put(connection, _accounts, rows)

    def set_fault(self, fault: Fault) -> None:
        """Replace the fault; it holds from the next transaction on."""
        with self._engine.begin() as connection:
            _put(connection, _faults, [{"id": 1, **asdict(fault)}])

    def ledger(self) -> Sequence[LedgerCharge]:
        """Every charge there is, declined ones too, in order of time."""
        query = sa.select(_charges).order_by(_charges.c.charged_at_ms, _charges.c.key)
        with self._engine.connect().execution_options(reads=True) as connection:
            return [_charge_of(row) for row in connection.execute(query).mappings()]

    async def _ask(self, question: _Question) -> Receipt | Decline:
        if not 0 < question.amount_cents <= AMOUNT_MAX_CENTS:
            raise GatewayRefused(f"amount_cents is {question.amount_cents}: not an amount")
        if self._closed or len(self._waiting) >= WAITING_MAX:
            raise GatewayUnavailable("the payment sandbox is closed or has too much to answer")
        future: asyncio.Future[_Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if self._answering is None or self._answering.done():
            self._answering = asyncio.create_task(self._answer_waiting())
        answer = await future
        if answer.delay_ms:
            await asyncio.sleep(answer.delay_ms / 1000)
        if isinstance(answer.said, Exception):
            raise answer.said
        return answer.said

    async def _answer_waiting(self) -> None:
        """Answer in groups until nothing waits; what comes meanwhile is the next group."""
        loop = asyncio.get_running_loop()
        while self._waiting:
            group = [self._waiting.popleft() for _ in range(min(GROUP_MAX, len(self._waiting)))]
            questions = [question for question, _ in group]
            answers = await loop.run_in_executor(self._thread, self._commit_with_room, questions)
            for (_, future), answer in zip(group, answers, strict=True):
                if not future.done():  # Its caller may have been cancelled.
                    future.set_result(answer)

    # In the sandbox's thread, from here on.

    def _commit_with_room(self, questions: Sequence[_Question]) -> Sequence[_Answer]:
        """The same, once the disk takes it. A full disk of ours is nothing that a provider would
        say, and must not use up the attempts of a message."""
        deadline = time.monotonic() + FULL_DISK_SECONDS
        while True:
            try:
                return self._commit(questions)
            except sa.exc.OperationalError as error:
                if self._closed or time.monotonic() > deadline:
                    return [_Answer(_failed(error)) for _ in questions]
            time.sleep(FULL_DISK_POLL_SECONDS)

    def _commit(self, questions: Sequence[_Question]) -> Sequence[_Answer]:
        try:
            with self._engine.begin() as connection:
                books = _Books(connection, questions)
                answers = [self._answer(books, question) for question in questions]
                books.write(connection)
        except Exception as error:  # Whatever it was, the callers must not wait for ever.
            if isinstance(error, sa.exc.OperationalError) and _is_full(error):
                raise
            return [_Answer(_failed(error)) for _ in questions]
        return answers

    def _answer(self, books: _Books, question: _Question) -> _Answer:
        mode = books.fault.mode if self._random.random() < books.fault.share else FaultMode.NONE
        if mode is FaultMode.UNAVAILABLE:
            return _Answer(GatewayUnavailable("the payment sandbox is switched to unavailable"))
        answer = books.refund(question) if question.customer is None else books.charge(question)
        if mode is FaultMode.LOST_ANSWER:
            lost = GatewayUnavailable("the payment sandbox is switched to lose its answers")
            return replace(answer, said=lost)
        return answer


_PRIMARY_CODE = 0xFF
"""The part of SQLite's extended error codes that they have in common with others of their kind."""
_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)


def _failed(error: Exception) -> GatewayUnavailable:
    return GatewayUnavailable(f"the payment sandbox's ledger failed: {error!r}")


def _is_full(error: sa.exc.OperationalError) -> bool:
    """Whether the disk takes no more: it is full, over quota, or read-only."""
    code: int = getattr(error.orig, "sqlite_errorcode", 0)
    return code & _PRIMARY_CODE in _FULL


@dataclass(frozen=True, slots=True)
class _Payer:
    """A line of `_payers`."""

    customer: str
    name: str


class _Books:
    """What one group needs of the ledger: read at once, changed in memory, written at once."""

    def __init__(self, connection: Connection, questions: Iterable[_Question]) -> None:
        keys = {question.key for question in questions}
        found = connection.execute(_FIND_CHARGES, {"keys": list(keys)}).mappings()
        self.charges = {row["key"]: _charge_of(row) for row in found}
        customers = {question.customer for question in questions if question.customer is not None}
        customers |= {charge.customer for charge in self.charges.values()}
        known = connection.execute(_FIND_PAYERS, {"customers": list(customers)})
        self.payers = {row.customer: _Payer(row.customer, row.name) for row in known}
        self._payers_read = dict(self.payers)
        for question in questions:
            if question.customer is not None and question.payer is not None:
                self.payers[question.customer] = _Payer(question.customer, question.payer)
        customers = {self._name(customer) for customer in customers}
        held = connection.execute(_FIND_ACCOUNTS, {"customers": list(customers)}).mappings()
        self.accounts = {row["customer"]: Account(**row) for row in held}
        fault = connection.execute(_FIND_FAULT).one_or_none()
        self.fault = Fault(FaultMode(fault.mode), fault.share) if fault else Fault()
        self._charges_read, self._accounts_read = dict(self.charges), dict(self.accounts)

    def write(self, connection: Connection) -> None:
        """Write what has changed."""
        for table, now, before in (
            (_charges, self.charges, self._charges_read),
            (_accounts, self.accounts, self._accounts_read),
            (_payers, self.payers, self._payers_read),
        ):
            changed = [asdict(item) for key, item in now.items() if item != before.get(key)]
            _put(connection, table, changed)

    def charge(self, question: _Question) -> _Answer:
        """Decide, if this is the first question under its key; count it."""
        customer = question.customer or ""
        account = self.accounts.get(self._name(customer), Account(customer))
        charge = self.charges.get(question.key) or self._decide(question, account)
        try:
            said = charge.answer(customer, question.currency, question.amount_cents)
        except GatewayRefused as refusal:
            return _Answer(refusal)
        self.charges[question.key] = replace(charge, asked=charge.asked + 1)
        return _Answer(said, account.answer_delay_ms)

    def _decide(self, question: _Question, account: Account) -> LedgerCharge:
        outcome = ChargeOutcome.CHARGED
        if account.card_blocked:
            outcome = ChargeOutcome.CARD_DECLINED
        elif account.funds_cents is not None:
            if account.funds_cents < question.amount_cents:
                outcome = ChargeOutcome.INSUFFICIENT_FUNDS
            else:
                self._pay_in(account, -question.amount_cents)
        return LedgerCharge(
            key=question.key,
            customer=question.customer or "",
            currency=question.currency,
            amount_cents=question.amount_cents,
            outcome=outcome,
            reference=f"sandbox-{uuid4()}" if outcome is ChargeOutcome.CHARGED else "",
            charged_at_ms=time.time_ns() // 1_000_000,
        )

    def refund(self, question: _Question) -> _Answer:
        """Give the money back, if that has not been done under this key."""
        before = self.charges.get(question.key)
        now_ms = time.time_ns() // 1_000_000
        try:
            charge = refunded(
                before, question.key, question.currency, question.amount_cents, now_ms
            )
        except GatewayRefused as refusal:
            return _Answer(refusal)
        if charge is not before:
            self.charges[question.key] = charge
            if account := self.accounts.get(self._name(charge.customer)):
                self._pay_in(account, charge.refunded_cents)
        return _Answer(Receipt(charge.reference))

    def _name(self, customer: str) -> str:
        """What the accounts call a customer."""
        payer = self.payers.get(customer)
        return customer if payer is None else payer.name

    def _pay_in(self, account: Account, cents: int) -> None:
        if account.funds_cents is not None:
            self.accounts[account.customer] = replace(
                account, funds_cents=account.funds_cents + cents
            )


def _put(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, object]]) -> None:
    """Insert rows, or replace those that have the same primary key."""
    if rows:
        connection.execute(_upsert(table), rows)


@functools.cache
def _upsert(table: sa.Table) -> Insert:
    statement = insert(table)
    others = {c.name: statement.excluded[c.name] for c in table.c if not c.primary_key}
    return statement.on_conflict_do_update(index_elements=list(table.primary_key), set_=others)


def _charge_of(row: sa.RowMapping) -> LedgerCharge:
    return LedgerCharge(**{**row, "outcome": ChargeOutcome(row["outcome"])})


def _make_tables(engine: Engine) -> None:
    """Make what is missing."""
    made_by_one(lambda: _metadata.create_all(engine))


def ledger_file(url: str) -> Path:
    """The file of the sandbox at `url`. Raises `GatewayConfigurationError`."""
    why = ""
    try:
        path = sqlite_path(url)
    except ValueError as error:
        path, why = None, f": {error}"
    if path is None:
        raise GatewayConfigurationError(
            f"the payment sandbox cannot keep its ledger in {printable(url)!r}{why}; "
            f"name a file, as in sqlite:///path/to/provider.db"
        )
    return path
