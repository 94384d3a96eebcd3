"""What was published for a participant and is not in its inbox, without a look into any queue."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest
from pamqp import encode
from sqlalchemy.engine import Connection

from inventory_service.domain import AddStock
from saga.archive import store
from saga.deployment import Deployment
from saga.dlq.letters import copy_of
from saga.dlq.store import Store
from saga.envelope import MessageKey
from saga.history import waiting
from saga.history.waiting import WaitingMessages, read_waiting
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import writing
from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import DEAD_EXCHANGE
from tests.order_play import Play
from tests.stores import GRAPH, HISTORY, PROJECTION, TABLES

TEN = datetime(2030, 1, 1, 10, tzinfo=UTC)


@dataclass
class Books:
    """Orders as they are played, in the archive and in all inboxes."""

    deployment: Deployment
    history: Database
    databases: dict[str, Database]
    play: Play
    kept: dict[str, set[MessageKey]] = field(default_factory=dict)

    async def keep(self) -> None:
        """Keep what was played in the archive and the inboxes; what is there stays."""
        facts = [store.Fact(event, event.to_bytes()) for event in self.play.events]
        await self.history.transaction(lambda c: store.append(c, facts, self.play.at, PROJECTION))
        for name, database in self.databases.items():
            new = self.play.inboxes[name] - self.kept.setdefault(name, set())
            self.kept[name] |= new
            await database.transaction(partial(mark, participant=name, done=new))

    def read(self, deployment: Deployment | None = None) -> WaitingMessages:
        return read_waiting(deployment or self.deployment, GRAPH, now=self.play.at)


def mark(connection: Connection, participant: str, done: set[MessageKey]) -> None:
    with writing(connection) as writes:
        TABLES[participant].mark_each_done(writes, dict.fromkeys(done, TEN))


@pytest.fixture
async def books(tmp_path: Path) -> AsyncIterator[Books]:
    urls = {name: f"sqlite:///{tmp_path / name}.db" for name in ("history", *TABLES)}
    databases = {name: await open_database(urls[name], TABLES[name]) for name in TABLES}
    history = await open_database(urls["history"], HISTORY)
    deployment = Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls=urls,
        dead_letters_url=f"sqlite:///{tmp_path / 'dead.db'}",
    )
    play = Play(at=TEN, tick=timedelta(milliseconds=10), graph=GRAPH)
    books = Books(deployment, history, databases, play)
    shelve = AddStock(
        delivery_id=UUID(int=1), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"
    )
    books.play.give("inventory", shelve)
    yield books
    for database in (history, *databases.values()):
        await database.close()


async def test_what_a_participant_has_not_taken_is_counted_by_type(books: Books) -> None:
    books.play.down = {"payment"}
    orders = [books.play.place() for _ in range(2)]
    books.play.deliver()
    await books.keep()

    found = books.read()

    assert found.counts == Counter({("payment", "stock.reserved"): 2})
    assert [message.subject for message in found.of("payment", "stock.reserved")] == orders
    assert not found.of("order")
    assert not found.older

    books.play.down = set()
    books.play.deliver()
    await books.keep()

    assert not books.read().untaken


async def test_only_the_newest_events_are_looked_at_and_that_is_told(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.play.down = {"payment"}
    for _ in range(3):
        books.play.place()
        books.play.deliver()
    await books.keep()
    everything = books.read()
    monkeypatch.setattr(waiting, "LOOKED_AT_MAX", 2)

    found = books.read()

    assert (found.older, found.looked_at) == (True, 2)
    assert 0 < len(found.untaken) < len(everything.untaken)


async def test_what_an_inbox_may_have_forgotten_is_not_called_untaken(books: Books) -> None:
    books.play.down = {"payment"}
    books.play.place()
    books.play.deliver()
    await books.keep()
    assert books.read().untaken

    books.play.at += timedelta(days=books.deployment.inbox_days + 1)

    assert not books.read().untaken


async def test_whose_books_are_not_known_is_named(books: Books) -> None:
    books.play.place()
    await books.keep()
    urls = {n: url for n, url in books.deployment.database_urls.items() if n != "payment"}

    found = books.read(deployment=books.deployment.model_copy(update={"database_urls": urls}))

    assert found.unread == {"payment": "the deployment names no database of it"}


async def test_a_dead_letter_does_not_wait(books: Books) -> None:
    books.play.down = {"payment"}
    books.play.place()
    books.play.deliver()
    await books.keep()
    (dead,) = books.read().of("payment", "stock.reserved")
    properties = {
        "headers": encode.field_table({"x-saga-reason": "failed"}),
        "message_id": frames.short(dead.id),
    }
    delivery = Delivery(1, False, DEAD_EXCHANGE, "payment", frames.join(properties), b"{}")
    letters = Store(str(books.deployment.dead_letters_url))
    letters.take([copy_of(delivery, "payment", TEN)], TEN)
    letters.close()

    assert not books.read().of("payment", "stock.reserved")
