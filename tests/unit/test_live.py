"""What keeps open pages up to date: one tick for all, one answer per address, and no more than a
small share of a core."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import httpx
import pytest
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse
from starlette.types import Message, Scope

from saga.console import live
from saga.console.live import HEADER, Sharing, Ticker
from tests.polling import until


def counting(ticker: Ticker) -> tuple[FastAPI, list[str]]:
    """An application that notes what it was asked for, behind the middleware."""
    app, asked = FastAPI(), list[str]()

    @app.get("/{name}")
    async def page(name: str, q: str = "") -> PlainTextResponse:
        asked.append(f"{name}?{q}")
        await asyncio.sleep(0)
        return PlainTextResponse(f"{name} {len(asked)}")

    app.add_middleware(Sharing, ticker=ticker)
    return app, asked


def client(app: FastAPI) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app)
    return httpx.AsyncClient(transport=transport, base_url="http://console")


LIVE = {"X-Live": "1"}


async def test_ten_tabs_that_look_again_cost_what_one_does() -> None:
    app, asked = counting(Ticker())
    async with client(app) as tabs:
        answers = await asyncio.gather(*(tabs.get("/map", headers=LIVE) for _ in range(10)))
        await tabs.get("/map?q=1", headers=LIVE)

    assert {answer.text for answer in answers} == {"map 1"}
    assert asked == ["map?", "map?1"]


async def test_the_next_tick_and_a_page_that_is_opened_are_answered_anew() -> None:
    ticker = Ticker()
    app, asked = counting(ticker)
    async with client(app) as tabs:
        await tabs.get("/map", headers=LIVE)
        await tabs.get("/map")
        ticker.tick += 1
        await tabs.get("/map", headers=LIVE)

    assert asked == ["map?"] * 3


async def test_a_tab_that_is_closed_takes_the_answer_from_nobody() -> None:
    app, _ = counting(Ticker())
    async with client(app) as tabs:
        closed = asyncio.create_task(tabs.get("/map", headers=LIVE))
        other = asyncio.create_task(tabs.get("/map", headers=LIVE))
        await asyncio.sleep(0)
        closed.cancel()

        assert (await other).text == "map 1"


async def test_pages_are_brought_up_to_date_less_often_where_they_are_dear(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        ticker.spend(0.5)
        await really_sleep(0)

    really_sleep = asyncio.sleep
    ticker = Ticker()
    monkeypatch.setattr(asyncio, "sleep", sleep)
    async with aclosing(ticker.stream()) as stream:
        async for _ in stream:
            if len(pauses) >= 3:
                break
    await ticker.close()

    assert pauses[0] == live.TICK_SECONDS
    assert pauses[1] == pytest.approx(0.5 / live.SHARE_MAX)


async def test_nobody_listening_is_nothing_to_do_and_closing_ends_every_stream() -> None:
    ticker = Ticker()
    ended: list[int] = []

    async def listen(number: int) -> None:
        async for _ in ticker.stream():
            pass
        ended.append(number)

    listening = [asyncio.create_task(listen(number)) for number in range(3)]
    await until(lambda: len(ticker._listeners) == 3)
    await ticker.close()
    await asyncio.gather(*listening)

    assert sorted(ended) == [0, 1, 2]
    assert [said async for said in ticker.stream()] == []


async def test_so_many_pages_listen_at_most_and_so_many_of_one_user() -> None:
    ticker = Ticker(listeners_max=live.LISTENERS_OF_ONE_MAX + 2)

    async def listen(whose: str) -> None:
        async for _ in ticker.stream(whose):
            pass

    greedy = [asyncio.create_task(listen("eve")) for _ in range(live.LISTENERS_OF_ONE_MAX + 10)]
    await until(lambda: len(ticker._listeners) == live.LISTENERS_OF_ONE_MAX)
    assert not ticker.has_room_for("eve")
    others = [asyncio.create_task(listen(who)) for who in ("ada", "bob", "kim")]
    await until(lambda: others[2].done())
    assert not ticker.has_room_for("kim")
    await ticker.close()

    await asyncio.gather(*greedy, *others)
    assert not ticker._listeners


async def test_what_has_no_end_is_not_collected() -> None:
    app, ticker = FastAPI(), Ticker()

    @app.get("/live")
    async def stream() -> StreamingResponse:
        return StreamingResponse(ticker.stream())

    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    async def receive() -> Message:
        await asyncio.Event().wait()
        raise AssertionError

    address = {"path": "/live", "raw_path": b"/live", "query_string": b""}
    scope: Scope = {
        "type": "http",
        "method": "GET",
        **address,
        "headers": [(HEADER.encode(), b"1")],
    }
    sharing = Sharing(app, ticker, apart={"/live"})
    asking = asyncio.create_task(sharing(scope, receive, send))
    await until(lambda: any(message.get("body") for message in sent))
    await ticker.close()
    await asking
