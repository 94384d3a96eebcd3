"""Where personal data is in clear is named, with the time until which it stays."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from saga.deployment import Deployment
from saga.discovery import saga as declared
from saga.dlq.store import Store
from saga.envelope import rfc3339
from saga.personal.in_clear import look_for_clear
from saga.runtime.kernel.tables import utc_now
from tests.books import Books
from tests.command import saga
from tests.order_play import Play

SEALED: Final = "~1." + "a" * 22 + "." + "b" * 40


async def books_of(folder: Path, *customers: str) -> Play:
    """A system that is never started, in which these have ordered."""
    play = Play()
    books = Books(folder, play)
    for customer in customers:
        play.place(customer)
    play.deliver()
    await books.write()
    names = ("history", "order", "inventory", "payment", "notification")
    letters = f"sqlite:///{folder / 'dead_letters.db'}"
    Store(letters).close()
    Deployment(
        amqp_url="amqp://nobody@127.0.0.1:1/",
        http_urls={},
        database_urls={name: books.url(name) for name in names},
        dead_letters_url=letters,
    ).save(folder)
    return play


def look(folder: Path) -> tuple[int, dict[str, Any]]:
    done = saga("persons", "in-clear", "--json", "--data-dir", str(folder))
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found


async def test_what_entered_in_clear_is_named_with_the_day_it_leaves_the_stream(
    tmp_path: Path,
) -> None:
    play = await books_of(tmp_path, "ada", "ben", SEALED)
    texts = (b'"ada"', b'"ben"')
    clear = [e for e in play.events if any(text in e.to_bytes() for text in texts)]

    status, found = await asyncio.to_thread(look, tmp_path)

    assert status == 1
    places = {place["name"]: place for place in found["places"]}
    assert places["the history"]["count"] == len(clear)
    assert places["the history"]["goes_at"] is None
    stream = places["the history's stream"]
    newest = max(event.time for event in clear)
    assert stream["count"] == len(clear)
    assert stream["goes_at"] == rfc3339(newest + timedelta(days=30))
    assert places["order: orders"]["count"] == 2
    assert places["history: order_views"]["count"] == 2
    assert found["looked_at"]["the history"] == len(play.events)
    assert {each["name"] for each in found["elsewhere"]} >= {"copies", "queues", "provider"}


async def test_a_stream_that_has_lost_them_is_not_named(tmp_path: Path) -> None:
    await books_of(tmp_path, "ada")
    deployment = Deployment.load(tmp_path)

    report = await asyncio.to_thread(
        look_for_clear, deployment, declared(), utc_now() + timedelta(days=31)
    )

    names = {place.name for place in report.places}
    assert "the history" in names
    assert "the history's stream" not in names


async def test_where_all_is_sealed_nothing_is_named(tmp_path: Path) -> None:
    await books_of(tmp_path, SEALED)

    status, found = await asyncio.to_thread(look, tmp_path)

    assert (status, found["ok"], found["places"], found["not_looked_at"]) == (0, True, [], [])


async def test_a_message_that_cannot_be_read_was_not_looked_at(tmp_path: Path) -> None:
    await books_of(tmp_path, SEALED)
    with closing(sqlite3.connect(tmp_path / "history.db")) as connection:
        connection.execute(
            "INSERT INTO strays VALUES ('k', 1, 0, 'order.placed', 'odd', 'odd', x'ff', 1)"
        )
        connection.commit()

    status, found = await asyncio.to_thread(look, tmp_path)

    assert status == 1
    assert [each["name"] for each in found["not_looked_at"]] == ["the history"]


async def test_what_waits_in_an_outbox_and_cannot_be_read_was_not_looked_at(
    tmp_path: Path,
) -> None:
    await books_of(tmp_path, SEALED)
    with closing(sqlite3.connect(tmp_path / "order.db")) as connection, connection:
        connection.execute(
            "INSERT INTO outbox (event_id, owner, position, routing_key, body)"
            " VALUES ('e', 'o', 1, 'order.placed.normal', x'ff')"
        )

    status, found = await asyncio.to_thread(look, tmp_path)

    assert status == 1
    assert [each["name"] for each in found["not_looked_at"]] == ["order: outbox"]
