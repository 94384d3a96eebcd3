"""`saga forget` on a bad day: whatever is away or wrong, it says what and what to do about it, and
destroys no key before all is done that takes it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest

from inventory_service.domain import AddStock
from saga.deployment import FILE_NAME
from saga.discovery import choreography
from saga.personal import lookup
from saga.personal.master import new_master_key
from saga.personal.opening import KEY_FILE, STORE_FILE, made_key, open_store
from saga.personal.requests import FILE_NAME as REQUESTS
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import apply, topology_of
from saga.runtime.settings import PersonalSettings, Sealing
from tests.books import Books
from tests.integration.test_views import Done, run
from tests.order_play import Play

NAME: Final = "Zebedee Quigley"
NOWHERE: Final = "127.0.0.1:1"
FORGET: Final = (NAME, "--reason", "asked for on 2030-01-31", "--yes", "--wait", "0")


@dataclass(frozen=True)
class Day:
    """A system without services, and what it knows of one customer."""

    folder: Path

    def settings(self) -> PersonalSettings:
        return PersonalSettings(
            personal=Sealing.SEALED,
            personal_key_file=self.folder / KEY_FILE,
            persons_database_url=f"sqlite:///{self.folder / STORE_FILE}",
        )

    def change(self, **values: Any) -> None:
        """Write something else into `saga.json`."""
        file = self.folder / FILE_NAME
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    def changed_urls(self, **urls: str) -> dict[str, str]:
        known: dict[str, str] = json.loads((self.folder / FILE_NAME).read_text())["database_urls"]
        return known | urls

    def forget(self, *arguments: str, **environment: str) -> Done:
        done = run("forget", *arguments, folder=self.folder, environment=environment)
        assert "Traceback" not in done.err
        assert "hush" not in done.out + done.err
        return done

    @property
    def is_known(self) -> bool:
        with closing(open_store(self.settings())) as store:
            return store.person_of(NAME) is not None


async def _furnish(day: Day, url: str) -> None:
    async with await connect(url, name="test") as connection:
        await apply(topology_of(choreography()), await connection.channel())
    made_key(day.folder)
    with closing(open_store(day.settings())) as store:
        customer = store.seal(NAME)
    play = Play(at=utc_now() - timedelta(hours=1), tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"),
    )
    play.place(customer=customer)
    play.deliver()
    books = Books(day.folder, play)
    await books.write()
    told = {"personal": Sealing.SEALED, "personal_cache_seconds": 0.1}
    books.deployment(url).model_copy(update=told).save(day.folder)
    day.change(
        api_keys_file="api_keys.json", outside_papers={"mail server": [str(day.folder / "mail")]}
    )


@pytest.fixture(scope="module")
def good(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Day]:
    with virtual_host() as url:
        made = Day(tmp_path_factory.mktemp("good"))
        asyncio.run(_furnish(made, url))
        yield made


@pytest.fixture
def day(good: Day, tmp_path: Path) -> Day:
    folder = tmp_path / "bad"
    shutil.copytree(good.folder, folder)
    file = folder / FILE_NAME
    file.write_text(file.read_text().replace(str(good.folder), str(folder)))
    return Day(folder)


def test_on_a_good_day_only_the_brokers_own_files_are_left(day: Day) -> None:
    done = day.forget(*FORGET)
    assert "is forgotten since" in done.out
    unseen = [line for line in done.err.splitlines() if "could not look at" in line]
    assert [line for line in unseen if "the files of the broker" not in line] == []
    assert not day.is_known


AWAY: Final[Mapping[str, tuple[Callable[[Day], object], str]]] = {
    "the key store is gone": (
        lambda day: (day.folder / STORE_FILE).unlink(),
        "there is no key store .*: name it in PERSONS_DATABASE_URL, or its folder with --data-dir",
    ),
    "its server is away": (
        lambda day: day.change(persons_database_url=f"postgresql://u:hush@{NOWHERE}/x"),
        "cannot open the key store: cannot reach PostgreSQL .*; start it, or correct its URL",
    ),
    "the master key is gone": (
        lambda day: (day.folder / KEY_FILE).unlink(),
        "cannot read the master key .*; name its file in PERSONAL_KEY_FILE",
    ),
    "it is another one": (
        lambda day: (day.folder / KEY_FILE).write_text(new_master_key()),
        "is wrapped by master key .*: put that key back into PERSONAL_KEY_FILE",
    ),
    "the broker is away": (
        lambda day: day.change(amqp_url=f"amqp://u:hush@{NOWHERE}/"),
        "cannot reach RabbitMQ .*; start it",
    ),
    "a database is gone": (
        lambda day: (day.folder / "order.db").unlink(),
        "there is no database .*order.db; start its service, or correct its URL",
    ),
    "the history's server is away": (
        lambda day: day.change(
            database_urls=day.changed_urls(history=f"postgresql://u:hush@{NOWHERE}/x")
        ),
        "cannot reach PostgreSQL .*; start it, or correct its URL",
    ),
    "what waits cannot be read": (
        lambda day: (day.folder / REQUESTS).write_text("{"),
        "cannot read .*: the document: Invalid JSON.*; correct or remove it, and ask again",
    ),
    "no system is known": (
        lambda day: (day.folder / FILE_NAME).unlink(),
        "no running system is known in .*: start one with `saga up`, or name its data folder",
    ),
}


@pytest.mark.parametrize("what", AWAY)
def test_what_is_away_is_named_with_the_way_out_and_nobody_is_forgotten(
    what: str, day: Day
) -> None:
    go_wrong, said = AWAY[what]
    whole = {file: (day.folder / file).read_bytes() for file in (STORE_FILE, KEY_FILE)}
    go_wrong(day)

    done = day.forget(*FORGET)

    assert (done.status, done.out) == (1, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert re.search(said, line), line
    for file, content in whole.items():
        (day.folder / file).write_bytes(content)
    assert day.is_known


def test_a_folder_of_secrets_that_is_not_mounted_is_named(day: Day) -> None:
    done = day.forget(*FORGET, SECRETS_DIR="/nowhere/at/all")
    assert done.status == 1
    assert "SECRETS_DIR names /nowhere/at/all, which is no folder: mount it" in done.err
    assert day.is_known


IN_THE_WAY: Final[Mapping[str, tuple[Callable[[Day], object], str]]] = {
    "an outside's books": (
        lambda day: (day.folder / "provider.db").unlink(),
        "failed: provider: .*ledger is not at .*: put it there, or correct its URL; fix it, then "
        "`saga forget --resume`",
    ),
    "a folder of mails": (
        lambda day: day.change(outside_papers={"mail server": ["/nowhere/mounted/mail"]}),
        "failed: mail server: mails cannot be looked at: there is no folder /nowhere/mounted; ",
    ),
    "API keys": (
        lambda day: (day.folder / "api_keys.json").write_text("{"),
        "failed: their API keys: cannot read .*; fix it, then `saga forget --resume`",
    ),
    "an event in an outbox": (
        lambda day: _leave_in_outbox(day),
        "what is open is not known: order has not published all that it has decided: start it",
    ),
}


def _leave_in_outbox(day: Day) -> None:
    """Leave an event that names them in a service that does not run."""
    with closing(open_store(day.settings())) as store:
        body = store.seal(NAME).encode()
    with closing(sqlite3.connect(day.folder / "order.db")) as orders:
        columns = [row[1:4] for row in orders.execute("PRAGMA table_info(outbox)")]
        values = [
            body if name == "body" else 0 if "INT" in kind.upper() else "x"
            for name, kind, _ in columns
        ]
        marks = ", ".join("?" for _ in columns)
        orders.execute(f"INSERT INTO outbox VALUES ({marks})", values)  # noqa: S608
        orders.commit()


@pytest.mark.parametrize("what", IN_THE_WAY)
def test_what_cannot_be_done_while_the_key_is_there_has_the_request_wait(
    what: str, day: Day, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookup, "CATCH_UP_SECONDS", 0.3)
    go_wrong, said = IN_THE_WAY[what]
    go_wrong(day)

    done = day.forget(*FORGET)

    assert done.status == 1
    assert re.search(said, done.err), done.err
    assert day.is_known
    waiting = run("forget", "--status", folder=day.folder)
    assert waiting.status == 1
    assert "asked for on 2030-01-31" in waiting.out


def test_api_keys_that_services_have_copies_of_are_not_taken_for_none(day: Day) -> None:
    day.change(api_keys_copied=True)
    done = day.forget(*FORGET)
    assert done.status == 1
    assert f"API keys were not looked at: services have copies of {day.folder}" in done.err


def test_who_is_not_known_is_said_to_be_so_and_other_spellings_are_named(day: Day) -> None:
    with closing(open_store(day.settings())) as store:
        person = store.person_of(NAME)
    for given in (NAME.upper(), f"{NAME.lower()}", NAME.replace(" ", "  ")):
        done = day.forget(given, *FORGET[1:])
        assert (done.status, done.out) == (1, "")
        assert f"in another spelling, person {person} is known" in done.err

    stranger = day.forget("Ottoline Nobody", *FORGET[1:])
    assert stranger.status == 1
    assert "the key store knows no person of that name" in stranger.err
    assert "spelling" not in stranger.err


def test_a_person_of_two_spellings_is_told_to_be_two(day: Day) -> None:
    with closing(open_store(day.settings())) as store:
        store.seal("Zoë Quigley")
        store.seal("ZOE\N{COMBINING DIAERESIS} QUIGLEY")
        other = store.person_of("ZOE\N{COMBINING DIAERESIS} QUIGLEY")
    looked = day.forget("Zoë Quigley", "--reason", "asked")
    done = day.forget("Zoë Quigley", *FORGET[1:])

    for each in (looked, done):
        assert f"in another spelling, the same name is person {other}" in each.err
    assert "is forgotten since" in done.out
