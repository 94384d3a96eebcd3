"""No message stops a queue, the history or a tool, whatever its properties and headers are.

Each ends as a dead letter or a stray within seconds, byte for byte; its neighbours are done. What
RabbitMQ itself does not take from a publisher is in `tests.integration.poison.REFUSED`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
import sqlalchemy as sa
import yarl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from common.events import OrderCancelled, StockReleased
from payment_service.gateway import SandboxGateway
from saga.archive import store as history_store
from saga.archive.follower import Follower
from saga.choreography import Participant
from saga.cli import app
from saga.deployment import Deployment
from saga.discovery import choreography, participants, tables_in
from saga.local.node import RabbitNode
from saga.reconcile import reconcile
from saga.retry import Retry, TransientError
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.messaging.dead_letters import KEPT, LEFT_OUT, OURS, REPLAYS
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import (
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    apply,
    topology_of,
    wait_queue,
)
from saga.runtime.tasks import LoopThread, cancel_all
from saga.status import status
from tests.faults.proxy import Proxy
from tests.integration.order_events import cancelled
from tests.integration.poison import CASES, LOST, REFUSED, property_lists
from tests.integration.toy import Tally, id_in_inbox, make_tables, open_toy, rows
from tests.polling import until
from tests.raw_amqp import Message, RawClient, Refused, parts
from tests.stores import HISTORY, PROJECTION

T = TypeVar("T")

NEIGHBOURS: Final = 20
DELIVERED_SECONDS: Final = 60.0
_KEY: Final = "order.cancelled.normal"
_QUEUES: Final = ("payment.normal", "payment.high")


class Down(TransientError):
    """What the reaction raises for the customer `flaky`, whenever it is asked."""


class Broken(Exception):
    """What the reaction raises for the customer `poison`."""


def tally(event: OrderCancelled, tally: Tally) -> StockReleased | None:
    if event.customer == "flaky":
        raise Down("no answer")
    if event.customer == "poison":
        raise Broken("a customer of that name cannot be served")
    return None


STAND_IN: Final = Participant(
    "payment", tally, retry=Retry(max_calls=3, delay=0.1, backoff=1.0, max_delay=0.1)
)
"""Reads the queues of the payment service, so that the tools know of it."""
TABLES: Final = {
    participant.name: tables_in(package) for package, participant in participants().items()
}


@dataclass(frozen=True)
class Poison:
    """A message of this case, on its way to one place. `body` is this message's alone."""

    case: str
    route: str
    raw: bytes
    body: bytes


@dataclass
class Sent:
    """What was published, and what the broker would not take."""

    taken: list[Poison] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    def to(self, *routes: str) -> dict[bytes, Poison]:
        """Those that went there, by body."""
        return {poison.body: poison for poison in self.taken if poison.route in routes}


ROUTES: Final = {
    "events": (EVENTS_EXCHANGE, _KEY),
    "queue": ("", "payment.high"),
    "waiting": (wait_queue(100), "payment.normal"),
    "dead": ("", "payment.dlq"),
    "stream": ("", HISTORY_STREAM),
    "broken": (EVENTS_EXCHANGE, _KEY),
    "flaky": (EVENTS_EXCHANGE, _KEY),
}
"""The ways to every queue that has a consumer; the last two carry events that are well formed."""
DEAD_ROUTES: Final = ("events", "queue", "waiting", "dead", "broken", "flaky")


def poisons(cases: dict[str, bytes], routes: Sequence[str] = tuple(ROUTES)) -> list[Poison]:
    found = []
    for number, (case, raw) in enumerate(cases.items()):
        for place, route in enumerate(routes):
            body = f"{{poison {number} {route}".encode()
            if route in ("broken", "flaky"):
                customer = "poison" if route == "broken" else "flaky"
                order = 1_000_000 + 10 * number + place
                body = cancelled(order, customer=customer).to_bytes()
            found.append(Poison(case, route, raw, body))
    return found


@dataclass
class Place:
    """A system's folder, its broker with the whole topology, and databases for all services."""

    url: str
    folder: Path
    deployment: Deployment

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)

    def saga(self, *arguments: str, **environment: str) -> Any:
        return CliRunner().invoke(
            app,
            [*arguments, "--data-dir", str(self.folder)],
            env={"COLUMNS": "200", **environment},
        )

    async def publish(self, found: Sequence[Poison]) -> Sent:
        """Publish each, and neighbours between them."""
        sent = Sent()
        async with RawClient(self.url) as client:
            for poison in found:
                exchange, key = ROUTES[poison.route]
                try:
                    await client.publish(exchange, key, poison.raw, poison.body)
                except Refused as error:
                    sent.refused[poison.case] = str(error)
                    await client.open()
                else:
                    sent.taken.append(poison)
        return sent

    async def greet(self, first: int, count: int = NEIGHBOURS) -> list[str]:
        """Publish well-formed events; returns their ids."""
        async with RawClient(self.url) as client:
            ids = []
            for order in range(first, first + count):
                envelope = cancelled(order)
                await client.publish(EVENTS_EXCHANGE, _KEY, b"\0\0", envelope.to_bytes())
                ids.append(envelope.id)
        return ids

    async def take(self, *queues: str) -> list[Message]:
        """What is in these queues, which stays there."""
        async with RawClient(self.url) as client:
            found = {queue: await client.drain(queue) for queue in queues}
        for queue, messages in found.items():
            await until(partial(_holds, self, queue, len(messages)))
        return [message for messages in found.values() for message in messages]

    async def depth(self, queue: str) -> int:
        async with await connect(self.url, name="test") as connection:
            channel = await connection.open_channel()
            return (await channel.look_at(queue)).message_count or 0

    async def strays(self) -> list[tuple[bytes, str]]:
        """The body of each, and why it is one."""
        table = history_store.strays

        def read(connection: sa.Connection) -> list[tuple[bytes, str]]:
            return [(r.body, r.reason) for r in connection.execute(sa.select(table))]

        return _read(self.deployment.database_urls["history"], read)

    async def inbox(self) -> set[str]:
        inbox = make_tables().inbox
        url = self.deployment.database_urls["payment"]
        found = _read(url, lambda connection: rows(connection, inbox))
        return {id_in_inbox(row[0]) for row in found}


def _read(url: str, work: Callable[[sa.Connection], T]) -> T:
    engine = sqlite_engine(url)
    try:
        with engine.connect().execution_options(reads=True) as connection:
            return work(connection)
    finally:
        engine.dispose()


async def _place(url: str, folder: Path) -> Place:
    names = [*TABLES, "history"]
    deployment = Deployment(
        amqp_url=url,
        http_urls={},
        database_urls={name: f"sqlite:///{folder / name}.db" for name in names},
        outside_urls={"provider": f"sqlite:///{folder / 'provider'}.db"},
    )
    deployment.save(folder)
    for name, tables in TABLES.items():
        engine = sqlite_engine(deployment.database_urls[name])
        tables.metadata.create_all(engine)
        if name == "payment":
            make_tables().metadata.create_all(engine)
        engine.dispose()
    await SandboxGateway(deployment.outside_urls["provider"]).close()
    history = await open_database(deployment.database_urls["history"], HISTORY)
    await history.close()
    async with await connect(url, name="test") as connection:
        await apply(topology_of(choreography()), await connection.channel())
    return Place(url, folder, Deployment.load(folder))


@asynccontextmanager
async def at_work(place: Place, url: str | None = None) -> AsyncIterator[None]:
    """The stand-in and the history's follower read."""
    broker = url or place.url
    tables = make_tables()
    (place.folder / "toy.db").unlink(missing_ok=True)
    (place.folder / "toy.db").symlink_to(place.folder / "payment.db")
    database = open_toy(place.folder, tables)
    publisher = BrokerPublisher(broker, "stand-in publisher")
    outbox = Outbox("payment", database, tables, publisher)
    kernel = Kernel(STAND_IN, database, tables, outbox)
    consumer = Consumer(STAND_IN, kernel, publisher, broker, drain_seconds=5)
    history = await open_database(place.deployment.database_urls["history"], HISTORY)
    follower = Follower(broker, history, PROJECTION)
    await outbox.open()
    await publisher.open(patience_seconds=5)
    tasks = [asyncio.create_task(work.run()) for work in (kernel, outbox, follower)]
    await follower.start(patience_seconds=10)
    await consumer.start()
    try:
        yield
        for task in tasks:
            assert not task.done(), "it has ended by itself"
    finally:
        await consumer.stop()
        await cancel_all(*tasks)
        await publisher.close()
        await database.close()
        await history.close()


@contextmanager
def at_work_meanwhile(place: Place) -> Iterator[None]:
    """The same in a thread, where commands have an event loop of their own."""
    loop = LoopThread("at work")
    working = AsyncExitStack()
    try:
        loop.ask(working.enter_async_context(at_work(place)))
        try:
            yield
        finally:
            loop.ask(working.aclose())
    finally:
        loop.close()


# --- what is to be found -----------------------------------------------------------------------


def carried(
    raw: bytes, *, version: str = "3"
) -> tuple[dict[str, bytes], list[bytes], dict[str, bytes], list[bytes]]:
    """What a message carries by itself: properties and headers; and what a copy of it has to put
    by, properties and headers as well. As a broker writes it: it brings headers into an order of
    its own, and has one tag for numbers of 64 bits."""
    values, headers = parts(raw)
    bound: tuple[str, ...] = ("expiration", "user_id")
    aside = {name: values.pop(name) for name in bound if name in values}
    plain: list[bytes] = []
    moved: list[bytes] = []
    names: list[bytes] = []
    for each in headers:
        name = each[1 : 1 + each[0]]
        names.append(name)
        if version.startswith("4") and name in names[:-1]:
            continue  # RabbitMQ 4 leaves out all but the first of a name.
        if name in (b"x-delivery-count", b"BCC"):
            continue  # RabbitMQ writes over the one, and hides the other.
        brokers = name.startswith((b"x-death", b"x-first-death-", b"x-last-death-"))
        ours = name.decode(errors="replace") in OURS
        (moved if name == b"CC" or brokers or ours else plain).append(_as_brokers_do(each))
    return values, sorted(plain), aside, sorted(moved)


def _as_brokers_do(each: bytes) -> bytes:
    tag = 1 + each[0]
    if each[tag : tag + 1] == b"L":
        return each[:tag] + b"l" + each[tag + 1 :]
    return each[:tag] + b"t\x01" if each[tag:] == b"t\x02" else each


def ours_of(raw: bytes) -> dict[str, bytes]:
    """The headers of ours, each with its tag."""
    _, headers = parts(raw)
    named = {
        each[1 : 1 + each[0]].decode(errors="replace"): each[1 + each[0] :] for each in headers
    }
    return {name: value for name, value in named.items() if name in OURS}


def check_carried(raw: bytes, poison: Poison, *, believed: bool, version: str) -> None:
    """A copy carries what the message did, byte for byte."""
    values, plain, aside, moved = carried(poison.raw, version=version)
    values_now, plain_now, _, _ = carried(raw)
    ours = ours_of(raw)
    assert values_now == values
    if LEFT_OUT in ours and LEFT_OUT not in ours_of(poison.raw):
        assert len(poison.raw) > 100_000
        assert [each for each in plain_now if each not in plain] == []
        return
    assert plain_now == plain
    if poison.route == "waiting" or believed:
        moved = [each for each in moved if not _is_ours(each) and b"death" not in each]
    if poison.route == "waiting":  # The broker puts that by itself, into its note.
        aside.pop("expiration", None)
    if aside or moved:
        kept_values, kept = parts(ours[KEPT][5:])
        assert kept_values == aside
        kept = [each for each in kept if not each.startswith(b"\x10x-delivery-count")]
        if poison.route == "waiting":  # It also has the broker's notes of its one wait.
            kept = [each for each in kept if b"death" not in each]
        assert sorted(map(_as_brokers_do, kept)) == moved


def _is_ours(each: bytes) -> bool:
    return each[1 : 1 + each[0]].decode(errors="replace") in OURS


def check_all_carried(
    messages: dict[bytes, Message], expected: dict[bytes, Poison], version: str
) -> None:
    problems = []
    for body, poison in expected.items():
        if poison.route == "dead":
            continue  # No code of ours has touched it.
        believed = poison.route in ("queue", "waiting")
        try:
            check_carried(messages[body].raw, poison, believed=believed, version=version)
        except (AssertionError, KeyError) as error:
            problems.append((poison.case, poison.route, f"{error!r}"[:300]))
    assert problems == []


def all_there(messages: Sequence[Message], expected: dict[bytes, Poison]) -> dict[bytes, Message]:
    found = {message.body: message for message in messages if message.body in expected}
    missing = [expected[body] for body in expected.keys() - found.keys()]
    assert [(poison.case, poison.route) for poison in missing] == []
    return found


# --- the suite ---------------------------------------------------------------------------------


async def _suffer(place: Place, routes: Sequence[str], every: int) -> tuple[Sent, str]:
    """Publish all cases as events, and of other routes each `every`th, while there is no consumer;
    then read, and publish each `every`th again."""
    async with RawClient(place.url) as client:
        version = client.version
    lost = LOST[version[0]]
    some = dict(list(CASES.items())[::every])
    found = poisons(CASES, routes)
    found = [p for p in found if p.route == "events" or p.case in some]
    found = [p for p in found if p.route != "waiting" or p.case not in lost]
    sent = await place.publish(found)
    neighbours = await place.greet(1)
    async with at_work(place):
        await until(lambda: _done(place, neighbours), seconds=DELIVERED_SECONDS)
        more = await place.publish(
            [Poison(p.case, "events", p.raw, p.body + b" again") for p in poisons(some, ["events"])]
        )
        neighbours += await place.greet(100)
        sent.taken += more.taken
        await until(lambda: _done(place, neighbours), seconds=DELIVERED_SECONDS)
        dead = sent.to(*DEAD_ROUTES)
        await until(lambda: _holds(place, "payment.dlq", len(dead)), seconds=DELIVERED_SECONDS)
        strays = sent.to("events", "stream")
        await until(lambda: _strayed(place, strays), seconds=DELIVERED_SECONDS)
    return sent, version


async def _done(place: Place, ids: Sequence[str]) -> bool:
    return set(ids) <= await place.inbox()


async def _holds(place: Place, queue: str, count: int) -> bool:
    return await place.depth(queue) >= count


async def _strayed(place: Place, expected: dict[bytes, Poison]) -> bool:
    return expected.keys() <= {body for body, _ in await place.strays()}


def _suite(place: Place, routes: Sequence[str] = tuple(ROUTES), every: int = 1) -> None:
    sent, version = place.run(_suffer(place, routes, every))
    assert sent.refused.keys() == REFUSED[version[0]]

    # Each is a dead letter, with its reason, and carries what it carried.
    resting = place.run(place.take("payment.dlq"))
    letters = all_there(resting, sent.to(*DEAD_ROUTES))
    for ways, reason in (
        (("events", "queue", "waiting"), b"undecodable"),
        (("broken", "flaky"), b"failed"),
    ):
        expected = sent.to(*ways)
        found = {ours_of(letters[body].raw)["x-saga-reason"][5:] for body in expected}
        assert found <= {reason}
        check_all_carried(letters, expected, version)

    # Those that came by the stream are in the history.
    reasons = dict(place.run(place.strays()))
    assert {reasons[body] for body in sent.to("events")} == {"malformed"}
    assert {reasons[body] for body in sent.to("stream")} <= {"malformed"}

    # Who only looks sees them, and takes no harm.
    # What the broker refused for the stream's sake, it has delivered to the queue before. Of one
    # message there are several copies, if the broker was too slow to confirm the first.
    count = len({message.body for message in resting})
    report = place.run(reconcile(place.deployment, settle_seconds=0.0))
    # Some cases are about an id, which all messages of the case have.
    assert count - 20 < report.dead_letters["payment"] <= count
    place.run(status(place.deployment, choreography()))
    if len(routes) == len(ROUTES):  # It waits a while, to look twice.
        _check_harmless(place.saga("reconcile"), (0, 1))

    _commands(place, sent, count)
    _replaying(place, sent, version)


def _check_harmless(done: Any, status: Sequence[int] = (0,)) -> Any:
    """No traceback, nothing that a terminal obeys, and JSON if it is to be JSON."""
    assert not done.exception or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code in status, done.output
    for text in (done.stdout, done.stderr):
        assert "Traceback" not in text
        odd = {char for line in text.split("\n") for char in line if not char.isprintable()}
        assert not odd, odd
    return done


def _json_of(done: Any) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(done.stdout, parse_constant=refuse)


WORST: Final = ("text for terminals", "our marks", "everything")


def _worst(exported: Sequence[dict[str, Any]], sent: Sent) -> list[str]:
    """The numbers of some letters. All are listed and exported; to show one takes a command."""
    bodies = {p.body.decode() for p in sent.taken if p.case in WORST and p.route == "events"}
    return [str(each["letter"]) for each in exported if each.get("payload_text") in bodies]


def _commands(place: Place, sent: Sent, count: int) -> None:
    """Every command on dead letters shows them harmlessly."""

    def dlq(*arguments: str, status: Sequence[int] = (0,), **environment: str) -> Any:
        return _check_harmless(place.saga("dlq", *arguments, **environment), status)

    for by in ("fingerprint", "letter"):
        dlq("list", "--by", by, status=(1,))
    listed = _json_of(dlq("list", "--by", "letter", "--json", status=(1,)))["list"]
    assert len(listed) == count
    lines = dlq("export", "--state", "all").stdout.splitlines()
    exported = [json.loads(line) for line in lines]
    assert len(exported) == count
    for number in _worst(exported, sent):
        dlq("show", number)
        assert _json_of(dlq("show", number, "--json"))["letter"] == int(number)
    dlq("replay", "--dry-run")
    dry = _json_of(dlq("replay", "--dry-run", "--json"))
    assert sum(dry["counts"].values()) == count

    one = str(listed[0]["letter"])
    dlq("edit", one, "--set", "a=1", status=(2,))
    dlq("edit", one, status=(0,), EDITOR="true")
    file = place.folder / "corrected.json"
    file.write_bytes(cancelled(7_777).to_bytes())
    assert _json_of(dlq("edit", one, "--file", str(file), "--json"))["changed"]
    dlq("discard", "--service", "payment", "--reason", "\x1b[2J poison", status=(2,))
    dlq("discard", "--service", "payment", "--reason", "[/] poison")
    assert _json_of(dlq("list", "--json"))["letters"] == 0
    assert len(
        _json_of(dlq("list", "--state", "discarded", "--by", "letter", "--json"))["list"]
    ) == (count - 1)
    dlq("purge", "--older-than", "200d", "--reason", "old")
    assert len(_json_of(dlq("restore", "--service", "payment", "--json"))["restored"]) == count - 1
    dlq("audit")
    _json_of(dlq("audit", "--json"))


def _replaying(place: Place, sent: Sent, version: str) -> None:
    """What is sent again is as it was first; and dies again, where it has to."""

    def replay(*arguments: str) -> Any:
        settings = ("--force", "--max-failing", "1", "--max-replays", "9", "--json")
        return _check_harmless(place.saga("dlq", "replay", *settings, *arguments), (0, 1))

    document = _json_of(replay("--timeout", "0.3"))
    assert document["stopped"] is None
    again = {
        m.body: m for m in place.run(place.take(*_QUEUES, HISTORY_STREAM[:0] or "payment.dlq"))
    }
    skipped = {entry["letter"] for entry in document["not_done"] if entry["state"] == "skipped"}
    expected = sent.to(*DEAD_ROUTES)
    there = [body for body in expected if body in again]
    assert len(there) >= len(expected) - len(skipped) - 1  # One was edited.
    check_all_carried(again, {body: expected[body] for body in there}, version)
    for body in there:
        assert not ours_of(again[body].raw).keys() - {KEPT, LEFT_OUT, REPLAYS}
    with at_work_meanwhile(place):
        back = partial(_holds, place, "payment.dlq", len(there))
        place.run(until(back, seconds=DELIVERED_SECONDS))
        done = _json_of(replay("--timeout", "30"))
        assert done["unanswered"] == 0
        assert done["failed"] >= len(there)


def test_nothing_is_stopped_and_everything_is_kept(amqp_url: str, tmp_path: Path) -> None:
    _suite(asyncio.run(_place(amqp_url, tmp_path)), ["events", "flaky"], every=4)


@pytest.mark.long
def test_nothing_is_stopped_by_whatever_way_it_comes(amqp_url: str, tmp_path: Path) -> None:
    _suite(asyncio.run(_place(amqp_url, tmp_path)))


@pytest.mark.long
def test_nothing_is_stopped_on_another_rabbitmq(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unpacked = Path(".rabbitmq4")
    if not (unpacked / "sbin").is_dir():
        pytest.skip("make rabbitmq4 unpacks it")
    monkeypatch.setenv("RABBITMQ_HOME", str(unpacked.absolute()))
    node = RabbitNode(tmp_path / "node")
    node.start()
    try:
        (folder := tmp_path / "system").mkdir()
        _suite(asyncio.run(_place(node.amqp_url, folder)))
    finally:
        node.kill()
        node.stop()


# --- generated ---------------------------------------------------------------------------------


@dataclass
class Batches:
    """A system at work, that is sent one batch of generated messages after the other."""

    place: Place
    version: str
    count: int = 0

    def send(self, lists: Sequence[bytes]) -> None:
        self.count += 1
        cases = {f"{self.count}.{n}": raw for n, raw in enumerate(lists)}
        found = [
            Poison(p.case, p.route, p.raw, p.body + b" %d" % self.count)
            for p in poisons(cases, ["events", "queue"])
        ]
        first = self.count * 1_000
        self.place.run(self._send(found, first))

    async def _send(self, found: Sequence[Poison], first: int) -> None:
        place = self.place
        sent = await place.publish(found)
        neighbours = await place.greet(first, 3)
        expected = sent.to(*DEAD_ROUTES)
        await until(lambda: _done(place, neighbours))
        await until(lambda: _holds(place, "payment.dlq", len(expected)))
        await until(lambda: _strayed(place, sent.to("events")))
        async with RawClient(place.url) as client:
            letters = all_there(await client.drain("payment.dlq"), expected)
            check_all_carried(letters, expected, self.version)
            await client.drop()


@pytest.fixture(scope="module")
def batches(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Batches]:
    with virtual_host() as url:
        place = asyncio.run(_place(url, tmp_path_factory.mktemp("batches")))
        with at_work_meanwhile(place):
            yield Batches(place, "3")


many = st.lists(property_lists, min_size=1, max_size=20)
_of_one_system = settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)


@settings(_of_one_system, max_examples=8, derandomize=True)
@given(many)
def test_generated_ones_stop_nothing(batches: Batches, lists: list[bytes]) -> None:
    batches.send(lists)


@pytest.mark.long
@settings(_of_one_system, max_examples=300)
@given(many)
def test_many_generated_ones_stop_nothing(batches: Batches, lists: list[bytes]) -> None:
    batches.send(lists)


# --- one byte at a time ------------------------------------------------------------------------


async def test_a_connection_that_gets_one_byte_at_a_time_works(
    amqp_url: str, tmp_path: Path
) -> None:
    place = await _place(amqp_url, tmp_path)
    port = yarl.URL(amqp_url).port
    assert port is not None
    async with Proxy(lambda: port) as proxy:
        proxy.trickle()
        url = str(yarl.URL(amqp_url).with_port(proxy.port))
        async with at_work(place, url):
            neighbours = await place.greet(1, 5)
            sent = await place.publish(
                poisons({"odd": CASES["names not UTF-8"]}, ["events", "flaky"])
            )
            await until(lambda: _done(place, neighbours))
            await until(lambda: _holds(place, "payment.dlq", 2))
            await until(lambda: _strayed(place, sent.to("events")))
