"""One trace per order: the real services on a real broker, their spans kept in memory."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

import inventory_service.app
import order_service.app
from common.events import PlaceOrder, order_id_of
from payment_service.app import build_with
from payment_service.gateway import GatewayUnavailable, SandboxGateway
from payment_service.ledger import Decline, Receipt
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.dlq.desk import open_desk
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.envelope import derived_id, trace_id_of, wrap
from saga.message import Priority
from saga.runtime import tracing
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import apply, topology_of
from saga.runtime.process import Parts
from saga.runtime.service import Service, process_of
from saga.runtime.settings import Settings
from saga.runtime.tasks import cancel_all
from tests.polling import until

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Moody:
    """The sandbox, but the first question about a charge gets no answer, and the second is a
    fault that trying again does not fix."""

    def __init__(self, sandbox: SandboxGateway) -> None:
        self._sandbox = sandbox
        self.moods: list[Exception] = []

    async def charge(self, key: str, **question: Any) -> Receipt | Decline:
        if self.moods:
            raise self.moods.pop(0)
        return await self._sandbox.charge(key, **question)

    async def refund(self, key: str, **question: Any) -> None:
        await self._sandbox.refund(key, **question)

    async def close(self) -> None:
        await self._sandbox.close()


class Stage:
    """The running services."""

    def __init__(self, deployment: Deployment, gateway: Moody, spans: InMemorySpanExporter) -> None:
        self.deployment = deployment
        self.gateway = gateway
        self._spans = spans
        self.http: dict[str, httpx.AsyncClient] = {}

    async def stock(self) -> None:
        item = {"sku": "mug", "quantity": 10, "unit_price_cents": 1250, "currency": "EUR"}
        answer = await self.http["inventory"].post("/stock", json={"items": [item]})
        answer.raise_for_status()

    async def place(self, key: str, **headers: str) -> str:
        line = {"sku": "mug", "quantity": 1, "unit_price_cents": 1250}
        answer = await self.http["order"].post(
            "/orders",
            json={"customer": "ada", "currency": "EUR", "lines": [line]},
            headers={"Idempotency-Key": key, **headers},
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["order_id"])

    async def ended(self, order_id: str, status: str = "confirmed") -> bool:
        answer = await self.http["order"].get(f"/orders/{order_id}")
        return bool(answer.json()["status"] == status)

    def spans(self, order_id: str) -> Sequence[ReadableSpan]:
        """The spans of the order's trace, in the order they began."""
        trace_id = int(trace_id_of(order_id), 16)
        found = self._spans.get_finished_spans()
        ours = [s for s in found if s.context is not None and s.context.trace_id == trace_id]
        return sorted(ours, key=lambda span: span.start_time or 0)

    def names(self, order_id: str) -> list[str]:
        return [span.name for span in self.spans(order_id)]

    def others(self, order_id: str) -> list[str]:
        """Names of the spans about the order that are in other traces."""
        ours = {id(span) for span in self.spans(order_id)}
        return [
            span.name
            for span in self._spans.get_finished_spans()
            if order_id in (span.attributes or {}).values() and id(span) not in ours
        ]


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    on = tracing.Tracing("test", SimpleSpanProcessor(exporter))
    monkeypatch.setattr(tracing, "active", on)
    yield exporter
    on.close()


@pytest.fixture
async def stage(amqp_url: str, tmp_path: Path, spans: InMemorySpanExporter) -> AsyncIterator[Stage]:
    graph = choreography()
    connection = await connect(amqp_url, name="test")
    async with connection:
        await apply(topology_of(graph), await connection.channel())
    gateway = Moody(SandboxGateway(f"sqlite:///{tmp_path / 'provider.db'}"))
    names = [participant.name for participant in graph.participants]
    deployment = Deployment(
        amqp_url=amqp_url,
        http_urls={},
        database_urls={name: f"sqlite:///{tmp_path / name}.db" for name in names},
        outside_urls={"provider": f"sqlite:///{tmp_path / 'provider.db'}"},
        dead_letters_url=f"sqlite:///{tmp_path / 'dead_letters.db'}",
    )
    settings = Settings(amqp_url=amqp_url, data_dir=tmp_path)
    services = {
        "order": order_service.app.build(settings),
        "inventory": inventory_service.app.build(settings),
        "payment": build_with(gateway),
    }
    stage = Stage(deployment, gateway, spans)
    async with contextlib.AsyncExitStack() as stack:
        for name, service in services.items():
            parts = await stack.enter_async_context(running(service, settings))
            transport = httpx.ASGITransport(app=parts.app)
            client = httpx.AsyncClient(transport=transport, base_url=f"http://{name}")
            stage.http[name] = await stack.enter_async_context(client)
        await stage.stock()
        yield stage


@contextlib.asynccontextmanager
async def running(service: Service, settings: Settings) -> AsyncIterator[Parts]:
    """The parts of a service's process, within this one."""
    process = process_of(service, settings)
    async with contextlib.AsyncExitStack() as stack:
        if process.close is not None:
            stack.push_async_callback(process.close)
        url = settings.database_url_of(process.name)
        database = await open_database(url, process.schema, name=process.name)
        stack.push_async_callback(database.close)
        parts = await process.assemble(database, stack)
        tasks = [asyncio.ensure_future(task) for task in parts.tasks]
        try:
            await parts.start()
            yield parts
        finally:
            await parts.stop()
            await cancel_all(*tasks)


async def test_an_order_is_one_trace_from_its_request_to_its_end(stage: Stage) -> None:
    order = await stage.place("plain")
    await until(lambda: stage.ended(order))
    await until(lambda: "publish saga.events:order.confirmed.normal" in stage.names(order))

    assert stage.others(order) == []
    assert [name for name in stage.names(order) if name.startswith(("POST", "process"))] == [
        "POST /orders",
        "process saga.events:order.placed.normal:inventory.normal",
        "process saga.events:stock.reserved.normal:payment.normal",
        "process saga.events:payment.charged.normal:order.normal",
    ]
    reactions = [s.name for s in stage.spans(order) if s.kind is SpanKind.INTERNAL]
    assert reactions == [
        "order.place",
        "inventory.reserve",
        "payment.charge",
        "payment.record_charge",
        "order.confirm",
    ]
    assert [s.name for s in stage.spans(order) if s.parent is None] == ["POST /orders"]


async def test_the_trace_goes_on_through_a_retry_and_the_replay_of_a_dead_letter(
    stage: Stage,
) -> None:
    stage.gateway.moods = [GatewayUnavailable("not now"), ValueError("a fault")]
    order = await stage.place("unlucky")
    graph = choreography()
    await until(lambda: "publish saga.dead:payment" in stage.names(order))
    async with open_desk(stage.deployment, graph) as desk:
        result = await replay(desk, Selection(), ReplaySettings())
    assert result.ok
    await until(lambda: stage.ended(order))
    await until(lambda: "publish saga.events:order.confirmed.normal" in stage.names(order))

    assert stage.others(order) == []
    names = stage.names(order)
    assert [name for name in names if "payment.normal" in name or "dead" in name] == [
        "process saga.events:stock.reserved.normal:payment.normal",
        "publish saga.retry.500:payment.normal",
        "process payment.normal",  # it came back by the default exchange
        "publish saga.dead:payment",
        "publish payment.normal",  # the replay
        "process payment.normal",
    ]
    tries = [s for s in stage.spans(order) if s.kind is SpanKind.CONSUMER and "pay" in s.name][:3]
    assert [(s.attributes or {})["saga.attempts"] for s in tries] == [0, 1, 0]
    assert [s.status.status_code for s in tries] == [
        StatusCode.ERROR,
        StatusCode.ERROR,
        StatusCode.UNSET,
    ]
    error = (tries[0].attributes or {})["error.type"]
    assert error == "payment_service.gateway.GatewayUnavailable"


async def test_a_delivery_is_linked_to_what_published_it_and_so_is_its_publishing(
    stage: Stage,
) -> None:
    order = await stage.place("linked")
    await until(lambda: stage.ended(order))
    spans = {span.name: span for span in stage.spans(order)}
    place, publish, process = (
        spans["order.place"],
        spans["publish saga.events:order.placed.normal"],
        spans["process saga.events:order.placed.normal:inventory.normal"],
    )

    for span in (publish, process):
        assert [link.context.span_id for link in span.links] == [id_of(place)]
        assert span.parent is not None
        assert span.parent.span_id == id_of(place)
    attributes = dict(process.attributes or {})
    assert attributes.pop("messaging.message.body.size")
    assert attributes == {
        "messaging.system": "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "saga.events:order.placed.normal:inventory.normal",
        "messaging.rabbitmq.destination.routing_key": "order.placed.normal",
        "messaging.message.id": derived_id(
            f"{derived_id('linked', 'order.place')}\t/services/order", "order.place.order.placed"
        ),
        "messaging.message.conversation_id": order,
        "saga.attempts": 0,
    }


async def test_a_callers_own_trace_is_linked_and_many_orders_do_not_share_it(stage: Stage) -> None:
    first = await stage.place("one", traceparent=CALLER)
    second = await stage.place("two", traceparent=CALLER)

    assert trace_id_of(first) != trace_id_of(second)
    for order in (first, second):
        await until(partial(stage.ended, order))
        request = stage.spans(order)[0]
        assert request.name == "POST /orders"
        assert [f"{link.context.trace_id:032x}" for link in request.links] == [CALLER[3:35]]
        assert (request.attributes or {})["http.response.status_code"] == 202


async def test_an_order_placed_over_the_broker_is_in_its_own_trace_whatever_its_sender_says(
    stage: Stage,
) -> None:
    order_id = order_id_of("by-broker")
    command = PlaceOrder.model_validate_json(
        json.dumps(
            {
                "order_id": str(order_id),
                "customer": "ada",
                "currency": "EUR",
                "lines": [{"sku": "mug", "quantity": 1, "unit_price_cents": 1250}],
            }
        )
    )
    envelope = wrap(
        command,
        id="by-broker",
        source="/tests",
        time=utc_now(),
        priority=Priority.NORMAL,
        traceparent=CALLER,
    )
    publisher = BrokerPublisher(stage.deployment.amqp_url, "test")
    queue = "order.intake.normal"
    await publisher.publish("", posting_of(envelope.to_bytes(), queue))
    await publisher.close()
    order = str(order_id)
    await until(lambda: "order.confirm" in stage.names(order))

    process = next(s for s in stage.spans(order) if s.name == f"process {queue}")
    assert [f"{link.context.trace_id:032x}" for link in process.links] == [CALLER[3:35]]


async def test_what_is_decided_without_a_request_is_in_the_orders_trace_too(stage: Stage) -> None:
    stage.gateway.moods = [GatewayUnavailable("not now")] * 3
    order = await stage.place("late")
    with contextlib.closing(sqlite3.connect(stage.deployment.database_urls["order"][10:])) as db:
        await until(lambda: "publish saga.retry.500:payment.normal" in stage.names(order))
        db.execute("update orders set deadline = 1, due_at = 1")
        db.commit()
    await until(lambda: stage.ended(order, "cancelled"))
    await until(lambda: "inventory.release" in stage.names(order))

    assert "order.expire" in stage.names(order)
    assert stage.others(order) == []


def test_a_process_that_ends_hands_its_spans_over(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[tuple[str, bytes]] = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.append((self.path, body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *arguments: Any) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Collector) as server:
        answering = threading.Thread(target=server.serve_forever)
        answering.start()
        monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            tracing.start("order")
            with tracing.request("POST /orders", "order-1", None, status=202):
                pass
            tracing.stop()
        finally:
            server.shutdown()
            answering.join()

    ((path, body),) = received
    assert path == "/v1/traces"
    (of_process,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {item.key: item.value.string_value for item in of_process.resource.attributes}
    assert resource["service.name"] == "order"
    (span,) = of_process.scope_spans[0].spans
    assert span.trace_id.hex() == trace_id_of("order-1")
    assert tracing.active is None


def test_a_service_without_an_endpoint_does_not_even_load_what_records_spans() -> None:
    program = (
        "import sys, order_service.app, saga.runtime.tracing\n"
        "saga.runtime.tracing.start('order')\n"
        "loads = ('opentelemetry.sdk', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(loads)])"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[]\n"


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    span_id: int = span.context.span_id
    return span_id
