"""What was deleted is in no byte of a file, and outsides know no name any more."""

from __future__ import annotations

import base64
import sqlite3
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Final
from uuid import uuid4

import pytest

from notification_service.mail import FolderMailer, mailed_in, take_out
from order_saga.outsides import MAIL_SERVER, PROVIDER
from payment_service.gateway import Account, SandboxGateway
from payment_service.ledger import Decline, Receipt
from saga.outside import ErasureRequest, OutsideError
from saga.personal import running
from saga.personal.byte_search import ByteSearch
from saga.personal.keystore import KeyStore
from saga.personal.master import MasterKeys
from saga.personal.needle import Needle
from saga.runtime.kernel.sqlite import scrub
from saga.runtime.urls import sqlite_url

NAME: Final = "Zoë O'Neil-Ünsal"
REFERENCE: Final = "~1." + "a" * 22 + "." + "b" * 30


def found_in(folder: Path) -> int:
    search = ByteSearch(Needle(NAME))
    search.folder("here", folder)
    assert not search.look.unseen
    return search.look.count


def test_what_was_deleted_is_gone_from_the_file_and_its_log(tmp_path: Path) -> None:
    path = tmp_path / "states.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("PRAGMA secure_delete = OFF")
        other.execute("CREATE TABLE states (id INTEGER PRIMARY KEY, state TEXT)")
        for number in range(100):
            state = f"{number} {NAME} {'x' * 1_000}"
            other.execute("INSERT INTO states (state) VALUES (?)", [state])
        other.execute("DELETE FROM states WHERE id > 1")
        other.execute("UPDATE states SET state = 'somebody'")
        assert found_in(tmp_path) > 1

        scrub(path)

        assert found_in(tmp_path) == 0
        assert other.execute("SELECT state FROM states").fetchall() == [("somebody",)]


def test_a_file_whose_log_is_being_read_is_not_said_to_be_clean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.runtime.kernel.sqlite.BUSY_TIMEOUT_SECONDS", 0.2)
    path = tmp_path / "states.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = WAL")
        other.execute("CREATE TABLE states (state TEXT)")
        other.execute("INSERT INTO states VALUES (?)", [NAME])
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM states").fetchall()
            other.execute("DELETE FROM states")

            with pytest.raises(sqlite3.OperationalError):
                scrub(path)


def clear(folder: Path, *, known: bool = True, subjects: Collection[str] = ()) -> ErasureRequest:
    return ErasureRequest(
        values={NAME: REFERENCE} if known else {},
        references=(REFERENCE,),
        subjects=subjects,
        folder=folder,
        books_url=sqlite_url(folder / "provider.db"),
    )


@pytest.mark.parametrize("known", [True, False], ids=["with the name", "once the key is gone"])
async def test_the_provider_forgets_a_name_and_its_books_add_up(
    tmp_path: Path, known: bool
) -> None:
    async def name_of(customer: str) -> str | None:
        return NAME if customer == REFERENCE else customer

    url = sqlite_url(tmp_path / "provider.db")
    gateway = SandboxGateway(url, name_of=name_of)
    gateway.set_accounts([Account(NAME, funds_cents=500)])
    first = await gateway.charge("k1", customer=REFERENCE, currency="EUR", amount_cents=400)
    assert isinstance(first, Receipt)
    before = list(gateway.ledger())
    assert found_in(tmp_path)

    assert PROVIDER.forget is not None
    assert PROVIDER.forget(clear(tmp_path, known=known)) == 2

    assert found_in(tmp_path) == 0
    assert list(gateway.ledger()) == before
    await gateway.close()

    async def forgotten(customer: str) -> str | None:
        return None

    gateway = SandboxGateway(url, name_of=forgotten)
    # The account is the same one: it has a hundred left.
    again = await gateway.charge("k2", customer=REFERENCE, currency="EUR", amount_cents=400)
    assert isinstance(again, Decline)
    assert await gateway.charge("k1", customer=REFERENCE, currency="EUR", amount_cents=400) == first
    await gateway.refund("k1", currency="EUR", amount_cents=400)
    await gateway.close()
    assert PROVIDER.forget(clear(tmp_path)) == 0


async def test_an_account_that_was_never_used_is_renamed(tmp_path: Path) -> None:
    gateway = SandboxGateway(sqlite_url(tmp_path / "provider.db"))
    gateway.set_accounts([Account(NAME, card_blocked=True)])
    await gateway.close()

    assert PROVIDER.forget is not None
    assert PROVIDER.forget(clear(tmp_path)) == 1
    assert found_in(tmp_path) == 0


def a_store(folder: Path) -> KeyStore:
    keys = MasterKeys.of(base64.b64encode(bytes(48)).decode(), "the test")
    return KeyStore.open_store(sqlite_url(folder / "persons.db"), keys)


def test_the_bytes_of_a_destroyed_key_are_gone(tmp_path: Path) -> None:
    store = a_store(tmp_path)
    store.seal(NAME)
    person_id = store.person_of(NAME)
    assert person_id is not None
    traces = store.traces(person_id)
    assert len(traces) == 2
    assert running.holds_any(tmp_path / "persons.db", traces)

    store.forget(person_id, "asked for")

    assert not running.holds_any(tmp_path / "persons.db", traces)
    assert store.traces(person_id) == ()
    store.close()


def test_a_destroyed_key_that_a_reader_keeps_in_the_log_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.runtime.kernel.sqlite.BUSY_TIMEOUT_SECONDS", 0.2)
    store = a_store(tmp_path)
    store.seal(NAME)
    person_id = store.person_of(NAME)
    assert person_id is not None
    traces = store.traces(person_id)
    with closing(sqlite3.connect(tmp_path / "persons.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM persons").fetchall()

        store.forget(person_id, "asked for")

        assert running.holds_any(tmp_path / "persons.db", traces)
    store.close()


def test_books_that_are_nowhere_are_named(tmp_path: Path) -> None:
    whom = ErasureRequest(values={}, references=(), subjects=(), folder=tmp_path, books_url=None)

    assert PROVIDER.forget is not None
    with pytest.raises(OutsideError, match="add its URL"):
        PROVIDER.forget(whom)


def test_mails_are_taken_out_and_it_is_still_known_that_they_were_sent(tmp_path: Path) -> None:
    folder = tmp_path / "mail"
    FolderMailer(folder)
    theirs, named, other = (str(uuid4()) for _ in range(3))
    (folder / f"order.confirmed.{theirs}.eml").write_text("To you, whom we call something else")
    (folder / f"order.cancelled.{named}.eml").write_text(f"Dear {NAME}")
    (folder / f"order.confirmed.{other}.eml").write_text("Dear Ada Bleibtreu")

    assert MAIL_SERVER.forget is not None
    assert MAIL_SERVER.forget(clear(tmp_path, subjects=[theirs])) == 2

    assert found_in(tmp_path) == 0
    assert set(mailed_in(folder)) == {theirs, named, other}
    assert "Ada" in (folder / f"order.confirmed.{other}.eml").read_text()
    assert "forgotten" in (folder / f"order.confirmed.{theirs}.eml").read_text()
    assert take_out(folder, [theirs], [NAME]) == 0


def test_mails_to_a_name_too_short_to_be_looked_for_are_found_by_their_order(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "mail"
    FolderMailer(folder)
    theirs = str(uuid4())
    (folder / f"order.confirmed.{theirs}.eml").write_text("Dear Bob")

    assert take_out(folder, [theirs], ["Bob"]) == 1
    assert "Bob" not in (folder / f"order.confirmed.{theirs}.eml").read_text()


async def test_books_from_before_there_were_payers_are_forgotten_in_too(tmp_path: Path) -> None:
    gateway = SandboxGateway(sqlite_url(tmp_path / "provider.db"))
    gateway.set_accounts([Account(NAME, card_blocked=True)])
    await gateway.close()
    with closing(sqlite3.connect(tmp_path / "provider.db")) as books, books:
        books.execute("DROP TABLE payers")

    assert PROVIDER.forget is not None
    assert PROVIDER.forget(clear(tmp_path)) == 1
    assert found_in(tmp_path) == 0
