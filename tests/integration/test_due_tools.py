"""What is due is listed and brought forward: over HTTP, and by `saga due`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa

from saga import dues as dues_of_all
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.dues import DuePlace
from saga.envelope import rfc3339
from saga.runtime import dues
from saga.runtime.kernel.tables import utc_now
from tests import forked
from tests.command import saga
from tests.integration.alarms import EVERY, NOON, Alarm, StopAlarm
from tests.integration.kernels import client_of
from tests.integration.served import Served, serving
from tests.integration.test_due import BEFORE, Clock, Service, service

WISH = {"who": "ada@shop", "reason": "the customer waits"}


@pytest.fixture
async def alarms(database_url: str) -> AsyncIterator[Service]:
    async with service(database_url, Clock(), keepers=0) as alarms:
        yield alarms


def asking(alarms: Service) -> httpx.AsyncClient:
    return client_of(alarms.replica, partial(dues.routes, kinds=[Alarm]))


async def audit_of(alarms: Service) -> list[Any]:
    table = alarms.replica.tables.due_audit
    assert table is not None
    query = sa.select(table).order_by(table.c.at)
    return await alarms.replica.database.read(lambda c: list(c.execute(query)))


# --- over HTTP ------------------------------------------------------------------------------------


async def test_what_is_due_is_listed_the_first_in_front(alarms: Service) -> None:
    for key, hours in (("b", 2), ("a", 1), ("c", 3)):
        await alarms.set(key, NOON + hours * EVERY)
    await alarms.replica.kernel.give(StopAlarm(key="c"))
    async with asking(alarms) as client:
        found = (await client.get("/due")).json()
        first = (await client.get("/due", params={"limit": 1})).json()

    assert [(one["state"], one["key"], one["command"]) for one in found] == [
        ("Alarm", "a", "alarm.ring"),
        ("Alarm", "b", "alarm.ring"),
    ]
    assert [one["key"] for one in first] == ["a"]
    assert found[0]["late_seconds"] < 0


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
async def test_a_state_that_cannot_be_read_is_listed_with_the_reason(alarms: Service) -> None:
    await alarms.set("a")
    await alarms.set("b")
    await alarms.execute("""UPDATE alarms SET "at" = 'x' WHERE key = 'a'""")
    async with asking(alarms) as client:
        found = {one["key"]: one for one in (await client.get("/due")).json()}

    assert "cannot be read" in found["a"]["why"]
    assert found["a"]["command"] is None
    assert found["b"]["command"] == "alarm.ring"


async def test_what_is_brought_forward_is_done_and_noted_with_who_and_why(alarms: Service) -> None:
    await alarms.set("a")
    async with asking(alarms) as client:
        answer = await client.post("/due/Alarm/a/bring-forward", json=WISH)
        again = await client.post("/due/Alarm/a/bring-forward", json=WISH)

    assert answer.status_code == 200, answer.text
    assert answer.json()["events"] == ["alarm.rang"]
    assert await alarms.has_rung("a", 1)
    assert again.status_code == 404
    assert "nothing is due about Alarm 'a'" in again.json()["detail"]
    (entry,) = await audit_of(alarms)
    assert (entry.who, entry.reason) == (WISH["who"], WISH["reason"])
    assert (entry.kind, entry.key, entry.command) == ("Alarm", "a", "alarm.ring")
    assert (entry.at, entry.due_at, entry.outcome) == (BEFORE, NOON, "alarm.rang")


async def test_what_fails_when_it_is_brought_forward_is_noted_and_is_due_as_before(
    alarms: Service,
) -> None:
    await alarms.set("silent")
    async with asking(alarms) as client:
        answer = await client.post("/due/Alarm/silent/bring-forward", json=WISH)

    assert answer.status_code == 500
    assert "failed, and is due as before: alarm.ring leaves alarm.ring due" in answer.text
    (entry,) = await audit_of(alarms)
    assert entry.outcome.startswith("failed: DueStays: ")
    assert await alarms.due_at("silent") == NOON


@pytest.mark.parametrize(
    ("path", "wish", "status", "said"),
    [
        ("/due/Clock/a/bring-forward", WISH, 404, "Not Found"),
        ("/due/Alarm/nobody/bring-forward", WISH, 404, "nothing is due about Alarm 'nobody'"),
        ("/due/Alarm/a/bring-forward", {"who": "ada"}, 422, "reason"),
        ("/due/Alarm/a/bring-forward", {**WISH, "reason": ""}, 422, "reason"),
        ("/due/Alarm/a/bring-forward", {**WISH, "who": "a\u202eda"}, 422, "who"),
        ("/due/Alarm/a/bring-forward", {**WISH, "reason": "x" * 1_001}, 422, "reason"),
    ],
)
async def test_what_cannot_be_brought_forward_is_a_problem_and_changes_nothing(
    path: str, wish: dict[str, str], status: int, said: str, alarms: Service
) -> None:
    await alarms.set("a")
    async with asking(alarms) as client:
        answer = await client.post(path, json=wish)

    assert answer.status_code == status
    assert said in answer.json()["detail"]
    assert await audit_of(alarms) == []
    assert await alarms.has_rung("a", 0)


# --- saga due -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """An order service with a pending order, and the folder that tells where it is."""

    served: Served
    folder: Path
    order: str

    async def due(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `saga due` in a process of its own: this one serves."""
        environment = os.environ | {"DATA_DIR": str(self.folder), "COLUMNS": "250"}
        command = partial(forked.run, forked.SAGA, "due", *arguments, environment=environment)
        return await asyncio.to_thread(command)


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    async with (
        serving("order_service", tmp_path) as served,
        serving("notification_service", tmp_path) as other,
    ):
        order = await placed(served)
        Deployment(
            amqp_url="amqp://127.0.0.1:1/",
            http_urls={
                one.name: ("http://127.0.0.1:1", f"http://127.0.0.1:{one.port}")
                for one in (served, other)
            },
            database_urls={
                one.name: f"sqlite:///{tmp_path / one.name}.db" for one in (served, other)
            },
        ).save(tmp_path)
        yield Shop(served, tmp_path, order)


async def placed(served: Served) -> str:
    """The id of an order that waits for what comes of it, or for its deadline."""
    body = {
        "customer": "ada",
        "currency": "EUR",
        "lines": [{"sku": "tea", "quantity": 1, "unit_price_cents": 250}],
    }
    headers = [
        (b"Content-Type", b"application/json"),
        (b"Idempotency-Key", str(uuid4()).encode()),
    ]
    answer = await served.ask("POST", "/orders", headers, json.dumps(body).encode())
    assert answer.status == 202, answer.body
    return str(answer.json["order_id"])


async def test_saga_due_lists_what_is_due_when(shop: Shop) -> None:
    shown, as_json = await shop.due(), await shop.due("--json")
    narrowed = [await shop.due(*a) for a in ([shop.order], ["--participant", "order"])]
    nothing = [await shop.due(*a) for a in (["nobody"], ["--participant", "notification"])]

    assert shown.returncode == 0, shown.stderr
    assert shop.order in shown.stdout
    assert "order.expire" in shown.stdout
    (one,) = json.loads(as_json.stdout)["due"]
    assert (one["participant"], one["state"], one["subject"]) == ("order", "Order", shop.order)
    assert one["command"] == "order.expire"
    assert one["at"] < rfc3339(utc_now() + timedelta(minutes=5))
    assert all(shop.order in done.stdout for done in narrowed)
    assert {done.stdout for done in nothing} == {"nothing is due\n"}


async def test_what_is_due_comes_in_pages_that_leave_nothing_out(shop: Shop) -> None:
    orders = {shop.order, *[await placed(shop.served) for _ in range(4)]}
    # At the same time, but for one; later than any timekeeper looks.
    later = sa.text("UPDATE orders SET due_at = 4000000000000000 WHERE order_id <> :order")
    await shop.served.database.transaction(lambda c: c.execute(later, {"order": shop.order}))
    deployment, graph = Deployment.load(shop.folder), choreography()
    seen: list[str] = []
    after: DuePlace | None = None
    while True:
        page = await dues_of_all.page(deployment, graph, limit=2, after=after)
        assert (page.due, page.overdue) == (5, 0)
        seen += [item.subject for item in page.items]
        if (after := page.next) is None:
            break

    assert seen == [shop.order, *sorted(orders - {shop.order})]
    one = await dues_of_all.page(deployment, graph, limit=2, subject=shop.order)
    assert ([item.subject for item in one.items], one.next) == ([shop.order], None)
    nobody = await dues_of_all.page(deployment, graph, limit=2, participant="notification")
    assert (nobody.items, nobody.next, nobody.due) == ([], None, 0)


async def test_saga_due_has_it_done_now_and_keeps_who_wanted_it(shop: Shop) -> None:
    nothing = await shop.due("--audit")
    done = await shop.due(shop.order, "--bring-forward", "--reason", "the customer waits", "--json")
    again = await shop.due(shop.order, "--bring-forward", "--reason", "the customer waits")
    shown, kept = await shop.due("--audit"), await shop.due("--audit", "--json")

    assert nothing.stdout == "nothing was brought forward\n"
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == ["order.cancelled"]
    order = await shop.served.ask("GET", f"/orders/{shop.order}")
    assert (order.json["status"], order.json["reason"]) == ("cancelled", "deadline_exceeded")
    assert again.returncode == 1
    assert again.stderr == (f"error: nothing is due about {shop.order}; `saga due` lists what is\n")
    (entry,) = json.loads(kept.stdout)["entries"]
    assert "@" in entry["who"]
    assert (entry["reason"], entry["outcome"]) == ("the customer waits", "order.cancelled")
    assert "the customer waits" in shown.stdout


async def test_saga_due_ends_with_1_where_something_should_have_been_done(shop: Shop) -> None:
    await shop.served.database.transaction(
        lambda c: c.execute(sa.text("UPDATE orders SET lines = '{', due_at = 1"))
    )
    done, as_json = await shop.due(), await shop.due("--json")

    assert (done.returncode, as_json.returncode) == (1, 1)
    assert "cannot be read" in json.loads(as_json.stdout)["due"][0]["why"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bring-forward", "--reason", "x"], "needs the subject"),
        (["x", "--bring-forward"], "needs a --reason"),
        (["x", "--reason", "x"], "--reason is for --bring-forward"),
        (["x", "--bring-forward", "--reason", "x", "--audit"], "exclude each other"),
        (["--participant", "payment"], "nothing is ever due in 'payment'; it is in"),
        (["x", "--bring-forward", "--reason", "x" * 1_001], "write at most 1000"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={}).save(tmp_path)
    done = saga("due", *arguments, DATA_DIR=str(tmp_path))

    assert done.returncode == 2
    assert said in done.stderr


async def test_a_service_that_does_not_run_is_named(shop: Shop) -> None:
    deployment = Deployment.load(shop.folder)
    urls = {"order": ("http://127.0.0.1:1",)}
    deployment.model_copy(update={"http_urls": urls}).save(shop.folder)
    done = await shop.due(shop.order, "--bring-forward", "--reason", "x")

    assert done.returncode == 1
    assert done.stderr == "error: no service order runs at http://127.0.0.1:1; start it\n"
