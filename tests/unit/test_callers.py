"""How often an address may ask, on a clock of the test's own."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

import saga.runtime.rates
from saga.runtime.doors import UNCOUNTED, Callers, guard
from saga.runtime.rates import BURST_SECONDS
from saga.runtime.settings import HttpSettings, SettingsError, load

PER_SECOND = 4.0
BURST = int(PER_SECOND * BURST_SECONDS)


class Asked:
    """The limit before an application that counts, and a clock that stands still."""

    def __init__(self, per_second: float = PER_SECOND) -> None:
        self.now = 1_000.0
        self.let_in = 0
        self.callers = Callers(self._app, per_second, clock=lambda: self.now)

    async def _app(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.let_in += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    def __call__(self, host: str | None = "10.0.0.1", path: str = "/orders") -> tuple[int, Any]:
        """The status, and for 429 the problem with its `Retry-After`."""
        client = None if host is None else (host, 1)
        scope: Scope = {"type": "http", "method": "GET", "path": path, "client": client}
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        async def receive() -> Message:
            return {"type": "http.disconnect"}

        asyncio.run(self.callers(scope, receive, send))
        start, body = sent
        if start["status"] == 200:
            return 200, None
        headers = {name.decode(): value.decode() for name, value in start["headers"]}
        return start["status"], json.loads(body["body"]) | {"after": int(headers["retry-after"])}

    def times(self, count: int, host: str = "10.0.0.1") -> list[int]:
        return [self(host)[0] for _ in range(count)]


def test_a_burst_is_answered_and_one_more_is_told_how_long_to_wait() -> None:
    ask = Asked()

    assert ask.times(BURST) == [200] * BURST
    status, problem = ask()

    assert (status, problem["after"], ask.let_in) == (429, 1, BURST)
    assert "more than 4 requests a second from 10.0.0.1" in problem["detail"]


def test_who_waits_as_long_as_told_is_answered() -> None:
    ask = Asked(per_second=0.01)
    assert ask()[0] == 200
    _, problem = ask()

    ask.now += problem["after"] - 1
    assert ask()[0] == 429
    ask.now += 1
    assert ask()[0] == 200


def test_who_asks_on_too_fast_still_gets_their_share() -> None:
    ask = Asked()
    ask.times(BURST)

    answered = 0
    for _ in range(100):
        ask.now += 0.125  # twice as fast as may be
        answered += ask()[0] == 200

    assert answered == 50


def test_who_was_quiet_has_their_burst_again_and_no_more() -> None:
    ask = Asked()
    ask.times(BURST)

    ask.now += 1_000 * BURST_SECONDS

    assert ask.times(BURST + 1) == [200] * BURST + [429]


def test_one_address_takes_nothing_from_another() -> None:
    ask = Asked()
    ask.times(BURST + 1)

    assert ask("10.0.0.2")[0] == 200
    assert ask(None)[0] == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1:2:3", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("not:an:address", "nor:this", False),
    ],
)
def test_a_providers_customer_is_one_caller(one: str, other: str, same: bool) -> None:
    ask = Asked(per_second=0.01)
    ask(one)

    assert ask(other)[0] == (429 if same else 200)


def test_what_supervisors_ask_is_never_turned_away_and_counts_for_nobody() -> None:
    ask = Asked(per_second=0.01)

    for path in UNCOUNTED:
        assert [ask(path=path)[0] for _ in range(5)] == [200] * 5
    assert ask()[0] == 200
    assert ask()[0] == 429
    assert [ask(path=path)[0] for path in UNCOUNTED] == [200, 200]


def test_so_many_callers_are_remembered_and_the_quietest_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saga.runtime.rates, "CALLERS_REMEMBERED_MAX", 3)
    ask = Asked(per_second=0.15)  # one at once, and one more
    for host in ("a", "b", "c"):
        assert ask(host)[0] == 200
    ask.now += 8
    assert ask("a")[0] == 200  # so that b is the quietest

    assert ask("d")[0] == 200

    assert len(ask.callers._rates._free_at) == 3
    assert "b" not in ask.callers._rates._free_at


def test_the_log_tells_of_it_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    ask = Asked(per_second=0.01)
    for _ in range(5):
        ask()
    assert len(caplog.records) == 1
    assert "10.0.0.1 asks more than 0.01 times a second" in caplog.text

    ask.now += 60
    ask()

    assert len(caplog.records) == 2


def test_no_limit_is_no_limit() -> None:
    limited, free = FastAPI(), FastAPI()
    guard(limited, HttpSettings())
    guard(free, HttpSettings(http_requests_per_second=0))

    assert Callers in [vars(each)["cls"] for each in limited.user_middleware]
    assert Callers not in [vars(each)["cls"] for each in free.user_middleware]


@pytest.mark.parametrize(
    ("name", "value", "way_out"),
    [
        ("HTTP_REQUESTS_PER_SECOND", "-1", "greater than or equal to 0"),
        ("HTTP_REQUESTS_PER_SECOND", "nan", "finite number"),
        ("HTTP_REQUESTS_PER_SECOND", "many", "valid number"),
        ("HTTP_PROXIES", "proxy.example", r"'proxy.example' is no address; write addresses or"),
        ("HTTP_PROXIES", "10.0.0.1/33", "is no address"),
        ("HTTP_PROXIES", "*", "is no address"),
        ("HTTP_HEADERS_MAX_BYTES", "100", "greater than or equal to 8192"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(
    name: str, value: str, way_out: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError, match=f"{name}.*{way_out}"):
        load(HttpSettings)
