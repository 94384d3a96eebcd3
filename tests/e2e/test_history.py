"""The history of a whole system: complete whatever happens to its service, and enough to make a
database again that is gone.

All share a system, with other modules' tests as well; each leaves it at rest.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa

from order_saga.archive.view import Status
from order_saga.demo import demo
from order_saga.orders import Shares, plan
from order_saga.publish import next_plan, publish
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from payment_service.store import payments
from saga.archive import store
from saga.cli import main
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.history.archive import Archive
from saga.history.trace import stuck
from saga.http import client
from saga.local.system import System
from saga.reconcile import reconcile
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.stream import FIRST, last_offset, reading
from saga.status import status
from tests import forked
from tests.books import rows_of
from tests.e2e.test_saga import NOTHING_BUT_CONFIRMED, as_predicted
from tests.polling import until

SEED = 40_104
ORDERS = 60

in_one_loop = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def system(shared_system: System) -> System:
    """A system whose history service was down during a mixed load, and has caught up since."""
    deployment = shared_system.deployment
    await shared_system.start()
    shared_system.kill("history")
    load = await next_plan(deployment, ORDERS, SEED)
    as_predicted(await demo(deployment, choreography(), load, seed=SEED))
    assert await Archive(deployment).behind() > ORDERS
    await shared_system.start("history")
    assert await Archive(deployment).caught_up(60)
    return shared_system


async def saga(system: System, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `saga` on the system."""
    command = (forked.SAGA, *arguments, "--data-dir", str(system.folder))
    return await asyncio.to_thread(forked.run, *command)


async def published(deployment: Deployment) -> list[str]:
    """The ids of all messages in the stream, each as often as it is there."""
    found: list[str] = []
    connection = await connect(deployment.amqp_url, name="test")
    async with connection:
        last = await last_offset(connection)
        assert last is not None
        async with reading(connection, FIRST) as reader:
            offset = -1
            while offset < last:
                records = await reader.take(1_000, 10)
                assert records
                found += (record.key for record in records)
                offset = records[-1].offset
    return found


async def kept(deployment: Deployment) -> list[str]:
    """The ids of all that is kept, of events and of what is none."""
    queries = sa.select(store.events.c.event_id), sa.select(store.strays.c.key)
    return await Archive(deployment).read(
        lambda c: [id for query in queries for id in c.scalars(query)]
    )


async def orders_with(system: System, **filters: str) -> list[dict[str, Any]]:
    async with http(system, "history") as service:
        found = (await service.get("/orders", params={"limit": 500, **filters})).json()
    orders: list[dict[str, Any]] = found["orders"]
    return orders


def http(system: System, service: str) -> httpx.AsyncClient:
    return client(system.deployment.http_urls[service][0], 30)


# --- complete ---------------------------------------------------------------------------------


@in_one_loop
async def test_after_its_service_was_down_the_history_is_complete_with_no_doubles(
    system: System,
) -> None:
    ids = await published(system.deployment)

    assert sorted(await kept(system.deployment)) == sorted(set(ids))
    assert len(await orders_with(system)) >= ORDERS


@pytest.mark.long
@in_one_loop
async def test_a_fresh_database_catches_up_from_the_first_event(system: System) -> None:
    before = sorted(await kept(system.deployment))
    system.kill("history")
    for suffix in ("", "-wal", "-shm"):
        (system.folder / f"history.db{suffix}").unlink(missing_ok=True)
    await system.start("history")
    assert await Archive(system.deployment).caught_up(60)

    assert sorted(await kept(system.deployment)) == before


# --- told -------------------------------------------------------------------------------------


@pytest.mark.long
@in_one_loop
async def test_the_trace_of_an_order_that_died_and_was_replayed_is_what_happened(
    system: System,
) -> None:
    load = await next_plan(system.deployment, 20, SEED)
    as_predicted(await demo(system.deployment, choreography(), load, seed=SEED, outage=True))
    assert await Archive(system.deployment).caught_up(60)
    replayed = ("dlq", "list", "--by", "letter", "--state", "done", "--service", "payment")
    letters = json.loads((await saga(system, *replayed, "--json")).stdout)["list"]
    confirmed = {order["order_id"] for order in await orders_with(system, status="confirmed")}
    order = next(row["order"] for row in letters if row["order"] in confirmed)
    done = await saga(system, "trace", order)

    assert done.returncode == 0, done.stderr
    head, lanes, *rows, end = done.stdout.splitlines()
    assert head.startswith(f"order {order} confirmed after ")
    ours = ["order", "inventory", "payment", "notification"]
    assert [lane for lane in lanes.split() if lane in ours] == ours
    assert end == "no participant owes anything"
    marks = [
        "●─ order.placed ",
        "●─ stock.reserved ",
        "✗ stock.reserved is dead letter ",
        "↻ stock.reserved replayed (replay ",
        " payment.charged ─●",
        "■─ order.confirmed ",
        "● notification.begun",
        "● notification.sent",
    ]
    assert len(rows) == len(marks)
    assert [mark in row for mark, row in zip(marks, rows, strict=True)] == [True] * len(marks)
    assert "after 4 tries" in rows[2]
    assert "GatewayUnavailable" in rows[2]
    assert "waited " in rows[4]


@pytest.mark.long
@in_one_loop
async def test_the_trace_of_an_order_that_was_retried_says_so(system: System) -> None:
    gateway = SandboxGateway(system.deployment.outside_urls["provider"])
    gateway.set_fault(Fault(FaultMode.UNAVAILABLE))
    order = await place(system)
    await until(lambda: waits(system))
    waiting = await saga(system, "trace", order)
    gateway.set_fault(Fault(FaultMode.NONE))
    await gateway.close()
    await ended(system, order)
    done = await saga(system, "trace", order)

    owed = waiting.stdout.splitlines()[-1]
    assert "? owes payment.charged, payment.declined or payment.voided" in owed
    assert "due in" in owed
    assert "stock.reserved is waiting for try " in owed
    (charged,) = (line for line in done.stdout.splitlines() if "payment.charged" in line)
    assert ", try " in charged


@in_one_loop
async def test_a_stuck_order_names_who_owes_the_next_event_and_since_when(system: System) -> None:
    system.kill("payment")
    order = await place(system)
    await until(lambda: told(system, order, events=2))
    traced = json.loads((await saga(system, "trace", order, "--json")).stdout)
    since = datetime.fromisoformat(traced["events"][-1]["time"])
    soon, later = since, since + timedelta(days=300)
    found_soon = await stuck(system.deployment, choreography(), now=soon)
    found = await stuck(system.deployment, choreography(), now=later)
    await system.start("payment")
    await ended(system, order)
    fine = await saga(system, "stuck")

    (debt,) = traced["owed"]
    assert (debt["participant"], debt["to"]["type"], debt["late"]) == (
        "payment",
        "stock.reserved",
        False,
    )
    assert debt["where"]["place"] == "queued"
    assert debt["since"] == traced["events"][-1]["time"]
    assert list(found_soon.subjects) == []
    assert (fine.returncode, fine.stdout) == (0, "nothing is overdue\n")
    (one,) = found.subjects
    assert one.story.subject == order
    assert [debt.participant for debt in one.debts] == ["payment", "order"]
    assert found.whereabouts.of("payment", traced["events"][-1]["id"]).place == "queued"


@pytest.mark.long
@in_one_loop
async def test_an_order_is_shown_as_it_was(system: System) -> None:
    order = (await orders_with(system, status="confirmed"))[0]["order_id"]
    async with http(system, "history") as service:
        steps = (await service.get(f"/orders/{order}/timeline")).json()["steps"]
        then = (await service.get(f"/orders/{order}", params={"at": steps[1]["time"]})).json()
    at = ("--at", steps[1]["time"])
    shown = json.loads((await saga(system, "show", order, *at, "--json")).stdout)
    until_then = ("--before", steps[2]["id"])
    before = json.loads((await saga(system, "show", order, *until_then, "--json")).stdout)

    assert (then["status"], then["stock"], then["payment"]) == ("pending", "held", "none")
    assert shown["view"]["stock"] == "held"
    assert [state["status"] for state in shown["participants"]["inventory"]] == ["held"]
    assert shown["participants"]["payment"] == []
    assert before == shown


BAD_QUESTIONS: dict[str, tuple[list[str], str]] = {
    "an unknown order": (["trace", "9b695b7c-423b-5f77-b29e-1b10bc1cc6cc"], "no events about"),
    "nothing that it knows": (["trace", "17"], "no events about '17'"),
    "nothing to be known": (["trace", "a\nb"], "is nothing that an event may be about"),
    "no format": (["trace", "9b695b7c-423b-5f77-b29e-1b10bc1cc6cc", "--format", "png"], "png"),
    "no time": (
        ["show", "9b695b7c-423b-5f77-b29e-1b10bc1cc6cc", "--at", "noon"],
        "'noon' is no time with an offset",
    ),
    "no service": (
        ["history", "rebuild", "shop", "--into", "sqlite:///x.db"],
        "there is no participant 'shop'",
    ),
    "no database": (["history", "rebuild", "order"], "--into"),
    "no file": (["history", "import", "nothing.jsonl"], "cannot read nothing.jsonl"),
    "no kind of file": (["history", "export", "history.zip"], "end its name in .jsonl.gz"),
}


@pytest.mark.parametrize(("arguments", "words"), BAD_QUESTIONS.values(), ids=BAD_QUESTIONS.keys())
def test_a_bad_question_is_one_line_and_exit_status_2_or_1_where_it_is_only_unknown(
    arguments: list[str],
    words: str,
    system: System,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["saga", *arguments, "--data-dir", str(system.folder)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as exit:
        main()
    printed = capsys.readouterr()

    assert exit.value.code == (1 if "no events" in words else 2)
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("error: ")
    assert words in line


# --- made again -------------------------------------------------------------------------------


@pytest.mark.long
@in_one_loop
async def test_verify_finds_a_row_corrupted_by_hand_and_nothing_else(system: System) -> None:
    good = await saga(system, "history", "verify")
    assert (good.returncode, good.stderr) == (0, ""), good.stdout
    assert "the databases are what the events tell" in good.stdout
    order = (await orders_with(system, status="confirmed"))[0]["order_id"]
    more_by(system, 1, order)
    found = await saga(system, "history", "verify", "--json")
    more_by(system, -1, order)

    assert found.returncode == 1
    (difference,) = json.loads(found.stdout)["differences"]
    assert (difference["table"], difference["key"], difference["column"]) == (
        "payments",
        order,
        "amount_cents",
    )


@pytest.mark.long
@in_one_loop
async def test_databases_that_are_gone_are_made_again_and_the_system_goes_on(
    system: System,
) -> None:
    await made_again(system, 40)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@in_one_loop
async def test_after_2000_orders_databases_that_are_gone_are_made_again(
    database: Any, tmp_path: Path
) -> None:
    async with System(tmp_path, database=database, disposable=True) as system:
        load = plan(2_000, SEED)
        as_predicted(await demo(system.deployment, choreography(), load, seed=SEED, outage=True))
        await made_again(system, 500)


async def made_again(system: System, more: int) -> None:
    """Stop every service, delete two databases, rebuild them, start again, and order more."""
    assert await Archive(system.deployment).caught_up(60)
    for service in system.services:
        system.kill(service)
    urls = system.deployment.database_urls
    before = {name: await rows_of(name, urls[name]) for name in ("inventory", "payment")}
    for name in ("inventory", "payment"):
        into = replaced(system, name)
        done = await saga(system, "history", "rebuild", name, "--into", into, "--json")
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["unanswered"] == []
    told = await events_and_causes(system.deployment)
    for name in ("inventory", "payment"):
        after = await rows_of(name, system.deployment.database_urls[name])
        # A customer's command that led to nothing, or a key that was noted, is in no event.
        before[name]["inbox"] &= told
        assert after == before[name], name
    await system.start()

    load = await next_plan(system.deployment, more, SEED + 1)
    as_predicted(await demo(system.deployment, choreography(), load, seed=SEED + 1))
    assert (await reconcile(system.deployment)).violations == ()
    assert (await saga(system, "history", "verify")).returncode == 0


async def events_and_causes(deployment: Deployment) -> set[tuple[str, ...]]:
    queries = sa.select(store.events.c.event_id), sa.select(store.events.c.causation)
    return await Archive(deployment).read(
        lambda c: {tuple(row) for query in queries for row in c.execute(query)}
    )


def replaced(system: System, name: str) -> str:
    """An empty database in the place of a service's."""
    url = system.deployment.database_urls[name]
    if system.cluster is not None:
        system.cluster.drop_database(name)
        return system.cluster.create_database(name)
    for suffix in ("", "-wal", "-shm"):
        (system.folder / f"{name}.db{suffix}").unlink(missing_ok=True)
    return url


# --- long runs --------------------------------------------------------------------------------


@pytest.mark.long
@pytest.mark.timeout(900)
@in_one_loop
async def test_a_history_that_was_down_during_2000_orders_catches_up_faster_than_the_saga_goes(
    tmp_path: Path,
) -> None:
    async with System(tmp_path, disposable=True) as system:
        archive = Archive(system.deployment)
        system.kill("history")
        began = time.monotonic()
        load = plan(2_000, SEED)
        as_predicted(await demo(system.deployment, choreography(), load, seed=SEED))
        saga_seconds = time.monotonic() - began
        await system.start("history")
        began = time.monotonic()
        assert await archive.caught_up(120)
        assert time.monotonic() - began < saga_seconds
        ids = await published(system.deployment)
        assert sorted(await kept(system.deployment)) == sorted(set(ids))


async def place(system: System) -> str:
    """Place an order that is to be confirmed."""
    load = await next_plan(system.deployment, 1, SEED + 2, Shares(**NOTHING_BUT_CONFIRMED))
    sent = await publish(system.deployment, load)
    (order,) = sent.expected
    return str(order)


async def waits(system: System) -> bool:
    return bool((await status(system.deployment, choreography())).waits)


async def told(system: System, order: str, events: int) -> bool:
    async with http(system, "history") as service:
        found = await service.get(f"/orders/{order}")
    return bool(found.status_code == httpx.codes.OK and found.json()["events"] == events)


async def ended(system: System, order: str) -> None:
    async def confirmed() -> bool:
        async with http(system, "history") as service:
            found = await service.get(f"/orders/{order}")
        return bool(found.json().get("status") == Status.CONFIRMED)

    await until(confirmed)


def more_by(system: System, cents: int, order: str) -> None:
    """Make a payment larger than it was."""
    engine = sqlite_engine(system.deployment.database_urls["payment"])
    with engine.begin() as connection:
        changed = payments.update().where(payments.c.order_id == order)
        amount = payments.c.amount_cents + cents
        assert connection.execute(changed.values(amount_cents=amount)).rowcount == 1
    engine.dispose()
