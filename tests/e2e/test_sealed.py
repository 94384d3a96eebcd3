"""A whole system in which personal data is sealed: who sees a name, and who does not."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Collection, Iterator
from datetime import UTC, datetime
from email import message_from_bytes
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import pytest
import pytest_asyncio

from common.events import OrderLine, PlaceOrder, order_id_of
from payment_service.gateway import Account, Fault, FaultMode, SandboxGateway
from saga.broker.setup import NODE_FOLDER
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.dlq.desk import open_desk
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.envelope import source_of, wrap
from saga.local.system import System
from saga.message import Priority
from saga.personal.keystore import KeyStore
from saga.personal.opening import STORE_FILE, open_store
from saga.reconcile import reconcile
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import intake_queue
from tests.forked import spawn
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

PATIENT: Final = "Zacharias Quitterer"
POOR: Final = "Wilhelmina Habenichts"
OVER_BROKER: Final = "Xaver Direktmann"
FORGOTTEN: Final = "Yolanda Vergissmein"
TEA: Final = {"sku": "tea", "unit_price_cents": 250}
CACHE_SECONDS: Final = "0.2"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    environment = {"PERSONAL": "sealed", "PERSONAL_CACHE_SECONDS": CACHE_SECONDS}
    async with System(
        tmp_path_factory.mktemp("sealed"), disposable=True, spawn=spawn, environment=environment
    ) as system:
        async with asking(system, "inventory") as inventory:
            answer = await inventory.post(
                "/stock", json={"items": [TEA | {"quantity": 1_000, "currency": "EUR"}]}
            )
            assert answer.is_success, answer.text
        assert system.deployment.callers_known is False
        yield system


@contextlib.asynccontextmanager
async def asking(system: System, service: str) -> AsyncIterator[httpx.AsyncClient]:
    url = system.deployment.http_urls[service][0]
    async with httpx.AsyncClient(base_url=url, timeout=30) as client:
        yield client


@contextlib.contextmanager
def provider(system: System) -> Iterator[SandboxGateway]:
    gateway = SandboxGateway(system.deployment.outside_urls["provider"])
    yield gateway
    gateway._engine.dispose()


def keys(deployment: Deployment) -> KeyStore:
    return open_store(deployment.personal_settings())


def an_order(customer: str) -> dict[str, Any]:
    return {"customer": customer, "currency": "EUR", "lines": [TEA | {"quantity": 2}]}


async def place(system: System, customer: str) -> str:
    async with asking(system, "order") as client:
        answer = await client.post(
            "/orders", json=an_order(customer), headers={"Idempotency-Key": str(uuid4())}
        )
        assert answer.status_code == 202, answer.text
        assert answer.json()["customer"] == customer  # Who places it may read it.
        return str(answer.json()["order_id"])


async def ended(system: System, order_id: str) -> str:
    """How the order ended, in a word."""
    found: dict[str, Any] = {}

    async def has_ended() -> bool:
        async with asking(system, "order") as client:
            answer = await client.get(f"/orders/{order_id}")
            found.update(answer.json() if answer.is_success else {})
            return found.get("status") in ("confirmed", "cancelled")

    await until(has_ended)
    return str(found["reason"] or found["status"])


async def mail_about(system: System, order_id: str) -> str:
    folder = system.folder / "mail"
    await until(lambda: any(folder.glob(f"*{order_id}.eml")))
    (file,) = folder.glob(f"*{order_id}.eml")
    message = message_from_bytes(file.read_bytes())
    return f"{message['To']}\n{message.get_payload(decode=True)!r}"


def places_of(name: str, folder: Path) -> set[str]:
    """The first parts of the paths of files that hold the name."""
    return {
        file.relative_to(folder).parts[0]
        for file in folder.rglob("*")
        if file.is_file() and name.encode() in file.read_bytes()
    }


async def test_a_name_is_in_mails_and_at_the_provider_and_nowhere_else(system: System) -> None:
    with provider(system) as gateway:
        gateway.set_accounts([Account(POOR, card_blocked=True)])
    confirmed, declined = await place(system, PATIENT), await place(system, POOR)

    assert await ended(system, confirmed) == "confirmed"
    assert await ended(system, declined) == "payment_declined"
    assert PATIENT in await mail_about(system, confirmed)
    assert POOR in await mail_about(system, declined)
    store = keys(system.deployment)
    for name in (PATIENT, POOR):
        text = store.sealed_of(name)
        assert text is not None
        kept = {place.partition(".db")[0] for place in places_of(text, system.folder)}
        assert {"order", "history", "payment", "notification", NODE_FOLDER} <= kept
        found = places_of(name, system.folder)
        assert "mail" in found
        assert {place for place in found if not place.startswith("provider.db")} == {"mail"}
    store.close()


async def test_a_command_in_clear_over_the_broker_is_sealed_before_it_is_kept(
    system: System,
) -> None:
    key = str(uuid4())
    command = PlaceOrder(
        order_id=order_id_of(key),
        customer=OVER_BROKER,
        currency="EUR",
        lines=(OrderLine(sku="tea", quantity=1, unit_price_cents=250),),
    )
    queue = intake_queue("order", Priority.NORMAL)
    publisher = BrokerPublisher(system.deployment.amqp_url, "tests")
    await publisher.open(5.0)
    for _ in range(2):  # At another time, and in a new envelope.
        envelope = wrap(
            command,
            id=key,
            source=source_of("shop"),
            time=datetime.now(UTC),
            priority=Priority.NORMAL,
        )
        await publisher.publish("", posting_of(envelope.to_bytes(), queue))
    await publisher.close()

    assert await ended(system, str(command.order_id)) == "confirmed"
    assert OVER_BROKER in await mail_about(system, str(command.order_id))
    databases = [f for f in places_of(OVER_BROKER, system.folder) if ".db" in f]
    assert [file for file in databases if not file.startswith("provider.db")] == []
    assert await dead(system) == []


async def dead(system: System, about: Collection[str] = ()) -> list[int]:
    """The numbers of the dead letters that have not been dealt with."""
    async with open_desk(system.deployment, choreography()) as desk:
        await desk.collect()
        found = desk.store.find(Selection(), HERE, contents=False)
        return [letter.number for letter in found if not about or letter.subject in about]


async def test_what_died_is_replayed_with_its_name_sealed(system: System) -> None:
    with provider(system) as gateway:
        gateway.set_fault(Fault(FaultMode.UNAVAILABLE))
    order_id = await place(system, PATIENT)

    async def is_dead() -> bool:
        return bool(await dead(system, {order_id}))

    await until(is_dead)
    assert not any("dead_letters" in place for place in places_of(PATIENT, system.folder))
    with provider(system) as gateway:
        gateway.set_fault(Fault())
    async with open_desk(system.deployment, choreography()) as desk:
        await replay(
            desk,
            Selection(numbers=tuple(await dead(system, {order_id}))),
            ReplaySettings(),
            why="the provider is back",
        )

    assert await ended(system, order_id) == "confirmed"
    assert PATIENT in await mail_about(system, order_id)


async def test_whose_orders_are_looked_for_is_said_in_clear(system: System) -> None:
    order_id = await place(system, PATIENT)
    await ended(system, order_id)

    async def found() -> list[dict[str, Any]]:
        async with asking(system, "history") as client:
            answer = await client.get("/orders", params={"customer": PATIENT, "limit": 100})
            orders: list[dict[str, Any]] = answer.json()["orders"]
            return orders

    async def is_there() -> bool:
        return order_id in {order["order_id"] for order in await found()}

    await until(is_there)
    assert {order["customer"] for order in await found()} == {PATIENT}
    async with asking(system, "history") as client:
        assert (await client.get("/orders", params={"customer": "Nobody"})).json()["orders"] == []
        whole = (await client.get(f"/orders/{order_id}")).json()
    assert whole["customer"].startswith("person ")


async def test_while_the_key_store_is_away_the_door_says_when_to_come_again(
    system: System,
) -> None:
    store, aside = system.folder / STORE_FILE, system.folder / "aside.db"
    os.replace(store, aside)
    try:
        async with asking(system, "order") as client:
            refused = await client.post("/orders", json=an_order("Somebody New"))
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) > 0
        assert "key store" in refused.json()["detail"]
        name = f"Late {uuid4()}"
        command = PlaceOrder(
            order_id=UUID(int=77),
            customer=name,
            currency="EUR",
            lines=(OrderLine(sku="tea", quantity=1, unit_price_cents=250),),
        )
        publisher = BrokerPublisher(system.deployment.amqp_url, "tests")
        await publisher.open(5.0)
        envelope = wrap(
            command,
            id=name,
            source=source_of("shop"),
            time=datetime.now(UTC),
            priority=Priority.NORMAL,
        )
        queue = intake_queue("order", Priority.NORMAL)
        await publisher.publish("", posting_of(envelope.to_bytes(), queue))
        await publisher.close()
    finally:
        os.replace(aside, store)

    assert await ended(system, str(command.order_id)) == "confirmed"
    assert await ended(system, await place(system, "Somebody New")) == "confirmed"


async def test_a_mail_that_was_owed_to_a_forgotten_person_is_settled(system: System) -> None:
    system.kill("notification")
    order_id = await place(system, FORGOTTEN)
    assert await ended(system, order_id) == "confirmed"
    store = keys(system.deployment)
    person = store.person_of(FORGOTTEN)
    assert person is not None
    store.forget(person, "asked to")
    store.close()
    await asyncio.sleep(float(CACHE_SECONDS))
    await system.start("notification")

    status: dict[str, Any] = {}

    async def is_dismissed() -> bool:
        async with asking(system, "notification") as client:
            answer = await client.get(f"/notifications/{order_id}")
            status.update(answer.json() if answer.is_success else {})
        return status.get("status") == "dismissed"

    await until(is_dismissed)
    assert status["letter"]["customer"].startswith("person ")
    assert await dead(system) == []
    again = await place(system, FORGOTTEN)  # A new person.
    assert await ended(system, again) == "confirmed"


async def test_the_books_are_right_with_sealed_names(system: System) -> None:
    async def is_right() -> bool:
        return (await reconcile(system.deployment, grace_seconds=0.0)).ok

    await until(is_right)
