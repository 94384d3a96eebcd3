"""A client that takes its time does not take that of others: what a connection may cost a server.

What uvicorn's own protocol does is part of it, so that a new version of it shows here.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import resource
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
import uvloop
from fastapi import FastAPI, Request
from fastapi.responses import Response

import saga.runtime.server
from saga.runtime.headers import SECURITY_HEADERS
from saga.runtime.problem import PROBLEM
from saga.runtime.readiness import Readiness
from saga.runtime.server import Server, listen
from saga.runtime.settings import HttpSettings
from saga.runtime.web import create_app
from tests.integration.served import LOOPBACK, Answer, ask, parsed, said
from tests.polling import DEADLINE_SECONDS, until

ROOT = Path(__file__).parents[2]
HUGE_BYTES = 32_000_000
GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n"

_OF_A_REQUEST: ContextVar[str] = ContextVar("of_a_request", default="nothing")


class Application:
    """What the tests talk to."""

    def __init__(self) -> None:
        self.called = 0
        self.release = asyncio.Event()

    def app(self) -> FastAPI:
        async def nothing() -> None: ...

        settings = HttpSettings(http_answer_seconds=DEADLINE_SECONDS, body_max_bytes=1_024)
        app = create_app("test", settings, readiness=Readiness(), before_scrape=nothing)

        @app.post("/echo")
        async def echo(request: Request) -> Response:
            self.called += 1
            return Response(await request.body())

        @app.get("/huge")
        async def huge() -> Response:
            return Response(bytes(HUGE_BYTES))

        @app.get("/slow")
        async def slow() -> Response:
            self.called += 1
            await self.release.wait()
            return Response(b"at last")

        return app


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(saga.runtime.server, "REQUEST_SECONDS", 0.3)
    monkeypatch.setattr(saga.runtime.server, "LINGER_SECONDS", 0.3)
    monkeypatch.setattr(saga.runtime.server, "_SWEEP_TICKS", 1)
    caplog.set_level(logging.INFO)


@asynccontextmanager
async def serving(
    application: Application, connections_max: int = 100
) -> AsyncIterator[tuple[Server, int]]:
    listener = listen(LOOPBACK, 0, way_out="port")
    port: int = listener.getsockname()[1]
    server = Server(application.app(), connections_max=connections_max)
    running = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        yield server, port
    finally:
        application.release.set()
        server.should_exit = True
        await running


def as_may_be_used(answer: Answer) -> bool:
    """Whether it says how it may be used, and not what serves it."""
    expected = {name.decode(): value.decode() for name, value in SECURITY_HEADERS.items()}
    return expected.items() <= answer.headers.items() and "server" not in answer.headers


def connections(server: Server) -> int:
    return len(server.server_state.connections)


def test_every_http_server_of_the_product_is_that_one() -> None:
    others = re.compile(
        r"start_http_server|HTTPServer|WSGIServer|uvicorn\.(run|Config)|start_server"
    )
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ROOT.glob("*/__init__.py")
        if package.parent.name not in ("bench", "tests")
        for path in package.parent.rglob("*.py")
        if others.search(path.read_text())
    ]
    assert found == ["saga/runtime/server.py"]


SLOW = {
    "nothing": b"",
    "half a request line": b"GET /liv",
    "half a header": GET + b"Accept: */",
    "no end of the headers": GET,
    "no body": POST + b"\r\n",
    "half a body": POST + b"\r\n12345",
    "half a chunk": POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked")
    + b"\r\n5\r\n123",
    "an answered request and half a second one": GET + b"\r\n" + GET,
}


@pytest.mark.parametrize("sent", SLOW.values(), ids=SLOW.keys())
async def test_a_connection_on_which_no_whole_request_comes_is_closed_with_the_reason(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    application = Application()
    async with serving(application) as (server, port):
        *_, last = (await said(port, sent)).split(b"HTTP/1.1 ")
        await until(lambda: connections(server) == 0)

    answer = parsed(b"HTTP/1.1 " + last)
    assert answer.status == 408
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["connection"] == "close"
    assert "no whole request within" in answer.detail
    assert as_may_be_used(answer)
    assert application.called == 0
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_a_client_that_sends_a_byte_now_and_then_gains_nothing_by_it() -> None:
    async with serving(Application()) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(GET + b"X: ")

        async def trickle() -> None:
            while not reader.at_eof():
                writer.write(b"x")
                await asyncio.sleep(0.02)

        trickling = asyncio.create_task(trickle())
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert parsed(await reader.read()).status == 408
        trickling.cancel()
        writer.close()
        await until(lambda: connections(server) == 0)


async def test_a_client_that_never_reads_its_answer_is_cut_off() -> None:
    async with serving(Application()) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port, limit=1)
        writer.write(b"GET /huge HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await until(lambda: connections(server) == 1)
        await until(lambda: connections(server) == 0)
        writer.close()
        del reader


async def test_a_client_that_does_not_close_is_closed() -> None:
    async with serving(Application()) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        async with asyncio.timeout(DEADLINE_SECONDS):
            assert parsed(await reader.read()).status == 408
        await until(lambda: connections(server) == 0)
        writer.close()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may be late with a request as well."""
    monkeypatch.setattr(saga.runtime.server, "REQUEST_SECONDS", DEADLINE_SECONDS)


@pytest.mark.usefixtures("patient")
async def test_an_answer_that_takes_long_is_no_reason_to_close() -> None:
    application = Application()
    async with serving(application) as (server, port):
        asking = asyncio.create_task(ask(port, "GET", "/slow"))
        await until(lambda: application.called == 1)
        (connection,) = server.server_state.connections
        assert isinstance(connection, saga.runtime.server._Connection)
        connection.end_if_late(connection.since + 1_000 * DEADLINE_SECONDS)
        application.release.set()
        assert (await asking).body == b"at last"


@pytest.mark.usefixtures("patient")
async def test_where_there_is_no_room_the_client_that_has_kept_us_waiting_makes_it() -> None:
    async with serving(Application(), connections_max=5) as (server, port):
        silent = [await asyncio.open_connection(LOOPBACK, port) for _ in range(5)]
        await until(lambda: connections(server) == 5)

        assert [(await ask(port, "GET", "/livez")).status for _ in range(3)] == [200] * 3

        def closed() -> int:
            return sum(reader.at_eof() or bool(reader.exception()) for reader, _ in silent)

        await until(lambda: closed() == 1)
        for _, writer in silent:
            writer.close()


@pytest.mark.usefixtures("patient")
async def test_where_all_are_being_answered_one_more_is_told_to_come_back() -> None:
    application = Application()
    async with serving(application, connections_max=5) as (server, port):
        busy = [asyncio.create_task(ask(port, "GET", "/slow")) for _ in range(5)]
        await until(lambda: application.called == 5)

        refused = await ask(port, "GET", "/livez")

        assert refused.status == 503
        assert refused.headers["content-type"] == PROBLEM
        assert int(refused.headers["retry-after"]) > 0
        application.release.set()
        assert {answer.body for answer in await asyncio.gather(*busy)} == {b"at last"}
        await until(lambda: connections(server) == 0)
        assert (await ask(port, "GET", "/livez")).status == 200


@pytest.mark.usefixtures("patient")
async def test_more_than_can_be_told_so_are_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saga.runtime.server, "TURNED_AWAY_MAX", 3)
    monkeypatch.setattr(saga.runtime.server, "LINGER_SECONDS", DEADLINE_SECONDS)
    application = Application()
    async with serving(application, connections_max=2) as (server, port):
        busy = [asyncio.create_task(ask(port, "GET", "/slow")) for _ in range(2)]
        await until(lambda: application.called == 2)
        many = [await asyncio.open_connection(LOOPBACK, port) for _ in range(30)]
        await until(lambda: all(reader.at_eof() or reader.exception() for reader, _ in many[10:]))
        assert connections(server) <= 2 + 3
        for _, writer in many:
            writer.close()
        application.release.set()
        await asyncio.gather(*busy)


NO_HTTP = {
    "a TLS hello": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100) + b"\r\n\r\n",
    "a line of prose": b"hello, is anybody there?\r\n\r\n",
    "no Host": b"GET /livez HTTP/1.1\r\n\r\n",
    "two Hosts": GET + b"Host: other\r\n\r\n",
    "a NUL in a header": GET + b"X: a\0b\r\n\r\n",
    "a length that is none": GET + b"Content-Length: many\r\n\r\n",
    "two lengths": POST + b"Content-Length: 11\r\n\r\n",
}


@pytest.mark.parametrize("sent", NO_HTTP.values(), ids=NO_HTTP.keys())
async def test_what_is_no_request_is_a_problem_and_nothing_for_the_log(
    sent: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Application()) as (_, port):
        answer = parsed(await said(port, sent))

    assert answer.status == 400
    assert answer.headers["content-type"] == PROBLEM
    assert "no HTTP request" in answer.detail
    assert as_may_be_used(answer)
    assert not [record for record in caplog.records if record.name.startswith("uvicorn")]


LAST = GET + b"Connection: close\r\n"


INNER = b"GET /huge HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"POST /echo HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n",
    ],
)
async def test_a_request_whose_length_is_said_in_two_ways_is_refused_with_what_follows(
    head: bytes,
) -> None:
    application = Application()
    async with serving(application) as (_, port):
        received = await said(port, head + b"Host: localhost\r\n\r\n0\r\n\r\n" + INNER)
    assert parsed(received).status == 400
    assert received.count(b"HTTP/1.1") == 1
    assert application.called == 0


async def test_nothing_of_one_request_is_known_to_the_next_on_its_connection() -> None:
    seen: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(_OF_A_REQUEST.get())
        _OF_A_REQUEST.set("former")
        await Response(b"done")(scope, receive, send)

    listener = listen(LOOPBACK, 0, way_out="port")
    server = Server(app, connections_max=10)
    running = asyncio.create_task(server.serve([listener]))
    try:
        await until(lambda: server.started)
        request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
        last = b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        await said(listener.getsockname()[1], request + last)
    finally:
        server.should_exit = True
        await running
    assert seen == ["nothing", "nothing"]


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["without end", "whole"])
async def test_headers_that_are_too_long_are_named_however_they_come(
    end: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Application()) as (_, port):
        answer = parsed(await said(port, LAST + b"X: " + b"x" * 70_000 + end))

    assert answer.status == 431
    assert "may have at most 65536 bytes" in answer.detail
    assert as_may_be_used(answer)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("more", [b"x" * 5_000, b"5\r\n12345\r\n" * 500, b"\0\r\n\r\n" * 500])
async def test_what_still_comes_after_an_answer_is_nothing_for_the_log(
    more: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    head = POST.replace(b"Content-Length: 10", b"Transfer-Encoding: chunked")
    async with serving(Application()) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(head + b"\r\n800\r\n" + b"x" * 0x800 + b"\r\n")
        answer = await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            writer.write(more)
            await reader.read()
        writer.close()
        await until(lambda: connections(server) == 0)

    assert parsed(answer).status == 413
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_a_server_that_stops_waits_for_nobody_who_sends_nothing() -> None:
    async with serving(Application()) as (server, port):
        idle = [await asyncio.open_connection(LOOPBACK, port) for _ in range(3)]
        for number, sent in enumerate((b"", GET, POST + b"\r\n123")):
            idle[number][1].write(sent)
        await until(lambda: connections(server) == 3)
    for _, writer in idle:
        writer.close()


@pytest.mark.parametrize(
    "scenario",
    [
        test_a_client_that_sends_a_byte_now_and_then_gains_nothing_by_it,
        test_a_client_that_never_reads_its_answer_is_cut_off,
        test_a_client_that_does_not_close_is_closed,
        test_a_server_that_stops_waits_for_nobody_who_sends_nothing,
    ],
)
def test_it_is_the_same_on_the_event_loop_of_the_services(
    scenario: Callable[[], Coroutine[Any, Any, None]],
) -> None:
    uvloop.run(scenario())


@pytest.mark.usefixtures("patient")
def test_who_makes_room_is_the_same_on_the_event_loop_of_the_services() -> None:
    uvloop.run(test_where_there_is_no_room_the_client_that_has_kept_us_waiting_makes_it())
    uvloop.run(test_where_all_are_being_answered_one_more_is_told_to_come_back())


def test_a_server_that_may_not_have_so_many_connections_says_so_at_its_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1_000, 1_000))

    with pytest.raises(OSError, match=r"only 1000 files .*ulimit -n 1256.*HTTP_CONNECTIONS_MAX"):
        Server(FastAPI(), connections_max=1_000)


async def test_a_pause_of_the_server_is_no_clients_fault() -> None:
    async with serving(Application()) as (server, port):
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        writer.write(GET)
        await until(lambda: connections(server) == 1)
        now = asyncio.get_running_loop().time()
        state = server.server_state
        assert isinstance(state, saga.runtime.server._State)
        state._swept_at = now  # Then the process is stopped for an hour, and looks again.
        state.sweep(now + 3_600)
        state._swept_at = None
        writer.write(b"\r\n")
        answer = parsed(await reader.readuntil(b"\r\n\r\n"))
        writer.close()

    assert answer.status == 200
