"""What a rule leaves to people is decided from the console, and noted."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import Connection

from notification_service.domain import Notification, NotificationStatus
from notification_service.store import NOTIFICATIONS
from order_saga import SAGA
from saga.console.serve import serving as console
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.declaration import PersonsChoice, SagaError
from saga.deployment import Deployment
from saga.runtime.kernel.rows import writing
from tests.integration.served import Served, serving

RULE = "mails_unknown"
UNKNOWN = "00000000-0000-4000-8000-000000000000"


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving("notification_service", tmp_path) as served:
        Deployment(
            amqp_url="amqp://127.0.0.1:1/",
            http_urls={
                served.name: ("http://127.0.0.1:1", f"http://127.0.0.1:{served.port}"),
            },
            database_urls={served.name: f"sqlite:///{tmp_path / served.name}.db"},
        ).save(tmp_path)
        yield served


@pytest.fixture
async def client(service: Served, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = ConsoleSettings(http_port=0, console_write=True)
    async with (
        console(Watched(tmp_path, SAGA), settings) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):
        yield client


async def unknown(service: Served) -> str:
    """An order about whose mail nobody knows whether it was sent."""
    order = str(uuid4())
    state = Notification(order, status=NotificationStatus.UNKNOWN, detail="no answer", tries=1)

    def save(connection: Connection) -> None:
        with writing(connection) as writes:
            NOTIFICATIONS.save(writes, [(state, 0)])

    await service.database.transaction(save)
    return order


async def test_a_mail_is_dismissed_once_with_a_reason_that_is_kept(
    service: Served, client: httpx.AsyncClient
) -> None:
    order = await unknown(service)
    address = f"/decide?rule={RULE}&subject={order}"
    page = await client.get(address)
    assert page.status_code == 200
    assert "Resend this 1" in page.text
    form = {"way": "dismiss", "reason": "the customer has called"}

    done = await client.post(address, data=form)
    again = await client.post(address, data=form)

    assert (done.status_code, done.headers["location"]) == (303, "/audit")
    assert again.status_code == 409
    assert "is dismissed" in again.text
    found = await service.ask("GET", f"/notifications/{order}")
    assert found.json["status"] == "dismissed"
    audit = (await client.get("/audit")).text
    assert "The record of order could not be read, and is not in this list" in audit
    assert audit.count("decide: dismiss") == 2
    assert audit.count("the customer has called") == 2
    assert "failed: the service notification has not done it" in audit


@pytest.mark.parametrize(
    ("query", "form", "status"),
    [
        ("rule=nothing&subject=x", {"way": "dismiss", "reason": "x"}, 422),
        (f"rule={RULE}", {"way": "dismiss", "reason": "x"}, 422),
        (f"rule={RULE}&subject=x", {"way": "burn", "reason": "x"}, 422),
        (f"rule={RULE}&subject=x", {"way": "dismiss", "reason": ""}, 422),
        (f"rule={RULE}&subject=x", {"way": "dismiss", "reason": "x"}, 409),
        (f"rule={RULE}&subject={UNKNOWN}", {"way": "resend", "reason": "x"}, 409),
        (f"rule={RULE}&subject=..%2F..%2Fdue", {"way": "resend", "reason": "x"}, 409),
    ],
)
async def test_what_cannot_be_decided_is_refused(
    query: str, form: dict[str, str], status: int, client: httpx.AsyncClient
) -> None:
    assert (await client.post(f"/decide?{query}", data=form)).status_code == status


async def test_the_ways_to_decide_are_the_services_own_routes(service: Served) -> None:
    (choice,) = SAGA.choices
    routes = (await service.ask("GET", "/openapi.json")).json["paths"]
    posts = {re.sub(r"{\w+}", "{subject}", path) for path, how in routes.items() if "post" in how}
    assert {*choice.paths.values()} <= posts


def test_a_choice_about_what_does_not_exist_is_refused() -> None:
    choice = PersonsChoice("no_rule", "notification", {})
    with pytest.raises(SagaError, match="a choice is about 'no_rule'"):
        SAGA.__class__("orders", SAGA.participants, choices=(choice,))
