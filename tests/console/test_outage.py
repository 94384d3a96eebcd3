"""What the map and the services say when parts of the system cannot be asked."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from order_saga import SAGA
from saga.archive import OBSERVER
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.dlq.desk import open_desk
from saga.http import client
from saga.local.system import System
from saga.runtime.kernel.opening import open_database
from saga.runtime.urls import sqlite_url
from tests.console.orders import bury, discard_all, ordered
from tests.polling import until
from tests.stores import HISTORY

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECONDS = 30.0
CLOSED = "127.0.0.1:1"
"""Where nothing listens."""


@asynccontextmanager
async def hung() -> AsyncIterator[str]:
    """The address of a service that takes requests and never answers."""
    taken: list[asyncio.StreamWriter] = []

    def take(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        taken.append(writer)

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        yield f"http://{host}:{port}"
        for writer in taken:
            writer.close()


@asynccontextmanager
async def watching(system: System, folder: Path, **changed: Any) -> AsyncIterator[str]:
    """A console to which these parts of the system are elsewhere. A dictionary stands beside the
    addresses that there are; one that is None is taken away."""
    deployment = system.deployment
    for name, value in changed.items():
        if isinstance(value, dict):
            joined = getattr(deployment, name) | value
            changed[name] = {key: url for key, url in joined.items() if url is not None}
    deployment.model_copy(update=changed).save(folder)
    async with serving(Watched(folder, SAGA), ConsoleSettings(http_port=0)) as url:
        yield url.rstrip("/")


async def get(console: str, path: str) -> str:
    async with client(console, SECONDS) as asking:
        answer = await asking.get(path)
    assert answer.status_code == 200, answer.text
    return re.sub(r"\s+", " ", answer.text)


async def test_a_service_that_hangs_and_a_broker_that_is_gone_keep_no_page_waiting(
    console_system: System, tmp_path: Path
) -> None:
    gone = {"amqp_url": f"amqp://{CLOSED}", "amqp_urls": {}}
    async with (
        hung() as url,
        watching(console_system, tmp_path, **gone, http_urls={"payment": (url,)}) as console,
    ):
        assert "have not all answered yet" in await get(console, "/services")
        assert "being asked" in await get(console, "/")

        async def is_told() -> bool:
            return f"no answer from {url}" in await get(console, "/services")

        await until(is_told)
        said = await get(console, "/services")
        assert "The broker could not be asked." in said
        assert "What waits in queues is not known" in said
        assert "what they say is as of" in said  # It is asked again.
        assert "being asked, and have not all answered yet: what they say" in said
        said = await get(console, "/")
        assert "backlog not known" in said
        assert "payment: down: no answer" in said


async def test_a_database_that_cannot_be_read_is_not_a_broker_that_cannot_be_asked(
    console_system: System, tmp_path: Path
) -> None:
    (tmp_path / "payment.sqlite3").write_text("this is no database" * 100)
    broken = {"payment": sqlite_url(tmp_path / "payment.sqlite3")}
    async with watching(console_system, tmp_path, database_urls=broken) as console:
        said = await get(console, "/services")

        assert "What follows from the databases is not known" in said
        assert "The broker could not be asked." not in said
        assert '<th scope="row">payment.normal</th>' in said
        assert "Nothing is wrong.</p>" not in said
        assert "backlog not known" not in await get(console, "/")


async def test_what_was_not_looked_at_is_named_and_not_called_fine(
    console_system: System, tmp_path: Path
) -> None:
    missing = {"database_urls": {"payment": None}, "http_urls": {"notification": None}}
    async with watching(console_system, tmp_path, **missing) as console:
        said = await get(console, "/services")

        assert (
            "Not looked at: notification has no address here; "
            "the deployment names no database of payment." in said
        )
        assert "Nothing is wrong.</p>" not in said


async def test_the_map_says_that_its_figures_lack_what_the_history_has_not_recorded(
    console_system: System, tmp_path: Path
) -> None:
    empty = sqlite_url(tmp_path / "history.sqlite3")
    await (await open_database(empty, HISTORY)).close()
    away = {
        "database_urls": {OBSERVER.name: empty},
        "http_urls": {OBSERVER.name: (f"http://{CLOSED}",)},
    }
    async with watching(console_system, tmp_path, **away) as console:
        assert "The history service is down: no answer from" in await get(console, "/")
        await ordered(console_system.deployment, 1)

        async def is_told() -> bool:
            said = await get(console, "/")
            return re.search(r"The history was \d+ messages? behind its stream", said) is not None

        await until(is_told)


async def test_dead_letters_still_in_their_queues_are_told_beside_figures_that_lack_them(
    console_system: System, reading: str
) -> None:
    deployment = console_system.deployment
    try:
        await bury(deployment, 3, mark="uncollected")

        async def is_told() -> bool:
            said = await get(reading, "/")
            return "3 dead not collected yet" in said and (
                "3 dead letters are still in their queues. They are counted at no reaction" in said
            )

        await until(is_told)
        assert "not among those of the minute before" in await get(reading, "/?at=0")
    finally:
        async with open_desk(deployment, SAGA.choreography):
            discard_all(console_system)

    async def is_collected() -> bool:
        return "not collected yet" not in await get(reading, "/")

    await until(is_collected)
