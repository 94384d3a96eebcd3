"""The whole system under load, killed and repeated: what is promised to its users."""

from __future__ import annotations

import asyncio
import functools
import random
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from order_saga.demo import DemoResult, demo
from order_saga.orders import OrderLoad, Shares, plan
from order_saga.publish import next_plan, publish
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.local.system import System
from saga.reconcile import reconcile
from saga.reconcile.broker import read_history
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.status import status
from tests.messages import message_of
from tests.ordering import Recorder
from tests.polling import until

SEED = 20301
NOTHING_BUT_CONFIRMED = {
    "out_of_stock": 0.0,
    "mispriced": 0.0,
    "declined": 0.0,
    "cancelled": 0.0,
    "malformed": 0.0,
}

in_one_loop = pytest.mark.asyncio(loop_scope="session")


def as_predicted(result: DemoResult) -> None:
    """Every order ended as its seed says, none for want of time, and the books are right."""
    assert result.unexpected == [], f"seed {result.seed}"
    assert result.report.violations == (), f"seed {result.seed}"
    assert result.to_json()["outcomes"]["cancelled"]["deadline_exceeded"] == 0


@in_one_loop
@pytest.mark.parametrize(
    "victim",
    [
        "payment",
        pytest.param("order", marks=pytest.mark.long),
        pytest.param("inventory", marks=pytest.mark.long),
    ],
)
async def test_a_service_killed_in_the_middle_of_a_load_changes_no_outcome(
    victim: str, system: System
) -> None:
    ended = 0
    load = await next_plan(system.deployment, 200, SEED)

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    def reached(orders: int) -> bool:
        return ended >= orders or running.done()

    running = asyncio.create_task(
        demo(system.deployment, choreography(), load, seed=SEED, ended=count)
    )
    for share in (50, 100):
        await until(functools.partial(reached, share))
        system.kill(victim)
        await system.start(victim)
    as_predicted(await running)


@pytest.mark.long
async def test_a_system_that_was_stopped_goes_on_where_it_was(tmp_path: Path) -> None:
    for seed in (SEED, SEED + 1):
        async with System(tmp_path) as system:
            load = plan(50, seed)
            as_predicted(await demo(system.deployment, choreography(), load, seed=seed))


@in_one_loop
async def test_with_all_inboxes_emptied_and_every_event_delivered_again_nothing_changes(
    system: System,
) -> None:
    graph = choreography()
    load = await next_plan(system.deployment, 100, SEED)
    as_predicted(await demo(system.deployment, graph, load, seed=SEED))
    for service in system.services:
        system.kill(service)
    before = books(system.deployment)
    for participant in graph.participants:
        assert empty_inbox(system.deployment, participant.name) > 0
    await deliver_again(system.deployment, graph)
    await system.start()
    await until(lambda: rests(system.deployment, graph))

    assert books(system.deployment) == before
    assert (await reconcile(system.deployment)).violations == ()


# What a restart changes: who did what when, not what there is.
_NOT_BOOKS = {"inbox", "outbox_leases"}


def books(deployment: Deployment) -> dict[str, list[Any]]:
    """Every row of every participant's tables of states, the provider's ledger included."""
    found: dict[str, list[Any]] = {}
    urls = [deployment.database_urls[p.name] for p in choreography().participants]
    for url in (*urls, deployment.outside_urls["provider"]):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection:
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            for (table,) in tables.fetchall():
                if table not in _NOT_BOOKS:
                    rows = connection.execute(f'SELECT * FROM "{table}"')  # noqa: S608
                    found[f"{url}/{table}"] = sorted(rows.fetchall(), key=repr)
    return found


def empty_inbox(deployment: Deployment, service: str) -> int:
    path = deployment.database_urls[service].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection, connection:
        return connection.execute("DELETE FROM inbox").rowcount


async def deliver_again(
    deployment: Deployment, graph: Choreography, dice: random.Random | None = None
) -> None:
    """Publish every event of the history again, in its order or, with dice, in any."""
    recorder = Recorder(graph)
    async with await connect(deployment.amqp_url, name="test") as connection:
        await read_history(connection, recorder)
        if dice is not None:
            dice.shuffle(recorder.published)
        channel = await connection.channel(on_return_raises=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await asyncio.gather(
            *(exchange.publish(message_of(body), key) for key, body in recorder.published)
        )


async def rests(deployment: Deployment, graph: Choreography) -> bool:
    return (await status(deployment, graph)).at_rest


async def waiting(system: System, load: OrderLoad, *more: OrderLoad) -> None:
    """Leave a load in the order service's intake queues, the service being down."""
    system.kill("order")
    for part in (load, *more):
        await publish(system.deployment, part, direct=True)


def ends(deployment: Deployment) -> dict[str, int]:
    """Keyed by priority: how many orders have ended; also `urgent_first` once an urgent one has."""
    path = deployment.database_urls["order"].removeprefix("sqlite:///")
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute(
            "SELECT priority, count(*) FROM orders WHERE ended_at IS NOT NULL GROUP BY priority"
        )
        return {"high": 0, "normal": 0} | dict(rows.fetchall())


@pytest.mark.long
async def test_an_urgent_order_placed_last_overtakes_95_percent_of_5000_waiting_ones(
    tmp_path: Path,
) -> None:
    async with System(tmp_path, disposable=True) as system:
        await waiting(
            system,
            plan(5_000, SEED, Shares(high=0.0, **NOTHING_BUT_CONFIRMED)),
            plan(1, SEED + 1, Shares(high=1.0, **NOTHING_BUT_CONFIRMED)),
        )
        await system.start("order")
        await until(lambda: ends(system.deployment)["high"] == 1)
        path = system.deployment.database_urls["order"].removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection:
            (before,) = connection.execute(
                "SELECT count(*) FROM orders WHERE priority = 'normal' AND ended_at <= "
                "(SELECT ended_at FROM orders WHERE priority = 'high')"
            ).fetchone()
        assert before <= 250


@pytest.mark.long
async def test_normal_orders_go_on_under_saturating_urgent_load(tmp_path: Path) -> None:
    """Each service gives them an eighth, as the kernel's own test counts. Here it shows that this
    gets through all of them, however busy the machine is with other things."""
    async with System(tmp_path, disposable=True) as system:
        await waiting(
            system,
            plan(3_000, SEED, Shares(high=1.0, **NOTHING_BUT_CONFIRMED)),
            plan(1_000, SEED + 1, Shares(high=0.0, **NOTHING_BUT_CONFIRMED)),
        )
        await system.start("order")
        await until(lambda: sum(ends(system.deployment).values()) >= 2_500)
        path = system.deployment.database_urls["order"].removeprefix("sqlite:///")
        with closing(sqlite3.connect(path)) as connection:
            ended = connection.execute(
                "SELECT priority FROM orders WHERE ended_at > 0 ORDER BY ended_at LIMIT 2500"
            ).fetchall()
        # The first ones ended before any normal order can have come through all services.
        normal = sum(priority == "normal" for (priority,) in ended[750:])
        assert len(ended[750:]) // 20 <= normal <= len(ended[750:]) // 2
