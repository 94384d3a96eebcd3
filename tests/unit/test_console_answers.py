"""What stands before the console's pages, over every route its router has; no system runs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import FastAPI
from starlette.types import Message, Scope

import saga.runtime.rates
from order_saga import SAGA
from saga.console.app import create
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.settings import ConsoleSettings
from saga.console.site import Site, security_policy
from saga.console.watched import Watched
from saga.runtime.doors import UNCOUNTED
from saga.runtime.headers import POLICY, SECURITY_HEADERS
from tests.polling import DEADLINE_SECONDS

PROXY: Final = "127.0.0.1"
EXPECTED: Final = SECURITY_HEADERS | {
    POLICY: security_policy().encode(),
    b"referrer-policy": b"same-origin",
}


def console(folder: Path, **settings: Any) -> FastAPI:
    watched = Watched(folder, SAGA)
    site = Site(watched, Ticker(), SystemWatcher(watched, None), write=True)
    return create(site, ConsoleSettings(console_write=True, **settings))


def routes_of(routes: Any) -> Iterator[tuple[str, str]]:
    """Each method and path, parts of others' included."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from routes_of(router.routes)
        else:
            yield from ((method, route.path) for method in getattr(route, "methods", None) or ())


async def begin(app: FastAPI, method: str, path: str, *headers: tuple[bytes, bytes]) -> Message:
    """The start of what is answered; the rest, which may never end, is not waited for."""
    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), *headers],
        "client": (PROXY, 1),
        "server": ("127.0.0.1", 8080),
    }
    started: asyncio.Queue[Message] = asyncio.Queue()
    body: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if not body:
            await asyncio.Event().wait()
        return body.pop()

    async def send(message: Message) -> None:
        started.put_nowait(message)

    answering = asyncio.create_task(app(scope, receive, send))
    try:
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await started.get()
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def test_every_answer_says_how_it_may_be_used(tmp_path: Path) -> None:
    app = console(tmp_path)
    every = sorted(set(routes_of(app.routes)))
    assert len(every) >= 30, every

    for method, path in [*every, ("GET", "/nothing"), ("DELETE", "/")]:
        headers = [*(await begin(app, method, path))["headers"]]
        found = dict(headers)
        assert len([name for name, _ in headers if name in EXPECTED]) == len(EXPECTED), path
        assert {name: found[name] for name in EXPECTED} == EXPECTED | {
            b"cache-control": found[b"cache-control"]
        }
        assert found[b"cache-control"] == b"no-store" or path.startswith("/static/"), path


async def test_every_page_tells_who_asks_too_often_how_long_to_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.rates, "BURST_SECONDS", 1_000.0)  # one of them at once
    app = console(tmp_path, http_requests_per_second=0.001, http_proxies=PROXY)

    for number, (method, path) in enumerate(sorted(set(routes_of(app.routes)))):
        caller = (b"x-forwarded-for", f"10.0.0.{number}".encode())
        assert (await begin(app, method, path, caller))["status"] != 429, path
        turned_away = await begin(app, method, path, caller)
        if path in UNCOUNTED:
            assert turned_away["status"] == 200
        else:
            headers = dict(turned_away["headers"])
            assert turned_away["status"] == 429, path
            assert 0 < int(headers[b"retry-after"]) <= 1_000
            assert headers[b"content-type"].startswith(b"text/html"), path
            assert {*EXPECTED} <= {*headers}


async def test_every_page_says_that_headers_are_too_long(tmp_path: Path) -> None:
    app = console(tmp_path, http_headers_max_bytes=8_192)

    for method, path in sorted(set(routes_of(app.routes))):
        assert (await begin(app, method, path, (b"x-long", b"x" * 8_192)))["status"] == 431, path
