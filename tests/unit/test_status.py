"""What `saga status` makes of what services say of themselves."""

from __future__ import annotations

import httpx
import pytest

from common.readiness import Look, Missing, Readiness
from common.settings import HttpSettings
from common.web import create_app
from saga import status
from saga.status import READY, Status, readiness


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
    (problem,) = Status(services={"order": said}).problems
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
