"""What comes from elsewhere and means no good: requests of other sites, addresses that were
tampered with, texts that a browser would obey. Refused, or shown harmlessly."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import pytest_asyncio
from fastapi import FastAPI
from playwright.async_api import Browser

from order_saga import SAGA
from saga.console.app import create
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.settings import ConsoleSettings
from saga.console.site import Site
from saga.console.watched import Watched
from saga.dlq.selection import Selection
from saga.local.system import System
from tests.console.orders import bury, discard_all, store_of
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

HOSTILE = (
    "</td></script><script>document.title='taken'</script>"
    "<img src=x onerror=document.title='taken'>"
    "{{ 7 * 191 }}\x1b[2J\x1b]0;taken\x07\u202etxt.exe\u2066\u200b"
)
"""Markup, a template's, a terminal's escapes, changes of direction, what is not seen."""
OBEYED = ("<script>document", "<img", "\x1b", "\x07", "\u202e", "\u2066", "\u200b", "1337")
LONG = "a" * 10_000
PATHS = {
    "{number}": "999999",
    "{participant}": "order",
    "{kind}": "Order",
    "{subject:path}": quote("no/one", safe=""),
}


def paths(routes: Any, method: str) -> Iterator[str]:
    """The addresses at which this method is taken, parts of others' included."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from paths(router.routes, method)
        elif method in (getattr(route, "methods", None) or ()):
            path: str = route.path
            for part, value in PATHS.items():
                path = path.replace(part, value)
            yield path


def app_of(system: System, *, write: bool) -> FastAPI:
    watched = Watched(system.folder, SAGA)
    site = Site(watched, Ticker(), SystemWatcher(watched, None), write=write)
    return create(site, ConsoleSettings(console_write=write))


@pytest_asyncio.fixture(loop_scope="session")
async def client(writing: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=writing, timeout=60) as client:
        yield client


async def test_a_read_only_console_refuses_every_write(
    console_system: System, reading: str
) -> None:
    posts = sorted(paths(app_of(console_system, write=False).routes, "POST"))
    assert len(posts) >= 8, posts
    async with httpx.AsyncClient(base_url=reading, timeout=60) as client:
        for path in posts:
            for method in ("POST", "PUT", "PATCH", "DELETE"):
                form = {"reason": "none", "confirmed": "x"}
                answer = await client.request(method, path, data=form)
                assert answer.status_code == 403, path
                assert "--write" in answer.text


async def test_a_page_of_another_site_changes_nothing(
    console_system: System, client: httpx.AsyncClient
) -> None:
    with store_of(console_system) as store:
        before = store.actions(1)
        for path in paths(app_of(console_system, write=True).routes, "POST"):
            for headers in (
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
                {"Origin": "http://shop.example"},
                {"Origin": "null"},
            ):
                answer = await client.post(path, data={"reason": "none"}, headers=headers)
                assert answer.status_code == 403, path
        reading = await client.get("/letters/replay", headers={"Sec-Fetch-Site": "cross-site"})
        assert reading.status_code == 200
        assert store.actions(1) == before


async def test_a_foreign_name_is_not_answered_to(client: httpx.AsyncClient) -> None:
    for path in ("/", "/letters", "/static/console.js", "/live"):
        answer = await client.get(path, headers={"Host": "rebound.example"})
        assert answer.status_code == 421


def places() -> Iterator[str]:
    """Places in lists that no page has given."""
    yield from ("x", "....", "é", "e30=", "W10=", LONG)
    made: tuple[Any, ...] = (
        None,
        [],
        {},
        [1],
        ["2026-01-01T00:00:00+00:00"],
        ["2026-01-01T00:00:00", 1],
        ["2026-01-01T00:00:00+00:00", 10**30],
        ["2026-01-01T00:00:00+00:00", "x"],
        ["2026-01-01T00:00:00+00:00", 1, 2, 3],
        [True, "x"],
        [10**30, "x"],
        [1, "a\0b"],
        [1, "\ud800"],
        ["{"],
        ['{"dead letters": 1}'],
        ['{"dead letters": ["", "x"]}'],
        ['{"dead letters": ["", "99999999999999999999999"]}'],
        ['{"order": ["no time", "x"]}'],
        ['{"order": ["2026-01-01T00:00:00+00:00", "\\u0000"]}'],
        [[[[[[1]]]]]],
    )
    for values in made:
        yield base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


LISTS = (
    "/letters?by=letter&after=",
    "/letters?after=",
    "/letters/replay?after=",
    "/replays?after=",
    "/due?after=",
    "/audit?after=",
    "/audit/trail?after=",
    "/decide?after=",
)


@pytest.mark.parametrize("path", LISTS)
async def test_a_place_that_was_tampered_with_is_refused(
    path: str, client: httpx.AsyncClient
) -> None:
    statuses = set()
    for place in places():
        answer = await client.get(path + quote(place))
        statuses.add(answer.status_code)
        assert answer.status_code in (200, 422), (place, answer.text)
        assert len(answer.content) < 100_000
    assert 422 in statuses


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/letters/999999", 404),
        (f"/letters/{10**40}", 422),
        ("/letters/-1", 422),
        ("/letters/one", 422),
        (f"/letters/{quote(HOSTILE, safe='')}", 404),
        ("/replays/999999", 404),
        (f"/replays/{10**40}", 422),
        ("/due/order/Order/no-one", 404),
        ("/due/nobody/Order/no-one", 404),
        (f"/due/order/{quote(HOSTILE, safe='')}/{quote(HOSTILE, safe='')}", 404),
        (f"/due?participant={quote(HOSTILE)}", 422),
        (f"/letters?service={quote(HOSTILE)}", 422),
        (f"/letters?fingerprint={quote(HOSTILE)}", 422),
        (f"/letters?subject={quote(HOSTILE)}", 422),
        ("/letters?subject=%00%FF", 422),
        (f"/letters?older_than={quote(HOSTILE)}", 422),
        (f"/letters?error={LONG}", 422),
        (f"/letters?{quote(HOSTILE)}=1", 422),
        (f"/letters?error={quote(HOSTILE)}", 200),
        (f"/audit?record={quote(HOSTILE)}", 422),
        (f"/decide?rule={quote(HOSTILE)}", 422),
        (f"/decide?rule=mails_unknown&subject={quote(HOSTILE)}", 200),
        ("/letters/discard", 422),
        ("/letters/replay?max_replays=0", 422),
    ],
)
async def test_what_does_not_exist_is_said_harmlessly(
    path: str, status: int, client: httpx.AsyncClient
) -> None:
    answer = await client.get(path)
    assert answer.status_code == status
    assert not [text for text in OBEYED if text in answer.text]
    assert len(answer.content) < 100_000


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"reason": ""}, "reason"),
        ({"reason": "  "}, "reason"),
        ({"reason": LONG}, "reason"),
        ({"reason": "a\x1b[2Jb"}, "control"),
        ({"reason": "a\u202eb"}, "control"),
        ({"reason": "fine", "more": "1"}, "more"),
        ({"reason": "fine", "max_failing": "7"}, "max-failing"),
        ({"reason": "fine", "rate": "-1"}, "rate"),
        ({"reason": "fine", "rate": "nan"}, "rate"),
    ],
)
async def test_a_form_that_makes_no_sense_changes_nothing(
    form: dict[str, str], said: str, console_system: System, client: httpx.AsyncClient
) -> None:
    with store_of(console_system) as store:
        before = len(store.replays.newest(100))
        answer = await client.post("/letters/replay", data={"confirmed": "x", **form})
        assert answer.status_code == 422
        assert said in answer.text
        assert not [text for text in OBEYED if text in answer.text]
        assert len(store.replays.newest(100)) == before


async def test_a_form_that_is_too_long_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post("/letters/1/send", data={"text": "a" * 300_000, "reason": "x"})
    assert answer.status_code == 413


async def test_what_others_wrote_is_shown_and_not_obeyed(
    browser: Browser, console_system: System, client: httpx.AsyncClient, writing: str
) -> None:
    await bury(console_system.deployment, 2, said=HOSTILE, mark="<b>")
    await bury(console_system.deployment, 1, said=LONG, mark="long")
    with store_of(console_system) as store:

        async def collected() -> bool:
            await client.get("/letters")
            found = [store.find(Selection(error=said)) for said in ("taken", "a" * 100)]
            return [len(letters) for letters in found] == [2, 1]

        await until(collected)
        letters = store.find(Selection(service="payment", error="taken"))
        (long,) = (each for each in store.find(Selection(error="a" * 100)))
        store.discard(Selection(numbers=(letters[0].number,)), "<script>document.title='taken'")
        shown = [
            "/letters",
            "/letters?by=type",
            "/letters?by=letter",
            "/letters?by=letter&state=discarded",
            f"/letters?by=letter&fingerprint={quote(letters[0].fingerprint)}",
            f"/letters/replay?fingerprint={quote(letters[0].fingerprint)}",
            f"/letters/discard?fingerprint={quote(letters[0].fingerprint)}",
            f"/letters/{letters[0].number}",
            f"/letters/{letters[1].number}",
            f"/letters/{long.number}",
            "/audit",
            "/audit?record=dead%20letters",
        ]
    page = await browser.new_page()
    try:
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        for path in shown:
            answer = await client.get(path)
            assert answer.status_code == 200, path
            assert not [text for text in OBEYED if text in answer.text], path
            assert len(answer.content) < 100_000, path
            await page.goto(writing + path)
            assert "taken" not in await page.title()
        assert "&lt;script&gt;" in (await client.get(f"/letters/{letters[1].number}")).text
        assert errors == []
    finally:
        await page.close()
        discard_all(console_system)
