"""A person is forgotten by a system at work: their name is nowhere, and all else is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import httpx
import pytest
import pytest_asyncio

from order_saga import SAGA
from payment_service.gateway import Account, Fault, FaultMode, SandboxGateway
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.discovery import choreography
from saga.dlq.desk import open_desk
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.history.archive import Archive
from saga.local.system import System
from saga.reconcile import reconcile
from tests import forked
from tests.forked import spawn
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

NAME: Final = "Zoë O'Neil-Ünsal"
OTHER: Final = "Ada Bleibtreu"
TEA: Final = {"sku": "tea", "unit_price_cents": 250}
FEW_SECONDS: Final = "0.2"
CLEAR_PLACES: Final = {"mail", "provider.db"}
"""Where a name is in clear as long as a person is known."""


@dataclass
class Scene:
    """A system, and what has happened in it."""

    system: System
    backup: Path
    export: Path
    orders: list[str]
    """Of the person who is to be forgotten; the last one is open."""

    @property
    def folder(self) -> Path:
        return self.system.folder

    @property
    def also(self) -> tuple[str, ...]:
        """What is looked through besides."""
        return "--also", str(self.backup), "--also", str(self.export)

    async def saga(self, *arguments: str, given: str = "") -> tuple[int, dict[str, Any]]:
        """How a command ends, and the document it prints."""
        command = (forked.SAGA, *arguments, "--json", "--data-dir", str(self.folder))
        done = await asyncio.to_thread(forked.run, *command, given=given)
        assert done.returncode in (0, 1), done.stderr
        assert NAME not in done.stderr
        try:
            document: dict[str, Any] = json.loads(done.stdout)
        except ValueError:
            raise AssertionError(f"{done.stdout!r} {done.stderr}") from None
        return done.returncode, document

    async def look(self) -> tuple[int, dict[str, Any]]:
        """The search for the person, in the backup and the export as well."""
        return await self.saga("forget", "--verify", *self.also, given=f"{NAME}\n")


def client(system: System, service: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=system.deployment.http_urls[service][0], timeout=30)


async def place(system: System, customer: str) -> str:
    order = {"customer": customer, "currency": "EUR", "lines": [TEA | {"quantity": 2}]}
    async with client(system, "order") as asking:
        headers = {"Idempotency-Key": str(uuid4())}
        answer = await asking.post("/orders", json=order, headers=headers)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["order_id"])


async def at_rest(system: System, *order_ids: str) -> None:
    """Wait until nothing is owed about the orders any more."""

    async def rests() -> bool:
        async with client(system, "history") as asking:
            answers = [await asking.get(f"/subjects/{order_id}") for order_id in order_ids]
        return all(
            answer.is_success and answer.json()["ended_by"] and not answer.json()["open"]
            for answer in answers
        )

    await until(rests)


async def dead(system: System, order_id: str) -> tuple[int, ...]:
    """The numbers of the dead letters about an order."""
    async with open_desk(system.deployment, choreography()) as desk:
        found = desk.store.find(Selection(subject=order_id), HERE, contents=False)
        return tuple(letter.number for letter in found)


async def until_dead(system: System, order_id: str) -> None:
    async def is_dead() -> bool:
        return bool(await dead(system, order_id))

    await until(is_dead)


async def replayed(system: System, order_id: str) -> None:
    """Wait until a charge is dead, and have it tried again by a provider that is back."""
    await until_dead(system, order_id)
    gateway = SandboxGateway(system.deployment.outside_urls["provider"])
    gateway.set_fault(Fault())
    await gateway.close()
    async with open_desk(system.deployment, choreography()) as desk:
        selection = Selection(numbers=await dead(system, order_id))
        await replay(desk, selection, ReplaySettings(), why="the provider is back")


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)],
)
async def scene(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    environment = {"PERSONAL": "sealed", "PERSONAL_CACHE_SECONDS": FEW_SECONDS}
    folder = tmp_path_factory.mktemp("forgetting")
    async with System(
        folder / "data",
        database=request.param,
        disposable=True,
        spawn=spawn,
        environment=environment,
    ) as system:
        async with client(system, "inventory") as asking:
            stock = {"items": [TEA | {"quantity": 1_000, "currency": "EUR"}]}
            assert (await asking.post("/stock", json=stock)).is_success
        gateway = SandboxGateway(system.deployment.outside_urls["provider"])
        gateway.set_accounts([Account(NAME, funds_cents=100_000)])
        orders = [await place(system, NAME), await place(system, OTHER)]
        await at_rest(system, *orders)
        gateway.set_fault(Fault(FaultMode.UNAVAILABLE))
        orders = [orders[0], await place(system, NAME)]
        await gateway.close()
        await replayed(system, orders[1])
        await at_rest(system, *orders)
        scene = Scene(system, folder / "backup", folder / "events.jsonl.gz", orders)
        system.kill("inventory")
        scene.orders.append(await place(system, NAME))
        await until(lambda: Archive(system.deployment).caught_up(0))
        assert (await scene.saga("backup", str(scene.backup)))[0] == 0
        assert (await scene.saga("history", "export", str(scene.export)))[0] == 0
        yield scene


def places(document: dict[str, Any]) -> set[str]:
    """The first parts of what the text was found in."""
    return {
        Path(place["group"]).name.removesuffix("-wal")
        for place in document["places"]
        if place["found"]
    }


async def test_a_name_is_found_where_it_should_be_and_nowhere_else(scene: Scene) -> None:
    status, found = await scene.look()

    assert status == 1
    assert found["found"] >= 4
    assert places(found) == CLEAR_PLACES | {"outside"}  # The backup has the provider's books.
    assert found["not_looked_at"] == []


async def test_a_dry_run_shows_what_would_happen_and_does_nothing(scene: Scene) -> None:
    status, shown = await scene.saga("forget", "--reason", "they asked", given=NAME)

    assert status == 0
    assert not shown["done"]
    assert {*shown["subjects"]} == {*scene.orders}
    assert shown["open"] == scene.orders[-1:]
    assert shown["letters"] == []  # The one there was has been replayed.
    assert (await scene.saga("forget", "--status"))[1]["requests"] == []


async def test_a_request_waits_for_what_is_open(scene: Scene) -> None:
    how = ("--reason", "they asked", "--yes", "--wait", "0.5")
    status, done = await scene.saga("forget", *how, given=NAME)

    assert status == 1
    assert not done["done"]
    assert done["ended"] == scene.orders[-1:]  # Cancelled, and inventory owes an answer.
    assert done["waits"]["waits_for"] == scene.orders[-1:]
    status, waiting = await scene.saga("forget", "--status")
    assert status == 1
    assert [request["reason"] for request in waiting["requests"]] == ["they asked"]


async def test_once_nothing_is_open_they_are_forgotten_and_nowhere(scene: Scene) -> None:
    await scene.system.start("inventory")

    status, done = await scene.saga("forget", "--resume", *scene.also)

    assert status == 0, done
    (request,) = done["requests"]
    assert request["forgotten_at"]
    assert request["left"] == []
    assert request["taken_out"]["provider"] >= 1
    assert request["taken_out"]["mail server"] == len(scene.orders)
    assert [look["found"] for look in done["looked"]] == [0]
    assert (await scene.saga("forget", "--status"))[0] == 0


async def test_a_backup_from_before_names_them_no_more_and_is_whole(scene: Scene) -> None:
    status, found = await scene.look()

    assert (status, found["found"], found["not_looked_at"]) == (0, 0, [])
    assert (await scene.saga("backup", str(scene.backup), "--check"))[0] == 0


async def test_the_books_still_add_up(scene: Scene) -> None:
    async def is_right() -> bool:
        return (await reconcile(scene.system.deployment, grace_seconds=0.0)).ok

    await until(is_right)
    assert (await scene.saga("history", "verify"))[0] == 0


async def test_what_happened_is_still_told_without_a_name(scene: Scene) -> None:
    for order_id in scene.orders:
        status, trace = await scene.saga("trace", order_id)
        assert status == 0
        assert NAME not in json.dumps(trace, ensure_ascii=False)
    watched = Watched(scene.folder, SAGA)
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient(base_url=url, timeout=30, follow_redirects=True) as asking,
    ):
        for path in ("/", "/sagas", f"/sagas/{scene.orders[0]}", "/letters"):
            page = await asking.get(path)
            assert page.status_code == 200, path
            assert NAME not in page.text


async def test_a_database_is_made_again_as_before(scene: Scene) -> None:
    into = f"sqlite:///{scene.folder.parent / 'rebuilt.db'}"

    assert (await scene.saga("history", "rebuild", "notification", "--into", into))[0] == 0


async def test_it_is_on_record_who_forgot_whom_and_why(scene: Scene) -> None:
    _, record = await scene.saga("dlq", "audit")

    entries = [entry for entry in record["actions"] if entry["action"] == "forget"]
    assert [entry["reason"] for entry in entries] == ["they asked"]
    assert NAME not in json.dumps(entries, ensure_ascii=False)


async def test_done_again_it_changes_nothing_and_says_what_was_not_looked_for(
    scene: Scene,
) -> None:
    _, record = await scene.saga("dlq", "audit")
    person = record["actions"][0]["selection"]["person"]

    status, done = await scene.saga("forget", person, "--reason", "asked again", "--yes")

    assert status == 1  # The name is unknown by now, so it was not looked for.
    assert [line for line in done["left"] if "saga forget --verify" in line]
    assert done["looked"] == []
    assert done["taken_out"] == {"provider": 0, "mail server": 0}
    _, shown = await scene.saga("forget", person, "--reason", "a look")
    assert shown["forgotten_at"] == done["forgotten_at"]


@pytest.mark.long
async def test_who_comes_again_is_somebody_new_and_their_dead_letters_hurt_nobody(
    scene: Scene,
) -> None:
    gateway = SandboxGateway(scene.system.deployment.outside_urls["provider"])
    gateway.set_fault(Fault(FaultMode.UNAVAILABLE))
    await gateway.close()
    order_id = await place(scene.system, NAME)
    await until_dead(scene.system, order_id)

    status, shown = await scene.saga("forget", "--reason", "a look", given=NAME)

    assert status == 0
    assert shown["subjects"] == shown["open"] == [order_id]
    assert len(shown["letters"]) == 1

    how = ("--reason", "asked once more", "--yes", "--wait", "30", *scene.also)
    status, done = await scene.saga("forget", *how, given=NAME)
    assert status == (0 if done["done"] else 1), done
    await replayed(scene.system, order_id)
    await at_rest(scene.system, order_id)
    if not done["done"]:  # It waited for what the letter was about.
        status, done = await scene.saga("forget", "--resume", *scene.also)
        assert status == 0, done
    assert [look["found"] for look in done["looked"]] == [0]

    async def is_right() -> bool:
        return (await reconcile(scene.system.deployment, grace_seconds=0.0)).ok

    await until(is_right)
