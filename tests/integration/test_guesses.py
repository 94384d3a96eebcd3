"""Who is not shown a name cannot find it out by asking for its letters.

Every text that a command or a page of the console takes is tried with a part of a name that is
there, and with a text that is nowhere, and the answers say the same. Commands and pages are those
there are, so that a new filter is tried by itself.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from inventory_service.domain import AddStock
from order_saga import SAGA
from saga.console.access import routes_in
from saga.console.app import create
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.settings import ConsoleSettings
from saga.console.site import Site
from saga.console.watched import Watched
from saga.discovery import choreography
from saga.personal.opening import made_key
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import DEAD_EXCHANGE, apply, topology_of
from tests.books import Books
from tests.integration.test_views import COMMANDS, NOT_THERE, WITH_SERVICES, run
from tests.messages import message_of
from tests.openapi import takes_text
from tests.order_play import Play

NAME: Final = "Zebedee Quigley"
PART: Final = "quigl"
"""Of the name: a search in any case would find it."""
NOWHERE: Final = "ottol"
QUOTING: Final = f"no account of '{NAME}' could be charged"
NO_FILTERS: Final = {
    "--reason": "is kept",
    "--set": "is written into a letter",
    "--folder": "a project is made there",
    "--amqp-url": "is an address",
    "--into": "is an address",
    "--host": "is an address",
}
"""Options that take a text and look for nothing."""


@dataclass
class Place:
    """A system without services, whose history, databases and dead letters name one customer."""

    folder: Path
    url: str
    subject: str


async def _furnish(folder: Path, url: str) -> Place:
    play = Play(at=utc_now() - timedelta(hours=1), tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"),
    )
    play.place(customer=NAME)
    play.deliver()
    play.provider_down = True
    subject = play.place(customer=NAME)
    play.deliver()
    books = Books(folder, play)
    await books.write()
    # Nothing tells whether names may be shown, so they are not.
    books.deployment(url).model_copy(update={"callers_known": None}).save(folder)
    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        await apply(topology_of(choreography()), channel)
        dead = await channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        for delivery in play.failed:
            letter = message_of(delivery.event.to_bytes())
            letter.headers |= {
                "x-saga-reason": "failed",
                "x-saga-error-type": "GatewayRefused",
                "x-saga-error": QUOTING,
            }
            await dead.publish(letter, "payment")
    return Place(folder, url, subject)


@pytest.fixture(scope="module")
def place(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    with virtual_host() as url:
        folder = tmp_path_factory.mktemp("guesses")
        made_key(folder)
        yield asyncio.run(_furnish(folder, url))


def unsaid(text: str, asked: str) -> str:
    """An answer without what was asked, which it may repeat, nor what differs from one to the
    next."""
    text = html.unescape(text).replace(NAME, "…")
    text = re.sub(re.escape(asked), "…", text, flags=re.IGNORECASE)
    text = re.sub(r"(?<=text=)[^&\"]*", "…", text)
    return re.sub(r"\d\d\d\d-\d\d-\d\d.\d\d:\d\d:\d\d\S*|\d+\.\d+ ms", "…", text)


# --- commands -------------------------------------------------------------------------------------


def texts_of(command: str) -> list[str]:
    """The options of a command by which something may be looked for."""
    return [
        parameter.opts[0]
        for parameter in COMMANDS[command].params
        if parameter.param_type_name == "option"
        and "str" in str(parameter.type_descriptor.annotation)
        and parameter.opts[0] not in NO_FILTERS
    ]


SUBJECT: Final = "a subject that is there"
BESIDES: Final[Mapping[str, list[str]]] = {
    "future": [SUBJECT],
    "show": [SUBJECT],
    "dlq replay": ["--dry-run"],
    "dlq discard": ["--reason", "a test"],
    "dlq restore": ["--reason", "a test"],
    "dlq purge": ["--reason", "a test"],
}
"""What a command takes besides its filters."""


def calls(command: str, said: str) -> Iterator[tuple[str, list[str]]]:
    """Ways to ask a command for a text, each with its name."""
    for option in texts_of(command):
        yield option, [option, said, *BESIDES.get(command, ())]
    if command in NOT_THERE and command not in WITH_SERVICES:
        yield "argument", [said if each == "nobody" else each for each in NOT_THERE[command]]


def differing(command: str, place: Place, **environment: str) -> set[str]:
    """The texts by which a command tells a part of the name from what is nowhere."""

    def told(arguments: list[str], said: str) -> tuple[Any, ...]:
        given = [place.subject if each == SUBJECT else each for each in arguments]
        done = run(command, *given, folder=place.folder, environment=environment)
        return done.status, unsaid(done.out, said), unsaid(done.err, said)

    nothing = {name: told(arguments, NOWHERE) for name, arguments in calls(command, NOWHERE)}
    return {
        name for name, arguments in calls(command, PART) if told(arguments, PART) != nothing[name]
    }


def reads_a_system(command: str) -> bool:
    options = {name for each in COMMANDS[command].params for name in each.opts}
    return "--data-dir" in options and command not in WITH_SERVICES


ASKED: Final = [name for name in COMMANDS if reads_a_system(name) and [*calls(name, "")]]


@pytest.mark.parametrize("command", ASKED)
def test_a_command_finds_nothing_by_parts_of_a_name_that_it_hides(
    command: str, place: Place
) -> None:
    assert differing(command, place) == set()


@pytest.mark.parametrize("command", ["dlq list", "dlq replay", "dlq export"])
def test_it_finds_them_for_who_is_shown_names(command: str, place: Place) -> None:
    assert differing(command, place, PERSONAL_SHOWN="clear") == {"--error"}


def test_what_an_error_says_besides_is_found_by_who_is_shown_no_names(place: Place) -> None:
    found = run("dlq list", "--error", "could be CHARGED", folder=place.folder)
    assert (found.status, NAME in found.out) == (1, False)


# --- the console ----------------------------------------------------------------------------------

IN_PATHS: Final = {"number": "1", "participant": "order", "kind": "Order", "name": "none"}
"""Keyed by what a path takes, but for the subject."""
WITHOUT_END: Final = "/live"
_FORM: Final = re.compile(r"<form(?![^>]*method=\S?post)[^>]*>.*?</form>", re.DOTALL)
_FIELD: Final = re.compile(r'<input(?![^>]*type="(?:hidden|checkbox|radio))[^>]* name="([^"]+)')


class Browser(httpx.AsyncClient):
    """A client of a console."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
        routes = [route for route in routes_in(app.routes) if "GET" in route.methods]
        self.document = get_openapi(title="console", version="1", routes=routes)
        """What its routes declare."""


@asynccontextmanager
async def at_console(place: Place, *, bodies: bool) -> AsyncIterator[Browser]:
    watched = Watched(place.folder, SAGA)
    site = Site(watched, Ticker(), SystemWatcher(watched, None), write=True, bodies=bodies)
    async with Browser(create(site, ConsoleSettings(data_dir=place.folder))) as client:
        yield client
    await site.letters.close()


async def texts_in(client: Browser, place: Place) -> list[tuple[str, str]]:
    """The address of each page, and each text that its route declares to take, or that a form on
    it has."""
    known = IN_PATHS | {"subject": place.subject}
    found = set()
    for path, methods in client.document["paths"].items():
        if path == WITHOUT_END or "seed}" in path:
            continue
        there = re.sub(r"\{(\w+)[^}]*\}", lambda part: known[part[1]], path)
        declared = methods["get"].get("parameters", ())
        names = {
            p["name"]
            for p in declared
            if p["in"] == "query" and takes_text(client.document, p["schema"])
        }
        forms = _FORM.findall((await client.get(there)).text)
        names |= {name for form in forms for name in _FIELD.findall(form)}
        found |= {(there, name) for name in names}
    return sorted(found)


async def found_by_guessing(place: Place, *, bodies: bool) -> set[tuple[str, str]]:
    """The pages, and the texts that they take, by which a part of the name is told from what is
    nowhere."""
    async with at_console(place, bodies=bodies) as client:

        async def told(path: str, name: str, said: str) -> tuple[int, str]:
            answer = await client.get(path, params={name: said})
            return answer.status_code, unsaid(answer.text, said)

        async def differs(path: str, name: str) -> bool:
            """Each time: a page also says how long ago something was."""
            tries = [
                await told(path, name, PART) != await told(path, name, NOWHERE) for _ in range(3)
            ]
            return all(tries)

        asked = await texts_in(client, place)
        return {(path, name) for path, name in asked if await differs(path, name)}


async def test_no_page_finds_anything_by_parts_of_a_name_that_it_masks(place: Place) -> None:
    assert await found_by_guessing(place, bodies=False) == set()


async def test_pages_find_them_for_who_is_shown_what_messages_say(place: Place) -> None:
    by_error = {f"/letters{page}" for page in ("", "/replay", "/discard")}

    found = await found_by_guessing(place, bodies=True)

    assert found == {("/sagas", "text")} | {(path, "error") for path in by_error}
