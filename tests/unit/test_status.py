"""What `saga status` makes of what services say of themselves."""

from __future__ import annotations

import aiormq
import httpx
import pytest

from saga import status
from saga.deployment import Deployment
from saga.generate.naming import names_of
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.readiness import Look, Missing, Readiness
from saga.runtime.settings import HttpSettings
from saga.runtime.web import create_app
from saga.status import READY, Dues, SystemStatus, readiness
from tests.circle import GRAPH


def answering(found: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every URL leads to a service that knows this of itself."""

    async def nothing() -> None: ...

    app = create_app("test", HttpSettings(), readiness=found, before_scrape=nothing)
    monkeypatch.setattr(
        status,
        "client",
        lambda url, timeout: httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url),
    )


async def nothing_missing() -> Missing:
    return {}


async def test_a_service_that_is_ready_and_has_a_trouble_is_a_problem(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trouble = {"due_subjects": "cannot do what is due: the row 'x' cannot be read"}
    answering(Readiness(troubles=lambda: trouble), monkeypatch)

    said = await readiness(["http://localhost:1"])

    assert said.startswith(READY)
    (problem,) = SystemStatus(services={"order": said}).problems
    assert "the row 'x' cannot be read" in problem


async def test_a_service_with_no_trouble_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(Readiness(), monkeypatch)

    assert await readiness(["http://localhost:1"]) == READY


async def test_a_service_that_is_not_ready_says_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    look = Look(nothing_missing, explain=lambda why: {"broker": why})
    answering(Readiness(look), monkeypatch)

    assert await readiness(["http://localhost:1"]) == "broker: nothing is known yet"


# --- what is due ----------------------------------------------------------------------------------


def test_what_is_due_is_listed_by_its_table() -> None:
    found = SystemStatus(dues={("order", "orders"): Dues(pending=3, overdue=1)})

    document = found.to_json()
    assert found.problems == ["orders: 1 overdue"]
    assert document["orders"] == {"pending": 3, "overdue": 1}
    assert document["dues"] == {"order": {"orders": {"pending": 3, "overdue": 1}}}


def test_tables_of_one_name_are_told_apart_by_their_participants() -> None:
    late, fine = Dues(pending=1, overdue=1), Dues(pending=2, overdue=0)
    found = SystemStatus(dues={("crew", "jobs"): late, ("van", "jobs"): fine})

    document = found.to_json()
    assert found.problems == ["crew.jobs: 1 overdue"]
    assert document["dues"]["crew"]["jobs"]["overdue"] == 1
    assert document["dues"]["van"]["jobs"] == document["van.jobs"] == {"pending": 2, "overdue": 0}


def test_a_table_takes_no_other_part_of_the_document_away() -> None:
    found = SystemStatus(dues={("bank", "queues"): Dues(pending=1, overdue=0)})

    document = found.to_json()
    assert document["queues"] == {}
    assert document["bank.queues"] == {"pending": 1, "overdue": 0}


def test_a_thing_is_called_as_its_participant_calls_it_where_no_other_is_called_so() -> None:
    owned = [("crew", "jobs"), ("van", "jobs"), ("van", "vans"), ("van", "events")]

    assert [*names_of(owned, taken={"events"}).values()] == [
        "crew.jobs",
        "van.jobs",
        "vans",
        "van.events",
    ]


async def test_a_broker_that_goes_while_it_is_asked_is_one_that_cannot_be_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Going:
        async def __aenter__(self) -> None: ...

        async def __aexit__(self, *error: object) -> None: ...

        async def channel(self) -> None:
            raise aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED")

    async def connect(url: str, **how: object) -> Going:
        return Going()

    monkeypatch.setattr(status, "connect", connect)
    deployment = Deployment(amqp_url="amqp://broker", http_urls={}, database_urls={})

    with pytest.raises(BrokerError, match="CONNECTION_FORCED"):
        await status.at_broker(deployment, GRAPH)


def test_a_status_is_put_together_from_its_parts() -> None:
    waiting = SystemStatus(dead_letters={"a": 2, "b": 0})
    kept = SystemStatus(dead_letters={"a": 1}, stored_dead_letters={"a": 1, "gone": 4})

    whole = waiting.beside(kept)

    assert whole.dead_letters == {"a": 3, "b": 0}
    assert whole.uncollected == {"a": 2}
    assert whole.stored_dead_letters == {"a": 1, "gone": 4}
