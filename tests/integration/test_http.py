"""The services over HTTP, as a client and an operator meet them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yarl
from fastapi.openapi.models import OpenAPI
from prometheus_client.parser import text_string_to_metric_families

from common.events import LINES_MAX, PaymentCharged
from saga.broker.setup import apply_topology
from saga.discovery import choreography
from saga.envelope import wrap
from saga.http import client
from saga.local.system import System
from saga.message import Priority
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.runtime.problem import PROBLEM
from saga.runtime.settings import Settings
from saga.runtime.web import ERRORS_MAX
from tests.faults.proxy import Proxy
from tests.forked import spawn
from tests.messages import message_of
from tests.polling import until

TIMEOUT_SECONDS = 60.0
BODY_MAX_BYTES = Settings.model_fields["body_max_bytes"].default
HUGE_BYTES = 10_000_000
JSON = {"Content-Type": "application/json"}

LINE = {"sku": "A", "quantity": 1, "unit_price_cents": 100}
ORDER = {"customer": "c", "currency": "EUR", "lines": [LINE]}
STOCK = {"sku": "A", "quantity": 1000, "unit_price_cents": 100, "currency": "EUR"}


# --- what the tests run against -------------------------------------------------------------------


@contextlib.contextmanager
def running(system: System, *services: str) -> Iterator[System]:
    """The system with these services, or all, for as many tests as one likes."""
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
        try:
            runner.run(system.start(*services))
            yield system
        finally:
            runner.run(system.stop())


VirtualHost = Callable[[], contextlib.AbstractContextManager[str]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, virtual_host: VirtualHost) -> Iterator[System]:
    """The order service on its own: no participant reacts to its events, so orders stay pending."""
    with virtual_host() as url:
        system = System(tmp_path_factory.mktemp("alone"), amqp_url=url, spawn=spawn)
        with running(system, "order"):
            yield system


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, virtual_host: VirtualHost) -> Iterator[System]:
    """All services."""
    with virtual_host() as url:
        system = System(tmp_path_factory.mktemp("whole"), amqp_url=url, spawn=spawn)
        with running(system):
            yield system


@pytest.fixture
async def orders(alone: System) -> AsyncIterator[httpx.AsyncClient]:
    async with http(alone, "order") as service:
        yield service


def http(system: System, service: str) -> httpx.AsyncClient:
    return client(system.deployment.http_urls[service][0], TIMEOUT_SECONDS)


def key() -> str:
    """An unused idempotency key."""
    return uuid4().hex


def assert_problem(answer: httpx.Response, status: int, *words: str) -> dict[str, Any]:
    """It is a problem as RFC 9457 has it, and its detail says all these words."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == PROBLEM
    problem: dict[str, Any] = answer.json()
    assert problem["status"] == status
    assert problem["type"] == "about:blank"
    assert problem["title"]
    for word in words:
        assert word in problem["detail"]
    return problem


async def events_about_orders(system: System, http: httpx.AsyncClient) -> Counter[str]:
    """How often each order's `order.placed` was published up to now.

    Events are published in the order of their commits, except those the broker failed to confirm.
    """
    last = (await http.post("/orders", json=ORDER)).json()["order_id"]
    seen: Counter[str] = Counter()
    async with await connect(system.deployment.amqp_url, name="test") as connection:
        channel = await connection.channel()
        queue = await channel.get_queue("inventory.normal", ensure=False)

        async def take() -> bool:
            while (message := await queue.get(no_ack=True, fail=False)) is not None:
                assert message.type == "order.placed"
                seen[json.loads(message.body)["data"]["order_id"]] += 1
            return last in seen

        await until(take)
    return seen


async def status_of(http: httpx.AsyncClient, order_id: str) -> str:
    return str((await http.get(f"/orders/{order_id}")).json()["status"])


# --- placing orders -------------------------------------------------------------------------------


async def test_an_accepted_order_says_where_it_can_be_watched(orders: httpx.AsyncClient) -> None:
    accepted = await orders.post("/orders", json=ORDER)

    assert accepted.status_code == 202
    order = accepted.json()
    assert accepted.headers["Location"] == f"/orders/{order['order_id']}"
    watched = await orders.get(accepted.headers["Location"])
    assert watched.status_code == 200
    assert watched.json() == order
    assert order["status"] == "pending"
    assert order["total_cents"] == 100


async def test_an_order_sent_twice_under_one_key_is_placed_once(
    alone: System, orders: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": key()}
    first = await orders.post("/orders", json=ORDER, headers=headers)
    second = await orders.post("/orders", json=ORDER, headers=headers)

    assert first.status_code == second.status_code == 202
    assert second.json() == first.json()
    assert second.headers["Location"] == first.headers["Location"]
    assert (await events_about_orders(alone, orders))[first.json()["order_id"]] == 1


async def test_an_order_sent_many_times_at_once_is_placed_once(
    alone: System, orders: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": key()}

    async def send() -> httpx.Response:
        async with http(alone, "order") as mine:
            return await mine.post("/orders", json=ORDER, headers=headers)

    answers = await asyncio.gather(*(send() for _ in range(10)))

    assert {answer.status_code for answer in answers} == {202}
    (order_id,) = {answer.json()["order_id"] for answer in answers}
    assert (await events_about_orders(alone, orders))[order_id] == 1


async def test_orders_without_a_key_are_orders_of_their_own(orders: httpx.AsyncClient) -> None:
    first, second = [await orders.post("/orders", json=ORDER) for _ in range(2)]

    assert first.json()["order_id"] != second.json()["order_id"]


@pytest.mark.parametrize(
    "change",
    [
        {"customer": "d"},
        {"currency": "USD"},
        {"lines": [LINE, LINE]},
        {"priority": "high"},
        {"time_limit_seconds": 299},
    ],
    ids=str,
)
async def test_a_key_used_before_for_another_order_is_refused(
    change: dict[str, Any], orders: httpx.AsyncClient
) -> None:
    headers = {"Idempotency-Key": key()}
    placed = await orders.post("/orders", json=ORDER, headers=headers)

    other = await orders.post("/orders", json=ORDER | change, headers=headers)

    assert_problem(other, 422, "Idempotency-Key", headers["Idempotency-Key"])
    assert (await orders.get(placed.headers["Location"])).json() == placed.json()


# --- cancelling orders ----------------------------------------------------------------------------


async def test_a_pending_order_can_be_cancelled_once(orders: httpx.AsyncClient) -> None:
    path = (await orders.post("/orders", json=ORDER)).headers["Location"]

    cancelled = await orders.post(f"{path}/cancel")
    again = await orders.post(f"{path}/cancel")

    assert cancelled.status_code == 202
    assert cancelled.json()["status"] == "cancelled"
    assert cancelled.json()["reason"] == "customer_request"
    assert assert_problem(again, 409, "cancelled")["order_status"] == "cancelled"


async def test_an_order_cancelled_many_times_at_once_is_cancelled_once(
    alone: System, orders: httpx.AsyncClient
) -> None:
    path = (await orders.post("/orders", json=ORDER)).headers["Location"]

    async def cancel() -> int:
        async with http(alone, "order") as mine:
            return (await mine.post(f"{path}/cancel")).status_code

    statuses = await asyncio.gather(*(cancel() for _ in range(6)))

    assert sorted(statuses) == [202] + 5 * [409]


async def test_a_confirmed_order_cannot_be_cancelled(whole: System) -> None:
    async with http(whole, "inventory") as inventory, http(whole, "order") as orders:
        await inventory.post("/stock", json={"items": [STOCK]})
        order_id = await confirmed(orders)

        answer = await orders.post(f"/orders/{order_id}/cancel")

        assert assert_problem(answer, 409, order_id)["order_status"] == "confirmed"
        assert await status_of(orders, order_id) == "confirmed"


async def confirmed(orders: httpx.AsyncClient) -> str:
    """An order that has been through all services."""
    order_id: str = (await orders.post("/orders", json=ORDER)).json()["order_id"]

    async def ended() -> bool:
        return await status_of(orders, order_id) != "pending"

    await until(ended)
    assert await status_of(orders, order_id) == "confirmed"
    return order_id


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("POST", "/cancel")])
async def test_an_order_that_nobody_placed_is_not_found(
    method: str, path: str, orders: httpx.AsyncClient
) -> None:
    unknown = str(uuid4())

    assert_problem(await orders.request(method, f"/orders/{unknown}{path}"), 404, unknown)


# --- what cannot be understood --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"lines": [LINE | {"quantity": -1}]}, "body.lines.0.quantity"),
        ({"lines": [LINE | {"quantity": 0}]}, "body.lines.0.quantity"),
        ({"lines": [LINE, LINE | {"quantity": "3"}]}, "body.lines.1.quantity"),
        ({"lines": [LINE | {"quantity": 1.5}]}, "body.lines.0.quantity"),
        ({"lines": [LINE | {"quantity": True}]}, "body.lines.0.quantity"),
        ({"lines": [LINE | {"unit_price_cents": 10**12}]}, "body.lines.0.unit_price_cents"),
        ({"lines": [LINE | {"sku": "no sku"}]}, "body.lines.0.sku"),
        ({"lines": [LINE | {"colour": "red"}]}, "body.lines.0.colour"),
        ({"lines": []}, "body.lines"),
        ({"lines": [LINE] * (LINES_MAX + 1)}, "body.lines"),
        ({"lines": None}, "body.lines"),
        ({"currency": "XXX"}, "body.currency"),
        ({"customer": ""}, "body.customer"),
        ({"customer": "a\u0000b"}, "body.customer"),
        ({"priority": "urgent"}, "body.priority"),
        ({"time_limit_seconds": 0}, "body.time_limit_seconds"),
        ({"colour": "red"}, "body.colour"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
async def test_a_field_that_makes_no_sense_is_named(
    change: dict[str, Any], where: str, orders: httpx.AsyncClient
) -> None:
    problem = assert_problem(await orders.post("/orders", json=ORDER | change), 422, where)

    assert [error["where"] for error in problem["errors"]] == [where]
    assert problem["errors"][0]["why"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 422, "body: Field required"),
        (b"{", 422, "JSON"),
        (b'{"customer": "c",}', 422, "JSON decode error: "),
        (b"\xff\xfe", 422, "body"),
        (b"null", 422, "body"),
        (b'{"\\ud800": 1}', 422, "body"),
        (b"[" * 60_000, 400, "body"),
        # How deep JSON may be depends on Python: 3.13 reads this, and finds that it is no order.
        (b'{"lines": ' * 5_000 + b"1" + b"}" * 5_000, (400, 422), "body"),
        (b'{"' + b"x" * 60_000 + b'": 1}', 422, "body.xxx"),
        (b'{"customer": NaN}', 422, "customer"),
        (b'{"time_limit_seconds": 1e999}', 422, "time_limit_seconds"),
        (b"9" * 60_000, 400, "body"),
    ],
    ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else None,
)
async def test_a_body_that_is_no_order_is_a_problem(
    body: bytes, status: int | tuple[int, ...], words: str, orders: httpx.AsyncClient
) -> None:
    answer = await orders.post("/orders", content=body, headers=JSON)

    assert answer.status_code in (status if isinstance(status, tuple) else (status,))
    assert_problem(answer, answer.status_code, words)


async def test_no_more_errors_are_listed_than_somebody_would_read(
    orders: httpx.AsyncClient,
) -> None:
    nonsense = {f"field-{number}": number for number in range(2000)}

    problem = assert_problem(await orders.post("/orders", json=nonsense), 422)

    assert len(problem["errors"]) == ERRORS_MAX


@pytest.mark.parametrize("length", [0, 129])
async def test_an_idempotency_key_has_a_limited_length(
    length: int, orders: httpx.AsyncClient
) -> None:
    answer = await orders.post("/orders", json=ORDER, headers={"Idempotency-Key": "k" * length})

    assert_problem(answer, 422, "header.idempotency-key", "character")


TAKEN: dict[str, Any] = {
    "/orders": ORDER,
    "/stock": {"items": [STOCK]},
    **{
        f"/due/{state}/{{key}}/bring-forward": {"who": "ada", "reason": "in a hurry"}
        for state in ("Order", "Notification")
    },
}
"""Keyed by route that takes a body, one that is taken."""
OBEYED = ("\x9b", "\u202e", "\u2028", "\u200b")
"""Keyed by what shows it: a terminal, an editor, a log."""


def spoiled(value: Any, char: str) -> Iterator[Any]:
    """The document with the character in one of its texts, in each of them."""
    if isinstance(value, str):
        yield f"{value}{char}"
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from ({**value, name: other} for other in spoiled(each, char))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from (
                [*value[:number], other, *value[number + 1 :]] for other in spoiled(each, char)
            )


async def test_no_route_takes_a_text_that_something_else_obeys(whole: System) -> None:
    """In any body and any header there is."""
    for service in whole.services:
        async with http(whole, service) as served:
            document = (await served.get("/openapi.json")).json()
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    if "requestBody" in operation:
                        for char in OBEYED:
                            for body in spoiled(TAKEN[path], char):
                                answer = await served.request(method, path, json=body)
                                problem = assert_problem(answer, 422)
                                assert problem["detail"].isprintable()
                    for parameter in operation.get("parameters", ()):
                        if parameter["in"] == "header" and parameter["name"] != "traceparent":
                            answer = await served.request(
                                method,
                                path,
                                json=TAKEN.get(path),
                                headers={parameter["name"]: b"k\x9b"},
                            )
                            problem = assert_problem(answer, 422, parameter["name"].lower())
                            assert problem["detail"].isprintable()


async def test_an_order_id_that_is_none_is_a_problem(orders: httpx.AsyncClient) -> None:
    assert_problem(await orders.get("/orders/first"), 422, "path.order_id")


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/elsewhere", 404), ("PUT", "/orders", 405)]
)
async def test_what_is_not_served_is_a_problem(
    method: str, path: str, status: int, orders: httpx.AsyncClient
) -> None:
    assert_problem(await orders.request(method, path), status)


# --- bodies without end ---------------------------------------------------------------------------


async def test_a_huge_body_is_refused(orders: httpx.AsyncClient) -> None:
    answer = await orders.post("/orders", content=bytes(HUGE_BYTES), headers=JSON)

    assert_problem(answer, 413, str(BODY_MAX_BYTES))
    assert (await orders.post("/orders", json=ORDER)).status_code == 202


async def test_a_huge_body_whose_length_is_not_announced_is_refused(
    orders: httpx.AsyncClient,
) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(HUGE_BYTES // 10_000):
            yield bytes(10_000)

    answer = await orders.post("/orders", content=chunks(), headers=JSON)

    assert "Content-Length" not in answer.request.headers
    assert_problem(answer, 413, str(BODY_MAX_BYTES))
    assert (await orders.post("/orders", json=ORDER)).status_code == 202


@pytest.mark.parametrize(("over", "status"), [(0, 202), (1, 413)])
async def test_the_body_limit_is_exact(over: int, status: int, orders: httpx.AsyncClient) -> None:
    body = json.dumps(ORDER).encode().ljust(BODY_MAX_BYTES + over)

    answer = await orders.post("/orders", content=body, headers=JSON)

    assert answer.status_code == status


# --- too much to do -------------------------------------------------------------------------------


async def test_orders_are_turned_away_while_too_many_events_wait_for_the_broker(
    tmp_path: Path, amqp_url: str
) -> None:
    system = System(
        tmp_path, amqp_url=amqp_url, environment={"OUTBOX_BACKLOG_MAX": "1"}, spawn=spawn
    )
    try:
        await system.start("order")
        async with http(system, "order") as orders:
            await delete_exchange(amqp_url)
            keys = [{"Idempotency-Key": key()} for _ in range(3)]
            accepted = [
                await orders.post("/orders", json=ORDER, headers=header) for header in keys[:2]
            ]
            refused = [
                await orders.post("/orders", json=ORDER, headers=headers)
                for headers in ({}, keys[2])
            ]
            again = await orders.post("/orders", json=ORDER, headers=keys[0])

            assert [answer.status_code for answer in accepted] == [202, 202]
            for answer in refused:
                assert_problem(answer, 503, "2 events wait")
                assert int(answer.headers["Retry-After"]) > 0
            assert (again.status_code, again.json()) == (202, accepted[0].json())
            failures = await figure(orders, "saga_event_publish_failures_total")
            assert failures > 0

            await restore_exchange(amqp_url)

            async def accepted_again() -> bool:
                return (await orders.post("/orders", json=ORDER)).status_code == 202

            await until(accepted_again)
            await until(all_published(orders))
            published = await events_about_orders(system, orders)
            assert {answer.json()["order_id"] for answer in accepted} <= published.keys()
    finally:
        await system.stop()


async def delete_exchange(url: str) -> None:
    """From now on no event can be published."""
    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        await channel.exchange_delete(EVENTS_EXCHANGE)


async def restore_exchange(url: str) -> None:
    """Events can be published again, and at any moment: so what the test reads is bound first."""
    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange(EVENTS_EXCHANGE, "topic", durable=True)
        queue = await channel.get_queue("inventory.normal", ensure=False)
        await queue.bind(exchange, "order.placed.normal")
    await apply_topology(url, choreography())


def all_published(service: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
    async def says_so() -> bool:
        return await figure(service, "saga_outbox_backlog") == 0

    return says_so


# --- stock and payments ---------------------------------------------------------------------------


@pytest.fixture
async def inventory(whole: System) -> AsyncIterator[httpx.AsyncClient]:
    async with http(whole, "inventory") as service:
        yield service


async def test_stock_sent_twice_under_one_key_is_added_once(inventory: httpx.AsyncClient) -> None:
    headers = {"Idempotency-Key": key()}
    skus = [key(), key()]
    delivery = {"items": [STOCK | {"sku": sku, "quantity": 7} for sku in skus]}
    answers = [await inventory.post("/stock", json=delivery, headers=headers) for _ in range(2)]

    for answer in answers:
        assert answer.status_code == 202
        assert [(item["sku"], item["free"]) for item in answer.json()] == [(s, 7) for s in skus]
    assert (await inventory.get(f"/stock/{skus[0]}")).json()["free"] == 7


async def test_a_key_used_before_for_another_delivery_is_refused(
    inventory: httpx.AsyncClient,
) -> None:
    headers = {"Idempotency-Key": key()}
    sku = key()
    first, other = ({"items": [STOCK | {"sku": sku, "quantity": n}]} for n in (7, 8))
    accepted = await inventory.post("/stock", json=first, headers=headers)
    refused = await inventory.post("/stock", json=other, headers=headers)

    assert accepted.status_code == 202
    assert_problem(refused, 422, headers["Idempotency-Key"], "another delivery")
    assert (await inventory.get(f"/stock/{sku}")).json()["free"] == 7


async def test_stock_without_a_key_adds_up(inventory: httpx.AsyncClient) -> None:
    delivery = {"items": [STOCK | {"sku": key(), "quantity": 7}]}
    answers = [await inventory.post("/stock", json=delivery) for _ in range(2)]

    assert [answer.json()[0]["free"] for answer in answers] == [7, 14]


async def test_a_delivery_that_names_a_sku_twice_is_refused_whole(
    inventory: httpx.AsyncClient,
) -> None:
    item = STOCK | {"sku": key()}

    assert_problem(await inventory.post("/stock", json={"items": [item, item]}), 422, "SKU once")
    assert (await inventory.get(f"/stock/{item['sku']}")).status_code == 404


@pytest.mark.parametrize(
    "change",
    [
        {"quantity": -1},
        {"quantity": "3"},
        {"unit_price_cents": 0},
        {"currency": "XXX"},
        {"sku": ""},
    ],
    ids=str,
)
async def test_a_delivery_that_makes_no_sense_is_refused(
    change: dict[str, Any], inventory: httpx.AsyncClient
) -> None:
    (field,) = change

    answer = await inventory.post("/stock", json={"items": [STOCK | change]})

    assert_problem(answer, 422, f"body.items.0.{field}")


async def test_a_sku_that_never_was_on_the_shelf_is_not_found(
    inventory: httpx.AsyncClient,
) -> None:
    assert_problem(await inventory.get("/stock/nothing"), 404, "nothing")


@pytest.mark.parametrize("sku", ["x" * 65, "x" * 20_000, "%00", "%F0%9F%98%80", "a%20b"])
async def test_a_sku_that_is_none_is_a_problem(sku: str, inventory: httpx.AsyncClient) -> None:
    assert_problem(await inventory.get(f"/stock/{sku}"), 422, "path.sku")


async def test_a_payment_can_be_looked_up(whole: System, inventory: httpx.AsyncClient) -> None:
    async with http(whole, "order") as orders, http(whole, "payment") as payments:
        await inventory.post("/stock", json={"items": [STOCK]})
        order_id = await confirmed(orders)

        payment = await payments.get(f"/payments/{order_id}")

    assert payment.json() == {
        "order_id": order_id,
        "status": "charged",
        "currency": "EUR",
        "amount_cents": 100,
    }


async def test_a_payment_that_was_never_asked_for_is_not_found(whole: System) -> None:
    unknown = str(uuid4())
    async with http(whole, "payment") as payments:
        assert_problem(await payments.get(f"/payments/{unknown}"), 404, unknown)


# --- what is said about the interface -------------------------------------------------------------


@pytest.mark.parametrize(
    ("service", "path", "method", "statuses"),
    [
        ("order", "/orders", "post", {"202", "403", "413", "415", "422"}),
        ("order", "/orders/{order_id}", "get", {"200", "404", "422"}),
        ("order", "/orders/{order_id}/cancel", "post", {"202", "403", "404", "409", "413", "422"}),
        ("inventory", "/stock", "post", {"202", "403", "413", "415", "422"}),
        ("inventory", "/stock/{sku}", "get", {"200", "404", "422"}),
        ("payment", "/payments/{order_id}", "get", {"200", "404", "422"}),
        ("order", "/readyz", "get", {"200"}),
    ],
)
async def test_the_openapi_document_declares_every_answer(
    service: str, path: str, method: str, statuses: set[str], whole: System
) -> None:
    async with http(whole, service) as served:
        document = (await served.get("/openapi.json")).json()

    OpenAPI.model_validate(document)
    responses = document["paths"][path][method]["responses"]
    closed = set() if path == "/readyz" else {"401", "403"}
    assert responses.keys() == statuses | closed | {"400", "408", "421", "429", "431", "503"}
    for status in responses:
        expected = PROBLEM if status >= "400" else "application/json"
        assert responses[status]["content"].keys() == {expected}


async def test_the_interface_is_explained_to_people_too(orders: httpx.AsyncClient) -> None:
    page = await orders.get("/docs")

    assert page.status_code == 200
    assert "/openapi.json" in page.text


# --- health ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("service", ["order", "inventory", "payment"])
async def test_a_running_service_is_alive_and_ready(service: str, whole: System) -> None:
    async with http(whole, service) as served:
        assert (await served.get("/livez")).json() == {"status": "alive"}
        ready = (await served.get("/readyz")).json()
        assert ready["status"] == "ready"
        assert ready["checked_seconds_ago"] < TIMEOUT_SECONDS


@dataclass
class Remote:
    """The order service on its own, and its way to the broker."""

    system: System
    way: Proxy
    ports: list[int]
    """The last one is where the way leads to."""

    @contextlib.contextmanager
    def broker_gone(self, nowhere: int) -> Iterator[None]:
        """For the service, the broker is not there, and then comes back."""
        self.ports.append(nowhere)
        self.way.cut()
        yield
        self.ports.pop()


@pytest.fixture
async def remote(tmp_path: Path, amqp_url: str) -> AsyncIterator[Remote]:
    url = yarl.URL(amqp_url)
    ports = [url.port or 0]
    async with Proxy(lambda: ports[-1]) as way:
        system = System(
            tmp_path, amqp_url=str(url.with_port(way.port)), only=["order"], spawn=spawn
        )
        async with system:
            yield Remote(system, way, ports)


def ready(service: httpx.AsyncClient, status: int) -> Callable[[], Awaitable[bool]]:
    async def says_so() -> bool:
        return (await service.get("/readyz")).status_code == status

    return says_so


async def test_a_service_is_not_ready_while_its_broker_is_gone(
    remote: Remote, closed_port: int
) -> None:
    async with http(remote.system, "order") as orders:
        with remote.broker_gone(closed_port):
            await until(ready(orders, 503))
            problem = assert_problem(await orders.get("/readyz"), 503, "broker", "AMQP_URL")
            assert problem["missing"].keys() == {"broker", "consumers"}
            assert "guest:guest" not in problem["detail"]
            assert (await orders.get("/livez")).status_code == 200

        await until(ready(orders, 200))


async def test_orders_placed_while_the_broker_is_gone_are_published_when_it_is_back(
    remote: Remote, closed_port: int
) -> None:
    async with http(remote.system, "order") as orders:
        with remote.broker_gone(closed_port):
            await until(ready(orders, 503))
            accepted = [await orders.post("/orders", json=ORDER) for _ in range(3)]
            assert {answer.status_code for answer in accepted} == {202}

        await until(all_published(orders))
        published = await events_about_orders(remote.system, orders)
        assert [published[answer.json()["order_id"]] > 0 for answer in accepted] == 3 * [True]


# --- metrics --------------------------------------------------------------------------------------


async def figure(service: httpx.AsyncClient, name: str, **labels: str) -> float:
    """The sum of the samples of that name that have these labels; fails if there is none."""
    text = (await service.get("/metrics")).text
    samples = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert samples, f"{name} {labels} is not among the metrics"
    return sum(samples)


async def test_metrics_tell_what_became_of_orders_and_messages(whole: System) -> None:
    async with http(whole, "inventory") as inventory, http(whole, "order") as orders:
        await inventory.post("/stock", json={"items": [STOCK]})
        await confirmed(orders)
        headers = {"Idempotency-Key": key()}
        unknown = ORDER | {"lines": [LINE | {"sku": "unknown"}], "priority": "high"}
        for _ in range(2):
            answer = await orders.post("/orders", json=unknown, headers=headers)

        async def cancelled() -> bool:
            return await status_of(orders, answer.json()["order_id"]) == "cancelled"

        await until(cancelled)
        await send_payment_of_nobody(whole.deployment.amqp_url)

        async def failure_is_counted() -> bool:
            name = "saga_messages_dead_lettered_total"
            return await figure(orders, name, participant="order", reason="failed") > 0

        await until(failure_is_counted)

        mine = {"participant": "order"}
        for outcome in ("done", "duplicate", "failed"):
            assert await figure(orders, "saga_messages_consumed_total", **mine, outcome=outcome) > 0
        for type_ in ("order.placed", "order.confirmed", "order.cancelled"):
            assert await figure(orders, "saga_events_published_total", **mine, type=type_) > 0
        for histogram in (
            "saga_group_messages",
            "saga_commit_seconds",
            "saga_publish_seconds",
            "saga_message_seconds",
        ):
            assert await figure(orders, f"{histogram}_count", **mine) > 0
            assert await figure(orders, f"{histogram}_sum", **mine) > 0
        for outcome, priority in (("order.confirmed", "normal"), ("order.cancelled", "high")):
            labels = {"saga": "orders", "outcome": outcome, "priority": priority}
            assert await figure(orders, "saga_seconds_count", **labels) > 0
            assert 0 < await figure(orders, "saga_seconds_sum", **labels) < TIMEOUT_SECONDS
        assert await figure(orders, "saga_outbox_backlog", **mine) >= 0


async def send_payment_of_nobody(url: str) -> None:
    """Publish a payment for an order that was never placed: no reaction can take it."""
    event = PaymentCharged(
        order_id=uuid4(), currency="EUR", amount_cents=100, reference="of nobody"
    )
    envelope = wrap(
        event,
        id=key(),
        source="/services/payment",
        time=utc_now(),
        priority=Priority.NORMAL,
        sequence=1,
    )
    async with await connect(url, name="test") as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(message_of(envelope.to_bytes()), envelope.routing_key)
