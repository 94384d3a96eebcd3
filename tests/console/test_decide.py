"""What a rule leaves to people is decided from the console, and noted."""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.engine import Connection

from notification_service.domain import Notification, NotificationStatus
from notification_service.store import NOTIFICATIONS
from order_saga import SAGA
from order_service.domain import Order
from saga.archive.store import Fact
from saga.console import people
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.people import AskedOnce, asked_once, undecided_in
from saga.console.serve import serving as console
from saga.console.settings import ConsoleSettings
from saga.console.site import Site
from saga.console.watched import Watched
from saga.deciding import ASK_SECONDS
from saga.declaration import PersonsChoice, Saga, SagaError
from saga.deployment import Deployment, dead_letters_url_in
from saga.history.story import tell
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import utc_now
from saga.view import Broken, Invariant, States
from tests.integration.served import Served, serving
from tests.order_play import Play
from tests.polling import until

RULE = "mails_unknown"
SUBJECT = re.compile(r'class="row" href="/decide\?rule=mails_unknown&amp;subject=([^"]+)"')
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


async def unknown(
    service: Served, count: int = 1, status: NotificationStatus = NotificationStatus.UNKNOWN
) -> list[str]:
    """So many orders about whose mail it is unknown whether it was sent."""
    states = [Notification(str(uuid4()), status=status, detail="no answer") for _ in range(count)]

    def save(connection: Connection) -> None:
        with writing(connection) as writes:
            NOTIFICATIONS.save(writes, [(state, 0) for state in states])

    await service.database.transaction(save)
    return [state.key for state in states]


async def test_a_mail_is_dismissed_once_with_a_reason_that_is_kept(
    service: Served, client: httpx.AsyncClient
) -> None:
    (order,) = await unknown(service)
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
    assert audit.count("decide: dismiss") == 4  # What was asked, and what came of it.
    assert audit.count("the customer has called") == 4
    assert "failed: the service notification has not done it" in audit


async def test_those_who_wait_are_listed_from_page_to_page(
    service: Served, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(people, "LOOKED_AT_MAX", 100)
    waiting = await unknown(service, 120)
    await unknown(service, 300, NotificationStatus.SENT)
    home = await client.get("/decide")
    assert 'data-key="c" aria-current="page">Decide</a>' in home.text

    listed: list[str] = []
    page, pages = home, 1
    while more := re.search(r'rel="next" href="([^"]+)"', page.text):
        listed += SUBJECT.findall(page.text)
        page = await client.get(html.unescape(more[1]))
        pages += 1
    listed += SUBJECT.findall(page.text)

    assert listed == sorted(waiting)
    assert pages >= 4


async def test_a_rule_over_more_than_one_kind_is_left_to_a_reconciliation(
    service: Served, tmp_path: Path
) -> None:
    def both(notifications: States[Notification], orders: States[Order]) -> Iterator[Broken]:
        yield "no one", "ever"

    found = await undecided_in(Watched(tmp_path, SAGA), Invariant.of(both), 50)
    assert not found.found
    assert "a reconciliation tells" in found.why_not


def test_only_a_saga_with_something_to_decide_has_that_in_its_navigation(tmp_path: Path) -> None:
    def navigation(saga: Saga) -> set[str]:
        watched = Watched(tmp_path, saga)
        return {
            link.path for link in Site(watched, Ticker(), SystemWatcher(watched), False).navigation
        }

    assert "/decide" in navigation(SAGA)
    assert "/decide" not in navigation(replace(SAGA, choices=()))


async def test_what_a_slow_service_did_is_noted_after_the_answers_deadline(tmp_path: Path) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def resend(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await go_on.wait()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(resend, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={"notification": (f"http://127.0.0.1:{port}",)},
        database_urls={},
        dead_letters_url=dead_letters_url_in(tmp_path),
    ).save(tmp_path)
    settings = ConsoleSettings(http_port=0, console_write=True, http_answer_seconds=0.5)
    async with (
        server,
        console(Watched(tmp_path, SAGA), settings) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as client,
    ):

        async def audit_says(said: str) -> bool:
            return said in (await client.get("/audit?record=dead+letters")).text

        address = f"/decide?rule={RULE}&subject={UNKNOWN}"
        answer = await client.post(address, data={"way": "resend", "reason": "she asks"})
        assert answer.status_code == 503
        assert asked.is_set()
        assert await audit_says("state: asked")
        assert not await audit_says("state: done")
        go_on.set()
        await until(lambda: audit_says("state: done"))


def test_a_service_is_waited_for_no_longer_than_an_answer_may_take() -> None:
    assert ConsoleSettings().http_answer_seconds > ASK_SECONDS


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


# --- what is asked only once, on the page of its saga ---------------------------------------------


async def told_of(watched: Watched, played: Play, order: str) -> tuple[list[AskedOnce], list[str]]:
    facts = [Fact(event, event.to_bytes(), position=n) for n, event in enumerate(played.events)]
    about = [fact for fact in facts if fact.attributes.subject == order]
    asked, waits = await asked_once(watched, tell(SAGA.choreography, order, about))
    return asked, [f"{each.rule}: {each.detail} ({each.can_be_decided})" for each in waits]


def played_order() -> tuple[Play, str]:
    played = Play(at=utc_now(), tick=timedelta(milliseconds=5))
    order = played.place(sku="nothing")
    played.deliver()
    return played, order


async def test_a_sagas_mail_is_listed_as_its_service_has_it_now(
    service: Served, tmp_path: Path
) -> None:
    played, order = played_order()
    state = Notification(order, status=NotificationStatus.UNKNOWN, detail="no answer")

    def save(connection: Connection) -> None:
        with writing(connection) as writes:
            NOTIFICATIONS.save(writes, [(state, 0)])

    await service.database.transaction(save)

    (mail,), waits = await told_of(Watched(tmp_path, SAGA), played, order)
    # Its events tell that it was sent; not every step of a question is an event.
    assert (mail.state, mail.why_not) == (state, "")
    assert (mail.participant, mail.outsides) == ("notification", ["mail server"])
    assert waits == [f"{RULE}: no answer (True)"]

    cannot = Watched(tmp_path, replace(SAGA, choices=()))
    assert (await told_of(cannot, played, order))[1] == [f"{RULE}: no answer (False)"]


async def test_a_mail_whose_service_cannot_be_read_is_told_by_its_events(tmp_path: Path) -> None:
    Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={}).save(tmp_path)
    played, order = played_order()

    (mail,), waits = await told_of(Watched(tmp_path, SAGA), played, order)

    assert isinstance(mail.state, Notification)
    assert mail.state.status is NotificationStatus.SENT
    assert "names no database of notification" in mail.why_not
    assert waits == []
