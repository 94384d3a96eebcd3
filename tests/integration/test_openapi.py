"""What schemathesis makes of every service's OpenAPI document: whatever it asks, no service fails,
and none answers what its document does not say. One who may do everything asks, and a customer.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import CheckFunction
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from saga.discovery import packages
from tests.closed import EVERY_SCOPE, OPEN, Callers
from tests.integration.served import Served, serving

CHECKS: Final[list[CheckFunction]] = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
QUIET: Final = settings(
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[*HealthCheck],
    phases=(Phase.explicit, Phase.generate),
)


@contextmanager
def running(package: str, callers: Callers) -> Iterator[Served]:
    """A service on an event loop of its own."""
    begun, ended = threading.Event(), threading.Event()
    found: list[Served] = []
    failed: list[BaseException] = []

    async def serve() -> None:
        unlimited = {"HTTP_REQUESTS_PER_SECOND": "0", "AUTH_REQUESTS_PER_SECOND": "0"}
        try:
            async with serving(package, callers.folder, **(callers.settings | unlimited)) as served:
                found.append(served)
                begun.set()
                await asyncio.to_thread(ended.wait)
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            begun.set()

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    begun.wait()
    try:
        if failed:
            raise failed[0]
        yield found[0]
    finally:
        ended.set()
        thread.join()


def ask_everything(package: str, folder: Path, examples: int) -> None:
    callers = Callers(folder / "auth")
    with running(package, callers) as served:
        url = f"http://127.0.0.1:{served.port}"
        schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
        customer = callers.issuer.customers("orders:read orders:write")
        asked = 0
        operations: list[Any] = [*schema.get_all_operations()]
        for operation in (found.ok() for found in operations):
            if operation.path in OPEN:
                continue
            for credentials in (callers.keys[EVERY_SCOPE], customer):
                asked += 1
                _ask(operation, credentials, examples)
        assert asked


def _ask(operation: Any, credentials: str, examples: int) -> None:
    @settings(QUIET, max_examples=examples)
    @given(case=operation.as_strategy())
    def ask(case: Any) -> None:
        answer = case.call(headers={"Authorization": f"Bearer {credentials}"})
        assert answer.status_code != 500, answer.text
        case.validate_response(answer, checks=CHECKS)

    ask()


@pytest.mark.parametrize("package", packages())
def test_a_service_answers_as_its_document_says(package: str, tmp_path: Path) -> None:
    ask_everything(package, tmp_path, examples=8)


def test_an_answer_that_is_not_declared_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payment_service.app.problems", lambda *_: {})

    with pytest.raises(BaseException, match="Undocumented status code"):
        ask_everything("payment_service", tmp_path, examples=8)


@pytest.mark.long
@pytest.mark.timeout(1_800)  # Of the history's many parameters, on a machine that is busy.
@pytest.mark.parametrize("package", packages())
def test_a_service_answers_as_its_document_says_whatever_it_is_asked(
    package: str, tmp_path: Path
) -> None:
    ask_everything(package, tmp_path, examples=500)
