"""What begins while a person is being forgotten, what was asked before, and what is run again."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Mapping
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
from saga.auth.keys import changing, new_key, read_keys
from saga.auth.settings import KEYS_FILE_NAME
from saga.choreography import Choreography
from saga.commands.forgetting import _show as show
from saga.declaration import EarlyEnd, Saga
from saga.deployment import Deployment
from saga.dlq.store import Store
from saga.envelope import Attributes, wrap
from saga.foreign import Foreign
from saga.message import Event, Priority
from saga.outside import OutsideError
from saga.personal import forgetting, lookup, requests, running
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

ROOT: Final = Path(__file__).parents[2]
NAME: Final = "Zoë O'Neil-Ünsal"
ENDS_EARLY: Final = replace(errands.SAGA, early_end=EarlyEnd("desk", "/errands/{subject}/end"))


class Scene:
    """A system that is never started: its archive, its key store, and one outbox."""

    def __init__(self, folder: Path, databases: Mapping[str, Database], store: KeyStore) -> None:
        self.folder = folder
        self.store = store
        self.behind = 0
        """How far the archive is behind its stream."""
        self.away = False
        """Whether the shop, an outside, cannot be asked."""
        self.told: list[set[str]] = []
        """What the shop was told to forget, each time."""
        self.reported: list[str] = []
        """What was said while it was at work."""
        self._databases = databases
        """Those that are written to here, which one process at a time may do."""
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
        await self._databases[OBSERVER.name].transaction(
            lambda c: append(c, [fact], utc_now(), projection)
        )

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
        await self._databases["desk"].transaction(
            lambda connection: connection.execute(statement).rowcount
        )

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
        them = await forgetter.record_of(given)
        return await forgetter.forget(
            them, "they asked", wait_seconds=0.5, report=self.reported.append
        )

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


def opened(folder: Path) -> KeyStore:
    return KeyStore.open_store(
        sqlite_url(folder / STORE_FILE),
        MasterKeys.of((folder / KEY_FILE).read_text(), "here"),
        cache_seconds=0.1,
    )


@pytest_asyncio.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    (tmp_path / KEY_FILE).write_text(base64.b64encode(os.urandom(48)).decode())
    participants = [one.name for one in errands.SAGA.participants]
    urls = {name: sqlite_url(tmp_path / f"{name}.db") for name in (OBSERVER.name, *participants)}
    Deployment(
        amqp_url="amqp://nobody@127.0.0.1:1/",
        http_urls={"desk": ()},
        database_urls=urls,
        dead_letters_url=sqlite_url(tmp_path / "letters.db"),
        api_keys_file=Path(KEYS_FILE_NAME),
    ).save(tmp_path)
    for name in participants:
        await (await open_database(urls[name], Tables(sa.MetaData()), name="test")).close()
    databases = {
        OBSERVER.name: await open_database(urls[OBSERVER.name], TABLES, name="test"),
        "desk": await open_database(urls["desk"], Tables(sa.MetaData()), name="test"),
    }
    store = opened(tmp_path)
    try:
        scene = Scene(tmp_path, databases, store)
        stand_in(scene, monkeypatch)
        yield scene
    finally:
        for database in databases.values():
            await database.close()
        store.close()


def stand_in(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """For a broker and a service, which the system has not."""
    monkeypatch.setattr(lookup, "CATCH_UP_SECONDS", 0.3)
    monkeypatch.setattr(forgetting, "MARGIN_SECONDS", 0.0)

    async def behind(_: object) -> int:
        return scene.behind

    monkeypatch.setattr("saga.history.archive.Archive.behind", behind)
    monkeypatch.setattr(lookup, "open_desk", _empty_desk)

    async def ended(_: object, path: str, *__: object) -> Any:
        await scene.ends(path.split("/")[2])
        return SimpleNamespace(is_success=True, status_code=202)

    monkeypatch.setattr(running, "post_to_one", ended)


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
    assert "too late" in done.record.subjects


KILLED: Final = """
import asyncio, os, signal, sys
from pathlib import Path
import pytest
from tests.integration.test_forgetting_in_time import Scene, once_after, opened, stand_in

monkeypatch, folder = pytest.MonkeyPatch(), Path(sys.argv[1])
scene = Scene(folder, {}, opened(folder))
stand_in(scene, monkeypatch)
once_after(monkeypatch, scene.store, sys.argv[2], lambda: os.kill(os.getpid(), signal.SIGKILL))
asyncio.run(scene.forget())
"""


def kill_after(step: str, folder: Path) -> None:
    """A process forgets them, and is killed right after this step of the key store."""
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), step], cwd=ROOT, check=False, timeout=60
    )
    assert done.returncode == -signal.SIGKILL


async def test_killed_right_after_the_keys_end_it_names_what_began_meanwhile_when_run_again(
    scene: Scene,
) -> None:
    await scene.happens(StampGiven(errand="before"))
    await scene.ends("before")
    await asyncio.to_thread(kill_after, "forget", scene.folder)
    assert not scene.key_is_there
    assert scene.waiting is not None
    await scene.happens(StampGiven(errand="too late"))

    done = await scene.forget(scene.person_id)

    assert done.began == ["too late"]
    (line,) = [line for line in done.left if "begun" in line]
    assert line.endswith("look at them: too late")
    assert requests.waiting_in(scene.folder) == ()
    audit = Store(str(scene.deployment.dead_letters_url))
    (entry,) = audit.actions(10)
    audit.close()
    assert entry.result["began"] == ["too late"]


async def test_killed_right_after_the_keys_end_it_waits_for_those_who_may_still_know_the_key(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    await asyncio.to_thread(kill_after, "forget", scene.folder)
    monkeypatch.setattr(forgetting, "MARGIN_SECONDS", 3_600.0)
    waited: list[float] = []

    async def sleep(seconds: float) -> None:
        waited.append(seconds)

    monkeypatch.setattr("saga.personal.forgetting.asyncio.sleep", sleep)

    done = await scene.forget(scene.person_id)

    assert done.began == []
    assert len(waited) == 1
    assert 0 < waited[0] < 3_600.1
    assert any("the key is destroyed" in line for line in scene.reported)


async def test_killed_before_the_keys_end_what_began_meanwhile_is_ended_when_run_again(
    scene: Scene,
) -> None:
    await asyncio.to_thread(kill_after, "retire", scene.folder)
    assert scene.key_is_there
    await scene.happens(StampGiven(errand="meanwhile"))

    done = await scene.forget(scene.person_id)

    assert done.ended == ["meanwhile"]
    assert done.forgotten_at is not None
    assert done.began == []


async def test_a_request_of_before_that_says_nothing_of_what_there_was_is_not_taken_for_fine(
    scene: Scene,
) -> None:
    await scene.happens(StampGiven(errand="one"))
    await scene.ends("one")
    await asyncio.to_thread(kill_after, "forget", scene.folder)
    assert scene.waiting is not None
    requests.keep(scene.folder, scene.waiting.model_copy(update={"subjects_before": None}))

    done = await scene.forget(scene.person_id)

    assert [line for line in done.left if "is not known" in line and "one" in line]


# --- what could not be looked at ------------------------------------------------------------------


def file_away(event: StampGiven) -> None:
    raise NotImplementedError


async def test_an_outbox_in_another_language_is_named_as_not_looked_at(scene: Scene) -> None:
    graph = errands.SAGA.choreography
    clerk = Foreign("clerk", file_away)
    declared: Any = SimpleNamespace(
        name="errands",
        early_end=ENDS_EARLY.early_end,
        choreography=Choreography([*graph.participants, clerk], graph.observers),
    )

    done = await scene.forget(declared=declared)

    assert done.forgotten_at is not None
    (line,) = done.left
    assert line.startswith("the outbox of clerk was not looked at, nor anything else")


async def test_an_outbox_of_which_the_deployment_says_nothing_is_named_as_not_looked_at(
    scene: Scene,
) -> None:
    urls = {name: url for name, url in scene.deployment.database_urls.items() if name != "rider"}
    scene.deployment.model_copy(update={"database_urls": urls}).save(scene.folder)

    done = await scene.forget()

    (line,) = done.left
    assert line.startswith("the outbox of rider was not looked at")


async def test_a_dry_run_names_outboxes_that_are_not_looked_at(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = {name: url for name, url in scene.deployment.database_urls.items() if name != "rider"}
    scene.deployment.model_copy(update={"database_urls": urls}).save(scene.folder)
    looking_up = lookup.PersonLookup(
        scene.deployment, scene.folder, errands.SAGA.choreography, scene.store
    )

    show(await looking_up.record_of(NAME))

    assert "the outbox of rider was not looked at" in capsys.readouterr().err


# --- API keys -------------------------------------------------------------------------------------


def a_key(folder: Path, name: str = "NAME", owner: str | None = None) -> str:
    """The id of a key that is made in the file of a folder."""
    _, key = new_key(name, ["*"], owner=owner, now=utc_now())
    with changing(folder / KEYS_FILE_NAME) as keys:
        keys.append(key)
    return key.id


async def test_api_keys_are_taken_out_of_the_systems_file_whatever_the_shell_says(
    scene: Scene, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path_factory.mktemp("elsewhere")
    theirs, others = a_key(folder, owner=NAME), a_key(folder, owner="Ada Bleibtreu")
    scene.deployment.model_copy(update={"api_keys_file": folder / KEYS_FILE_NAME}).save(
        scene.folder
    )
    shells = tmp_path_factory.mktemp("shell")
    of_shell = a_key(shells, owner=NAME)
    monkeypatch.setenv("API_KEYS_FILE", str(shells / KEYS_FILE_NAME))

    done = await scene.forget()

    assert done.taken_out["API keys"] == 1
    assert [key.id for key in read_keys(folder / KEYS_FILE_NAME)] == [others] != [theirs]
    assert [key.id for key in read_keys(shells / KEYS_FILE_NAME)] == [of_shell]


async def test_api_keys_that_a_deployment_says_nothing_of_were_not_looked_at(scene: Scene) -> None:
    a_key(scene.folder, owner=NAME)
    scene.deployment.model_copy(update={"api_keys_file": None}).save(scene.folder)

    done = await scene.forget()

    (line,) = done.left
    assert line.startswith("API keys were not looked at")
    assert "saga keys list --file" in line


async def test_api_keys_that_cannot_be_read_are_to_be_done_again(scene: Scene) -> None:
    (scene.folder / KEYS_FILE_NAME).write_text("{")

    done = await scene.forget()

    assert scene.key_is_there
    assert [line for line in done.again if "API keys" in line]


async def test_copies_of_api_keys_are_named_where_services_read_these(scene: Scene) -> None:
    a_key(scene.folder, owner=NAME)
    scene.deployment.model_copy(update={"api_keys_copied": True}).save(scene.folder)

    done = await scene.forget()

    (line,) = done.left
    assert "saga.bootstrap" in line


async def test_a_name_that_is_in_no_event_is_still_looked_for_by_the_id(scene: Scene) -> None:
    scene.away = True
    first = await scene.forget()
    assert first.again == ["shop: its books are locked"]
    assert scene.key_is_there
    assert NAME not in (scene.folder / requests.FILE_NAME).read_text()
    scene.away = False

    done = await scene.forget(scene.person_id)

    assert {*done.record.values} == {NAME}
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
    scene.away = False

    done = await scene.forget(scene.person_id)

    assert done.request is None
    assert not [line for line in done.left if "wrapped key" in line]
