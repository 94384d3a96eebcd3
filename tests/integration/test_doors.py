"""Every door of every service: whatever is sent to it is answered as its OpenAPI document says.

The routes and their parameters are taken from that document, so a new one is covered as it is.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import logging
import os
import re
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from unittest import mock
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
import yarl
from fastapi import APIRouter

import saga.runtime.kernel.sqlite
import saga.runtime.rates
import saga.runtime.readiness
import saga.runtime.server
import saga.runtime.service
from order_service.domain import CancelOrder
from saga.archive import store
from saga.deployment import Deployment
from saga.discovery import packages
from saga.exporter import Exporter
from saga.runtime.docs import FILES, PATH
from saga.runtime.doors import UNCOUNTED
from saga.runtime.headers import SECURITY_HEADERS
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.problem import PROBLEM
from saga.runtime.settings import SettingsError
from tests.integration.served import Answer, Headers, Served, ask, built, serving
from tests.openapi import example_of
from tests.order_play import SAGA, Play
from tests.polling import until
from tests.stores import PROJECTION

JSON: Final = (b"Content-Type", b"application/json")
NOWHERE: Final = Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={})
"""A system of which nothing runs."""
PAGES: Final = (PATH, *FILES)
"""What browsers load, with headers of their own."""
OPERATIONS: Final = ("/livez", "/readyz", "/metrics")
"""The paths that are no service's own."""

TEXTS: Final = (
    # Numbers at the edge of their types, and what is none.
    *("-1", "0", "2147483648", "9223372036854775807", "9223372036854775808", "9" * 400, "NaN", "٣"),
    # Times at the edge of the calendar, in zones that lead beyond it.
    *("1969-12-31T23:59:59Z", "2199-12-31T23:59:59.999999Z", "0001-01-01T00:00:00Z"),
    *("0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2030-01-01T00:00:00", "1e18"),
    # An id, and what looks like one.
    *(str(UUID(int=0)), str(uuid4()).join("{}")),
    # Texts.
    *("", "\0", "a\0b", "a\r\nb", "é", "😀", "/", "%", "x" * 255, "😀" * 255, "x" * 10_000),
    "MjAzMC0wMS0wMSB4",
)
BYTES: Final = (b"%ED%A0%80", b"%FF%FE", b"%C0%80", b"%", b"%zz", b"%2F..%2F")
"""What is no text at all once it is decoded, as it stands in a URL."""
VALUES: Final = (
    *("null", "true", "[]", "{}", '""', '"a\\u0000b"', '"\\ud800"', '"\\t"', '"x"', '"😀"'),
    *('"0001-01-01T00:00:00+14:00"', "0", "-1", "1.5", "2147483648", "9223372036854775807"),
    *("9223372036854775808", json.dumps("x" * 10_000)),
)
"""What may stand in a body."""
NO_VALUES: Final = (
    "",
    "{",
    "1e999",
    "NaN",
    "9" * 5_000,
    "[" * 5_000,
    "\ufeff{}",
    '{"a": 1, "a": 2}',
)
"""What is no body, or one beyond the limits of JSON."""
ODD_HEADERS: Final[tuple[tuple[bytes, bytes], ...]] = (
    (b"Accept", b"text/plain;version=x"),
    (b"Accept", b"text/plain;version=" + b"9" * 5_000),
    (b"Accept", b"application/openmetrics-text; version=9.9.9; escaping=none"),
    (b"Accept", b"application/openmetrics-text; version=-1"),
    (b"Accept", b"\xff, */*;q=x"),
    (b"Accept-Encoding", b"gzip;q=nan"),
    (b"Content-Type", b""),
    (b"Content-Type", b"text/plain"),
    (b"Content-Type", b"application/json; charset=utf-16"),
    (b"Content-Type", b"multipart/form-data; boundary=\xff"),
    (b"Content-Type", b"application/x-www-form-urlencoded"),
    (b"Content-Length", b"0"),
    (b"Idempotency-Key", b"\xff\xfe"),
    (b"traceparent", b"00-" + b"f" * 32 + b"-" + b"0" * 16 + b"-zz"),
    (b"Cookie", b"a=\xff"),
    (b"Range", b"bytes=9-1"),
    (b"If-Modified-Since", b"Fri, 31 Dec 9999 23:59:59 -1400"),
    (b"X-Forwarded-For", b"\xff"),
    (b"X-Forwarded-Proto", b"gopher"),
)


@dataclass(frozen=True)
class Door:
    """One operation of a service, and a request that makes sense to it."""

    document: Mapping[str, Any]
    path: str
    method: str
    known: Mapping[str, str]
    """Keyed by path parameter, a value that exists."""

    @property
    def operation(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["paths"][self.path][self.method.lower()]
        return found

    def parameters(self, place: str) -> list[str]:
        return [p["name"] for p in self.operation.get("parameters", ()) if p["in"] == place]

    @property
    def body(self) -> Any:
        """A document that fits the schema, or None."""
        if "requestBody" not in self.operation:
            return None
        content = self.operation["requestBody"]["content"]["application/json"]
        return example_of(self.document, content["schema"])

    def target(self, **values: bytes) -> bytes:
        """The path with these values of its parameters, percent-encoded, or known ones."""
        path = self.path.encode()
        for name in self.parameters("path"):
            value = values.get(name, quote(self.known.get(name, "A")).encode())
            path = path.replace(b"{%s}" % name.encode(), value)
        return path


@dataclass
class Requested:
    """A request, and what it is about."""

    target: bytes
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


def sensible(door: Door) -> Requested:
    """A request that the door takes."""
    if door.body is None:
        return Requested(door.target())
    return Requested(door.target(), [JSON], json.dumps(door.body).encode())


def odd_for_the_database(door: Door) -> Iterator[Requested]:
    """The same request with something at the edge of its type that a database may be asked for."""
    whole = sensible(door)
    encoded = [*(quote(text, safe="").encode() for text in TEXTS), *BYTES]
    for name in door.parameters("path"):
        for value in encoded:
            yield Requested(door.target(**{name: value}), whole.headers, whole.body)
    for name in door.parameters("query"):
        for value in encoded:
            target = b"%s?%s=%s" % (whole.target, name.encode(), value)
            yield Requested(target, whole.headers, whole.body)
    for body in bodies(door.body):
        yield Requested(whole.target, [JSON], body)


def odd(door: Door) -> Iterator[Requested]:
    """The same request with something about it that makes little sense, or none."""
    whole = sensible(door)
    yield from odd_for_the_database(door)
    for name in door.parameters("header"):
        for text in TEXTS:
            header = (name.encode(), text.encode())
            yield Requested(whole.target, [*whole.headers, header], whole.body)
    for header in ODD_HEADERS:
        others = [given for given in whole.headers if given[0] != header[0]]
        yield Requested(whole.target, [*others, header], whole.body)
    yield Requested(whole.target + b"?unknown=%00", whole.headers, whole.body)
    for text in NO_VALUES:
        yield Requested(whole.target, [JSON], text.encode())


def bodies(document: Any) -> Iterator[bytes]:
    """The document with each of its values, in turn, replaced by each odd one."""
    if document is None:
        return
    yield from (value.encode() for value in VALUES)
    marker = "\N{REPLACEMENT CHARACTER}"
    for marked in replaced(document, marker):
        for value in VALUES:
            yield json.dumps(marked, ensure_ascii=False).replace(f'"{marker}"', value).encode()


def replaced(document: Any, value: str) -> Iterator[Any]:
    """The document with one of its values replaced, for each value there is."""
    places = document.items() if isinstance(document, dict) else enumerate(document)
    for place, old in places:
        for new in (value, *(replaced(old, value) if isinstance(old, dict | list) else ())):
            changed = document.copy()
            changed[place] = new
            yield changed


# --- what is asked --------------------------------------------------------------------------------


@pytest.fixture(params=packages())
def package(request: pytest.FixtureRequest) -> str:
    """Each service there is."""
    return str(request.param)


@asynccontextmanager
async def open_for_business(
    package: str, folder: Path, database_url: str | None = None, **environment: str
) -> AsyncIterator[tuple[Served, list[Door]]]:
    """The service with something in its database, and its doors."""
    if database_url is not None:
        environment["DATABASE_URL"] = database_url
    async with serving(package, folder, **environment) as served:
        yield served, await doors(served.port, await furnish(served))


async def furnish(served: Served) -> dict[str, str]:
    """Put something there to be found; by path parameter, what it is known by."""
    match served.name:
        case "order":
            line = {"sku": "A", "quantity": 1, "unit_price_cents": 100}
            order = {"customer": "c", "currency": "EUR", "lines": [line]}
            placed = await served.ask("POST", "/orders", [JSON], json.dumps(order).encode())
            return {"order_id": placed.json["order_id"]}
        case "history":
            play = Play(at=utc_now() - timedelta(hours=1), graph=SAGA)
            order_id = play.place()
            play.give("order", CancelOrder(order_id=UUID(order_id)))
            facts = [store.Fact(event, event.to_bytes()) for event in play.events]
            await served.database.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
            return {"order_id": order_id}
        case _:
            return {"order_id": str(uuid4())}


async def doors(port: int, known: Mapping[str, str]) -> list[Door]:
    """All there are, by the service's own account."""
    document = (await ask(port, "GET", "/openapi.json")).json
    found = [
        Door(document, path, method.upper(), known)
        for path, operations in document["paths"].items()
        for method in operations
    ]
    assert {door.path for door in found} >= set(OPERATIONS)
    return found


def wrong_with(door: Door, answer: Answer) -> str:
    """What is not as it should be with an answer, or nothing."""
    declared = door.operation["responses"]
    if str(answer.status) not in declared:
        return f"{answer.status} is not declared: {answer.body[:200]!r}"
    if answer.status >= 500 and answer.status != 503:
        return f"{answer.status}"
    media = answer.headers.get("content-type", "").partition(";")[0]
    if media not in declared[str(answer.status)].get("content", ()):
        return f"{media} is not declared for {answer.status}"
    if answer.status >= 400 and (len(answer.body) > 30_000 or not answer.detail.strip()):
        return f"no readable problem: {answer.body[:200]!r}"
    return ""


@pytest.fixture
def complaints(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What was logged that an operator would have to look into."""
    caplog.set_level(logging.INFO)

    def found() -> list[str]:
        return [
            f"{record.name}: {record.getMessage()}"
            for record in caplog.records
            if (record.levelno >= logging.ERROR or record.exc_info)
            and not record.name.startswith(("aio_pika", "aiormq"))  # A service silences these.
        ]

    return found


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
async def test_whatever_is_sent_to_a_door_is_answered_as_it_says(
    kind: str,
    package: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    complaints: Callable[[], list[str]],
) -> None:
    url = request.getfixturevalue("postgres_url") if kind == "postgresql" else None
    wrong: list[str] = []
    async with open_for_business(package, tmp_path, url) as (served, found):
        for door in found:
            taken = await served.ask(door.method, **vars(sensible(door)))
            if door.path not in OPERATIONS and door.operation.get("requestBody"):
                nothing_due = door.path.startswith("/due/") and taken.status == 404
                assert taken.status < 300 or nothing_due, (door.path, taken.body)
            for asked in (odd if kind == "sqlite" else odd_for_the_database)(door):
                answer = await served.ask(door.method, **vars(asked))
                # A path that the parameter has changed may be another route's, or none's.
                if trouble := wrong_with(door, answer) if answer.status not in (404, 405) else "":
                    wrong.append(f"{door.method} {asked}: {trouble}"[:400])
    assert not wrong, "\n".join(wrong[:20])
    assert complaints() == []


async def test_whatever_is_sent_to_the_exporter_is_answered_as_it_says(
    complaints: Callable[[], list[str]],
) -> None:
    with Exporter(NOWHERE, host="127.0.0.1", port=0) as exporter:
        port = yarl.URL(exporter.url).port or 0
        for door in await doors(port, {}):
            for asked in odd(door):
                answer = await ask(port, door.method, asked.target, asked.headers, asked.body)
                assert wrong_with(door, answer) == "", (door.path, asked)
    assert complaints() == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "TRACE", "WAT"])
async def test_a_method_that_a_door_does_not_know_is_a_problem(
    method: str, tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    async with open_for_business("order_service", tmp_path) as (served, found):
        for door in found:
            answer = await served.ask(method, door.target())
            assert answer.status in ((405,) if method != "HEAD" else (200, 405, 503))
    assert complaints() == []


async def test_what_answers_get_answers_head_the_same_without_its_body(
    package: str, tmp_path: Path
) -> None:
    async with open_for_business(package, tmp_path) as (served, found):
        for door in found:
            if door.method == "GET":
                full = await served.ask("GET", door.target())
                head = await served.ask("HEAD", door.target())
                assert (head.status, head.body) == (full.status, b"")
                assert head.headers["content-type"] == full.headers["content-type"]


# --- who may ask ----------------------------------------------------------------------------------

OWN_NAMES: Final = {"HTTP_ALLOWED_HOSTS": "shop.example, *.shops.example"}
STRANGERS: Final = (
    *("evil.example", "evil.example:8001", "127.0.0.1.nip.io", "localhost.evil.example"),
    *("shops.example", "shop.example.evil.example", "notshop.example"),
)
ACQUAINTANCES: Final = (
    *("localhost", "LOCALHOST:8001", "app.localhost", "localhost.", "order", "order-2:8000"),
    *("127.0.0.1", "10.1.2.3:8000", "[::1]", "[fe80::1]:8000", "shop.example", "a.b.shops.example"),
)
FOREIGN_PAGES: Final[tuple[Headers, ...]] = (
    [(b"Sec-Fetch-Site", b"cross-site"), (b"Origin", b"https://evil.example")],
    [(b"Sec-Fetch-Site", b"same-site"), (b"Origin", b"http://localhost:3000")],
    [(b"Origin", b"https://evil.example")],
    [(b"Origin", b"http://localhost:3000")],
    [(b"Origin", b"null")],
    [(b"Origin", b"http://[")],
)
NO_FOREIGN_PAGES: Final[tuple[Headers, ...]] = (
    [],
    [(b"Sec-Fetch-Site", b"same-origin"), (b"Origin", b"https://behind-a-proxy.example")],
    [(b"Sec-Fetch-Site", b"none")],
    [(b"Origin", b"http://localhost")],
)


@asynccontextmanager
async def every_process(folder: Path, **environment: str) -> AsyncIterator[list[tuple[int, Door]]]:
    """Every door of every process that serves HTTP, with its port."""
    environment = OWN_NAMES | environment
    async with AsyncExitStack() as stack:
        found: list[tuple[int, Door]] = []
        for package in packages():
            opened = open_for_business(package, folder, **environment)
            served, own = await stack.enter_async_context(opened)
            found += [(served.port, door) for door in own]
        with mock.patch.dict(os.environ, environment):
            exporter = stack.enter_context(Exporter(NOWHERE, host="127.0.0.1", port=0))
        port = yarl.URL(exporter.url).port or 0
        yield found + [(port, door) for door in await doors(port, {})]


async def test_a_page_of_another_site_can_neither_read_nor_change_anything(tmp_path: Path) -> None:
    async with every_process(tmp_path) as every:
        for port, door in every:
            asked = sensible(door)

            async def status(
                headers: Headers, door: Door = door, port: int = port, asked: Requested = asked
            ) -> int:
                all_headers = [*asked.headers, *headers]
                answer = await ask(port, door.method, asked.target, all_headers, asked.body)
                assert wrong_with(door, answer) == ""
                return answer.status

            changes = door.method != "GET"
            # What each door is asked by one, one door is asked by all.
            every_one = door.path in ("/orders", "/livez")
            for name in STRANGERS[: None if every_one else 1]:
                assert await status([(b"Host", name.encode())]) == 421, (door.path, name)
            for name in ACQUAINTANCES[: None if every_one else 1]:
                assert await status([(b"Host", name.encode())]) != 421, (door.path, name)
            for page in FOREIGN_PAGES[: None if every_one else 1]:
                assert (await status(page) == 403) is changes, (door.path, page)
            for page in NO_FOREIGN_PAGES[: None if every_one else 1]:
                assert await status(page) != 403, (door.path, page)


async def test_the_name_that_is_not_known_is_told_with_the_way_out(tmp_path: Path) -> None:
    async with serving("order_service", tmp_path) as order:
        answer = await order.ask("GET", "/livez", [(b"Host", b"shop.example:8001")])

    assert answer.status == 421
    assert "'shop.example'" in answer.detail
    assert "HTTP_ALLOWED_HOSTS" in answer.detail


async def test_every_name_is_known_where_that_is_asked_for(tmp_path: Path) -> None:
    async with serving("order_service", tmp_path, HTTP_ALLOWED_HOSTS="*") as order:
        answer = await order.ask("GET", "/livez", [(b"Host", b"evil.example")])

    assert answer.status == 200


@pytest.mark.parametrize(
    "names", ["http://shop.example", "shop.example:80", "a b", "*shop", "a,,/"]
)
def test_a_name_that_is_none_is_refused_at_the_start(names: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"HTTP_ALLOWED_HOSTS: .* is no host name; write names"):
        built("order_service", tmp_path, HTTP_ALLOWED_HOSTS=names)


# --- how often, and how much ---------------------------------------------------------------------

PROXIED: Final = {"HTTP_PROXIES": "127.0.0.0/8, ::1", "HTTP_REQUESTS_PER_SECOND": "0.001"}
"""A request in a thousand seconds of each address, and clients that say whose request it is."""


def caller(number: int) -> tuple[bytes, bytes]:
    return (b"X-Forwarded-For", f"10.0.{number // 250}.{number % 250 + 1}".encode())


async def test_every_door_tells_who_asks_too_often_how_long_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.rates, "BURST_SECONDS", 2_000.0)  # two of them at once
    async with every_process(tmp_path, **PROXIED) as every:
        for number, (port, door) in enumerate(every):
            asked = sensible(door)

            async def answer(
                door: Door = door, port: int = port, asked: Requested = asked, number: int = number
            ) -> Answer:
                headers = [*asked.headers, caller(number)]
                found = await ask(port, door.method, asked.target, headers, asked.body)
                assert wrong_with(door, found) == ""
                return found

            first = [(await answer()).status for _ in range(2)]
            assert 429 not in first, door.path
            turned_away = await answer()
            if door.path in UNCOUNTED:
                assert turned_away.status == first[0]
            else:
                assert turned_away.status == 429, (door.path, turned_away)
                assert 0 < int(turned_away.headers["retry-after"]) <= 1_000
                assert "requests a second from 10.0." in turned_away.detail


async def test_who_asks_is_not_for_a_client_to_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.rates, "BURST_SECONDS", 2_000.0)
    not_ours = PROXIED | {"HTTP_PROXIES": "10.9.9.9"}
    async with serving("order_service", tmp_path, **not_ours) as order:
        answers = [await order.ask("GET", "/metrics", [caller(number)]) for number in range(3)]

    assert [answer.status for answer in answers] == [200, 200, 429]
    assert "from 127.0.0.1" in answers[-1].detail


async def test_every_door_says_that_headers_are_too_long(tmp_path: Path) -> None:
    async with every_process(tmp_path, HTTP_HEADERS_MAX_BYTES="8192") as every:
        for port, door in every:
            asked = sensible(door)
            for length, too_long in ((7_000, False), (8_192, True), (70_000, True)):
                long = [*asked.headers, (b"X-Long", b"x" * length)]
                answer = await ask(port, door.method, asked.target, long, asked.body)
                assert (answer.status == 431) is too_long, (door.path, length, answer)
                assert wrong_with(door, answer) == ""


async def test_every_answer_of_every_process_says_how_it_may_be_used(tmp_path: Path) -> None:
    async with every_process(tmp_path) as every:
        ports = dict.fromkeys(port for port, _ in every)
        beside = [path for path in (*PAGES, "/openapi.json", "/nothing") for _ in ports]
        asked = [(port, door.method, sensible(door)) for port, door in every]
        asked += [(port, "PUT", Requested(door.target())) for port, door in every]
        asked += [
            (port, "GET", Requested(path.encode()))
            for port, path in zip([*ports] * len(beside), beside, strict=False)
        ]
        asked += [
            (port, "GET", Requested(b"/livez", [(b"Host", b"evil.example")])) for port in ports
        ]
        found = {
            (port, method, request.target): await ask(
                port, method, request.target, request.headers, request.body
            )
            for port, method, request in asked
        }

    for which, answer in found.items():
        assert "server" not in answer.headers, which
        for name, value in SECURITY_HEADERS.items():
            said = answer.headers[name.decode()]
            assert said == value.decode() or which[2].decode() in PAGES, (which, name, said)
    statuses = {answer.status for answer in found.values()}
    assert statuses >= {200, 404, 405, 421}


async def test_an_answer_nobody_foresaw_says_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving("order_service", tmp_path) as order:
        monkeypatch.setattr(saga.runtime.metrics, "exposition", None)  # So that /metrics raises.
        answer = await order.ask("GET", "/metrics")

    assert answer.status == 500
    assert SECURITY_HEADERS.keys() <= {name.encode() for name in answer.headers}


async def test_the_page_about_a_services_routes_may_load_what_it_needs_and_nothing_else(
    tmp_path: Path,
) -> None:
    async with serving("order_service", tmp_path) as order:
        page = await order.ask("GET", "/docs")
        script = await order.ask("GET", "/docs/swagger-ui-bundle.js")

    policy = page.headers["content-security-policy"]
    scripts = re.findall(rb"<script>(.*?)</script>", page.body, re.DOTALL)
    assert scripts
    for each in scripts:
        assert f"'sha256-{base64.b64encode(hashlib.sha256(each).digest()).decode()}'" in policy
    assert "default-src 'none'; script-src 'self' 'sha256-" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe-inline" not in policy.partition("style-src")[0]
    assert (script.status, script.headers["cache-control"]) == (200, "max-age=86400")


# --- what is told ---------------------------------------------------------------------------------

ORDER: Final = {
    "customer": "c",
    "currency": "EUR",
    "lines": [{"sku": "A", "quantity": 1, "unit_price_cents": 100}],
}


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([], "the Content-Type is missing"),
        ([(b"Content-Type", b"text/plain")], "'text/plain' is not read here"),
        ([(b"Content-Type", b"application/x-www-form-urlencoded")], "not read here"),
    ],
)
async def test_a_body_that_is_not_said_to_be_json_is_refused_for_that(
    headers: Headers, words: str, tmp_path: Path
) -> None:
    async with serving("order_service", tmp_path) as order:
        answer = await order.ask("POST", "/orders", headers, json.dumps(ORDER).encode())

    assert answer.status == 415
    assert words in answer.detail
    assert "application/json" in answer.detail


async def test_an_error_nobody_foresaw_is_logged_once(
    tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    async with serving("order_service", tmp_path) as order:
        router = APIRouter()

        @router.get("/broken")
        async def broken() -> None:
            raise LookupError("a fault")

        app = order.parts.app
        app.include_router(router)
        answer = await order.ask("GET", "/broken?%0a")

    assert answer.status == 500
    assert answer.headers["content-type"] == PROBLEM
    assert complaints() == ["saga.runtime.doors: GET /broken failed"]


async def test_metrics_are_described_as_what_they_are(package: str, tmp_path: Path) -> None:
    async with open_for_business(package, tmp_path) as (_, found):
        (metrics,) = [door for door in found if door.path == "/metrics"]

    content = metrics.operation["responses"]["200"]["content"]
    assert content.keys() == {"text/plain", "application/openmetrics-text"}


async def test_readiness_is_told_at_once_though_the_broker_takes_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.readiness, "LOOK_EVERY_SECONDS", 0.02)
    looks = 0

    async def unread(_: Consumer) -> list[str]:
        nonlocal looks
        looks += 1
        if looks > 1:
            await asyncio.Event().wait()
        return []

    monkeypatch.setattr(Consumer, "unread", unread)
    async with serving("order_service", tmp_path) as order:
        await until(lambda: looks == 2)

        async def is_ready() -> bool:  # The database is looked at as well.
            return (await order.ask("GET", "/readyz")).status == 200

        await until(is_ready)
        answers = [await order.ask("GET", "/readyz") for _ in range(5)]

    assert [answer.status for answer in answers] == [200] * 5
    ages = [answer.json["checked_seconds_ago"] for answer in answers]
    assert ages == sorted(ages)


# --- a database that is away ----------------------------------------------------------------------


async def statuses(served: Served, found: list[Door]) -> dict[str, Answer]:
    """What each of the service's own doors says to a sensible request; all asked at once."""
    own = [door for door in found if door.path not in OPERATIONS]
    answers = await asyncio.gather(
        *(served.ask(door.method, **vars(sensible(door))) for door in own)
    )
    for door, answer in zip(own, answers, strict=True):
        assert wrong_with(door, answer) == "", door
    return {f"{door.method} {door.path}": a for door, a in zip(own, answers, strict=True)}


async def settled(served: Served, found: list[Door]) -> dict[str, Answer]:
    """What they say again and again: an order can be cancelled once."""
    await statuses(served, found)
    return await statuses(served, found)


async def answers_as(served: Served, found: list[Door], before: Mapping[str, Answer]) -> bool:
    """Whether they say what they said before."""
    after = await statuses(served, found)
    return all(after[name].status == answer.status for name, answer in before.items())


async def test_nothing_is_taken_into_a_file_that_nobody_will_find(
    package: str, tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    async with open_for_business(package, tmp_path, HTTP_ANSWER_SECONDS="0.5") as (served, found):
        path, elsewhere = tmp_path / f"{served.name}.db", tmp_path / "elsewhere"
        before = await settled(served, found)
        rows = content(path)
        path.rename(elsewhere)

        for answer in (await statuses(served, found)).values():
            assert answer.status == 503
            assert int(answer.headers["retry-after"]) > 0

        async def says_why() -> bool:
            ready = await served.ask("GET", "/readyz")
            return str(path) in ready.json["missing"].get("database", "")

        await until(says_why)
        elsewhere.rename(path)
        assert content(path) == rows

        await until(lambda: answers_as(served, found, before))
    assert complaints() == []


def content(path: Path) -> dict[str, int]:
    """How many rows each table has."""
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {
            name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608 - a table's
            for (name,) in tables.fetchall()
        }


async def test_a_database_that_takes_nothing_is_said_in_time_and_nothing_is_lost_or_doubled(
    package: str, tmp_path: Path, complaints: Callable[[], list[str]]
) -> None:
    async with open_for_business(package, tmp_path, HTTP_ANSWER_SECONDS="0.5") as (served, found):
        before = await settled(served, found)
        with closing(sqlite3.connect(tmp_path / f"{served.name}.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            for name, answer in (await statuses(served, found)).items():
                changes = not name.startswith("GET") and before[name].status in (202, 409)
                assert answer.status == (503 if changes else before[name].status), name
                if changes:
                    assert int(answer.headers["retry-after"]) > 0
                    assert "try again later" in answer.detail or "ask again later" in answer.detail

        await until(lambda: answers_as(served, found, before))
    assert complaints() == []


async def test_an_order_that_a_stop_cuts_short_is_told_to_ask_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, complaints: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(saga.runtime.server, "GRACEFUL_SECONDS", 1)
    async with serving("order_service", tmp_path) as order:
        with closing(sqlite3.connect(tmp_path / "order.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            body = json.dumps(ORDER).encode()
            placing = asyncio.ensure_future(order.ask("POST", "/orders", [JSON], body))
            await until(lambda: len(order.server.server_state.tasks) == 1)
            order.server.should_exit = True
            answer = await placing

    assert answer.status == 503
    assert int(answer.headers["retry-after"]) > 0
    assert answer.detail.startswith("not done before the service stops, and it may still be; ")
    assert complaints() == [
        "uvicorn.error: Cancel 1 running task(s), timeout graceful shutdown exceeded"
    ]


async def test_an_order_that_could_not_be_committed_in_time_is_placed_once_when_asked_again(
    tmp_path: Path,
) -> None:
    headers = [JSON, (b"Idempotency-Key", b"k")]
    body = json.dumps(ORDER).encode()
    async with serving("order_service", tmp_path, HTTP_ANSWER_SECONDS="0.5") as order:
        with closing(sqlite3.connect(tmp_path / "order.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            refused = [await order.ask("POST", "/orders", headers, body) for _ in range(2)]
            other.rollback()
        assert [answer.status for answer in refused] == [503, 503]
        assert "the same Idempotency-Key" in refused[0].detail

        async def placed() -> bool:
            return (await order.ask("POST", "/orders", headers, body)).status == 202

        await until(placed)
        assert content(tmp_path / "order.db")["orders"] == 1


async def test_while_nothing_can_be_committed_for_long_nothing_more_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.kernel.sqlite, "BUSY_TIMEOUT_SECONDS", 0.05)
    monkeypatch.setattr(saga.runtime.service, "REFUSE_SECONDS", 0.2)
    body = json.dumps(ORDER).encode()
    async with serving("order_service", tmp_path, HTTP_ANSWER_SECONDS="60") as order:
        with closing(sqlite3.connect(tmp_path / "order.db")) as other:
            other.execute("BEGIN IMMEDIATE")
            first = asyncio.create_task(order.ask("POST", "/orders", [JSON], body))

            await until(lambda: is_not_ready(order))
            refused = await order.ask("POST", "/orders", [JSON], body)
            assert refused.status == 503
            assert "nothing can be committed: " in refused.detail
            assert "database is locked" in refused.detail
            assert not first.done()
            other.rollback()
        assert (await first).status == 202


async def is_not_ready(served: Served) -> bool:
    ready = await served.ask("GET", "/readyz")
    return "nothing can be committed" in ready.json["missing"].get("database", "")
