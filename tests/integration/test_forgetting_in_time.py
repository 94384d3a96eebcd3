"""What begins while a person is being forgotten, what was asked before, and what is run again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final
from uuid import uuid4

import pytest
import pytest_asyncio
import sqlalchemy as sa

from saga.archive import OBSERVER
from saga.archive.projection import Projection
from saga.archive.store import TABLES, Fact, append
from saga.declaration import EarlyEnd, Saga
from saga.deployment import Deployment
from saga.dlq.store import Store
from saga.envelope import Attributes, wrap
from saga.message import Event, Priority
from saga.outside import OutsideError
from saga.personal import forgetting, requests, running, whom
from saga.personal.forgetting import Outcome
from saga.personal.keystore import KeyStore
from saga.personal.master import MasterKeys
from saga.personal.opening import KEY_FILE, STORE_FILE
from saga.personal.running import forgetter_of
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.urls import sqlite_url
from tests import errands
from tests.errands import ErrandCancelled, StampGiven, StampTakenOff

NAME: Final = "Zoë O'Neil-Ünsal"
ENDS_EARLY: Final = replace(errands.SAGA, early_end=EarlyEnd("desk", "/errands/{subject}/end"))


class Scene:
    """A system that is never started: its archive, its key store, and one outbox."""

    def __init__(self, folder: Path, archive: Database, desk: Database, store: KeyStore) -> None:
        self.folder = folder
        self.store = store
        self.behind = 0
        """How far the archive is behind its stream."""
        self.away = False
        """Whether the shop, an outside, cannot be asked."""
        self.told: list[set[str]] = []
        """What the shop was told to forget, each time."""
        self._archive = archive
        self._desk = desk
        self.text = store.seal(NAME)
        self.person_id = str(store.person_of(NAME))

    @property
    def deployment(self) -> Deployment:
        return Deployment.load(self.folder)

    async def happens(self, event: Event) -> None:
        """An event that names them is in the archive."""
        source = event.publisher or "desk"
        envelope = wrap(
            event, source=source, id=str(uuid4()), time=utc_now(), priority=Priority.NORMAL
        )
        document = json.loads(envelope.to_bytes())
        document["data"]["name"] = self.text
        body = json.dumps(document).encode()
        projection = Projection(errands.SAGA.choreography)
        fact = Fact(Attributes.of(body), body)
        await self._archive.transaction(lambda c: append(c, [fact], utc_now(), projection))

    async def ends(self, errand: str) -> None:
        """Nothing is owed about an errand any more."""
        await self.happens(ErrandCancelled(errand=errand))
        await self.happens(StampTakenOff(errand=errand))

    async def waits_in_outbox(self) -> None:
        """An event about them is decided on, and not published."""
        row = {"event_id": "1", "owner": "a", "position": 1, "routing_key": "k"}
        statement = (
            Tables(sa.MetaData()).outbox.insert().values(**row, body=f'"{self.text}"'.encode())
        )
        await self._desk.transaction(lambda connection: connection.execute(statement).rowcount)

    async def forget(self, given: str = NAME, declared: Saga = ENDS_EARLY) -> Outcome:
        shop: Any = SimpleNamespace(name="shop", forget=self._forget_in_shop)
        # An outside is more than is asked here.
        fakes: Any = SimpleNamespace(
            name=declared.name,
            early_end=declared.early_end,
            choreography=declared.choreography,
            outside=[shop],
        )
        forgetter = forgetter_of(self.deployment, self.folder, fakes, self.store)
        them = await forgetter.whom(given)
        return await forgetter.forget(them, "they asked", wait_seconds=0.5, report=lambda _: None)

    def _forget_in_shop(self, clear: Any) -> int:
        if self.away:
            raise OutsideError("its books are locked")
        self.told.append({*clear.values})
        return 1

    @property
    def key_is_there(self) -> bool:
        return self.store.person(self.person_id).forgotten_at is None

    @property
    def waiting(self) -> requests.Request | None:
        return requests.waiting_for(self.folder, self.person_id)


@pytest_asyncio.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    archive_url, desk_url = sqlite_url(tmp_path / "archive.db"), sqlite_url(tmp_path / "desk.db")
    key = base64.b64encode(os.urandom(48)).decode()
    (tmp_path / KEY_FILE).write_text(key)
    store = KeyStore.open_store(
        sqlite_url(tmp_path / STORE_FILE), MasterKeys.of(key, "here"), cache_seconds=0.1
    )
    Deployment(
        amqp_url="amqp://nobody@127.0.0.1:1/",
        http_urls={"desk": ()},
        database_urls={OBSERVER.name: archive_url, "desk": desk_url},
        dead_letters_url=sqlite_url(tmp_path / "letters.db"),
    ).save(tmp_path)
    monkeypatch.setattr(whom, "CATCH_UP_SECONDS", 0.3)
    monkeypatch.setattr(forgetting, "MARGIN_SECONDS", 0.0)
    archive = await open_database(archive_url, TABLES, name="test")
    desk = await open_database(desk_url, Tables(sa.MetaData()), name="test")
    try:
        scene = Scene(tmp_path, archive, desk, store)

        async def behind(_: object) -> int:
            return scene.behind

        monkeypatch.setattr("saga.history.archive.Archive.behind", behind)
        monkeypatch.setattr(whom, "open_desk", _empty_desk)

        async def ended(_: object, path: str, *__: object) -> Any:
            await scene.ends(path.split("/")[2])
            return SimpleNamespace(is_success=True, status_code=202)

        monkeypatch.setattr(running, "post_to_one", ended)
        yield scene
    finally:
        await archive.close()
        await desk.close()
        store.close()


@asynccontextmanager
async def _empty_desk(deployment: Deployment, _: object) -> AsyncIterator[Any]:
    """The desk without a broker: no letter is dead."""
    store = Store(str(deployment.dead_letters_url))
    try:
        yield SimpleNamespace(store=store)
    finally:
        store.close()


def once_after(
    monkeypatch: pytest.MonkeyPatch, store: KeyStore, name: str, then: Callable[[], None]
) -> None:
    """Do something right after the next such step of the key store."""
    before = getattr(store, name)

    def step(*arguments: Any) -> Any:
        result = before(*arguments)
        monkeypatch.setattr(store, name, before)
        then()
        return result

    monkeypatch.setattr(store, name, step)


def at_once(scene: Scene, errand: str) -> Callable[[], None]:
    """A saga of theirs begins, as a thread sees it."""
    loop = asyncio.get_running_loop()
    return lambda: asyncio.run_coroutine_threadsafe(
        scene.happens(StampGiven(errand=errand)), loop
    ).result()


async def test_what_is_open_is_ended_and_then_they_are_forgotten(scene: Scene) -> None:
    await scene.happens(StampGiven(errand="one"))

    done = await scene.forget()

    assert done.request is None
    assert done.ended == ["one"]
    assert not scene.key_is_there
    assert done.left == []
    assert scene.waiting is None


async def test_nobody_is_forgotten_while_the_archive_is_behind(scene: Scene) -> None:
    scene.behind = 3

    done = await scene.forget()

    assert scene.key_is_there
    assert done.request is not None
    assert "3 messages behind" in done.request.why
    assert scene.waiting == done.request
    scene.behind = 0
    assert (await scene.forget(scene.person_id)).request is None
    assert not scene.key_is_there


async def test_nobody_is_forgotten_while_an_outbox_names_them(scene: Scene) -> None:
    await scene.waits_in_outbox()

    done = await scene.forget()

    assert scene.key_is_there
    assert done.request is not None
    assert done.request.why.startswith("desk has not published")


async def test_what_begins_at_the_last_moment_is_ended_first(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.happens(StampGiven(errand="one"))
    once_after(monkeypatch, scene.store, "retire", at_once(scene, "late"))

    done = await scene.forget()

    assert done.ended == ["one", "late"]
    assert not scene.key_is_there
    assert done.left == []


async def test_what_begins_at_the_last_moment_and_cannot_be_ended_keeps_the_key(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_after(monkeypatch, scene.store, "retire", at_once(scene, "late"))

    done = await scene.forget(declared=errands.SAGA)

    assert scene.key_is_there
    assert done.request is not None
    assert done.request.waits_for == ("late",)
    assert scene.store.open(scene.text) == NAME
    # From now on nothing more of theirs begins: who comes under that name is a new person.
    assert scene.store.seal(NAME) != scene.text
    await scene.ends("late")
    again = await scene.forget(scene.person_id, declared=errands.SAGA)
    assert again.request is None
    assert scene.told[-1] == {NAME}
    assert scene.store.person_of(NAME) not in (None, scene.person_id)


async def test_what_came_while_the_key_was_destroyed_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    once_after(monkeypatch, scene.store, "forget", at_once(scene, "too late"))

    done = await scene.forget()

    assert not scene.key_is_there
    assert [line for line in done.left if "too late" in line]
    assert "too late" in done.whom.subjects


async def test_a_name_that_is_in_no_event_is_still_looked_for_by_the_id(scene: Scene) -> None:
    scene.away = True
    first = await scene.forget()
    assert first.again == ["shop: its books are locked"]
    assert scene.key_is_there
    assert NAME not in (scene.folder / requests.FILE_NAME).read_text()
    scene.away = False

    done = await scene.forget(scene.person_id)

    assert {*done.whom.values} == {NAME}
    assert scene.told == [{NAME}, {NAME}]


async def test_who_asked_first_stays_with_the_request(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await scene.happens(StampGiven(errand="one"))
    monkeypatch.setattr(forgetting, "who", lambda: "anna@desk")
    first = await scene.forget(declared=errands.SAGA)
    monkeypatch.setattr(forgetting, "who", lambda: "cron@host")

    done = await scene.forget(scene.person_id, declared=errands.SAGA)

    assert first.request is not None
    assert done.request is not None
    assert (done.request.who, done.request.asked_at) == ("anna@desk", first.request.asked_at)
    assert done.request.resumed_by == "cron@host"
    await scene.ends("one")
    await scene.forget(scene.person_id)
    audit = Store(str(scene.deployment.dead_letters_url))
    (entry,) = audit.actions(10)
    audit.close()
    assert entry.result["asked_by"] == "anna@desk"


async def test_run_again_it_says_that_the_key_store_was_not_looked_through(scene: Scene) -> None:
    await scene.forget()

    again = await scene.forget(scene.person_id)

    assert [line for line in again.left if "was not looked through for the wrapped key" in line]


async def test_resumed_after_the_key_store_was_looked_through_it_says_nothing_of_it(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away() -> None:
        scene.away = True

    once_after(monkeypatch, scene.store, "forget", away)
    first = await scene.forget()
    assert first.request is not None
    assert first.request.key_store_searched
    monkeypatch.undo()
    scene.away = False
    monkeypatch.setattr(whom, "open_desk", _empty_desk)

    done = await scene.forget(scene.person_id)

    assert done.request is None
    assert not [line for line in done.left if "wrapped key" in line]
