"""Requests that wait, and how a person to be forgotten is named."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from typing import Any

import pytest

from saga.commands import forgetting
from saga.commands.forgetting import _look_or_say
from saga.declaration import EarlyEnd, Saga, SagaError
from saga.personal.forgetting import Outcome
from saga.personal.keystore import Person
from saga.personal.lookup import PersonRecord
from saga.personal.requests import (
    FILE_NAME,
    Request,
    RequestsError,
    drop,
    keep,
    problems_in,
    waiting_in,
)
from saga.runtime.messaging.connection import BrokerError
from saga.status import SystemStatus
from tests.command import saga
from tests.errands import SAGA

ROOT = Path(__file__).parents[2]


def a_request(person_id: str, *waits_for: str) -> Request:
    at = datetime(2030, 1, 31, tzinfo=UTC)
    return Request(
        person_id=person_id, reason="asked", who="me@here", asked_at=at, waits_for=waits_for
    )


def test_a_request_waits_until_it_is_dropped(tmp_path: Path) -> None:
    assert waiting_in(tmp_path) == ()

    keep(tmp_path, a_request("one", "s1"))
    keep(tmp_path, a_request("two", "s2"))
    keep(tmp_path, a_request("one", "s3"))

    assert waiting_in(tmp_path) == (a_request("one", "s3"), a_request("two", "s2"))
    assert S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600

    drop(tmp_path, "two")
    drop(tmp_path, "nobody")

    assert waiting_in(tmp_path) == (a_request("one", "s3"),)


def test_requests_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('[{"person_id": 7}]')

    with pytest.raises(RequestsError, match=r"forgetting\.json: 0\.person_id"):
        waiting_in(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["Ada Lovelace"], "--reason"),
        (["--status", "--verify"], "exclude each other"),
        (["--verify", "--reason", "why"], "takes no --reason"),
        (["--status", "Ada Lovelace"], "leave the person out"),
        (["--verify", "Ada"], "4 to 320"),
        (["--verify", "~1." + "a" * 22 + "." + "b" * 30], "in clear"),
        (["Ada Lovelace", "--reason", "x" * 256], "256 characters"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    done = saga("forget", *arguments, "--data-dir", str(tmp_path))

    assert done.returncode == 2, done.stderr
    assert said in done.stderr


def test_a_folder_without_a_system_was_not_looked_through(tmp_path: Path) -> None:
    done = saga("forget", "--verify", "Ada Lovelace", "--data-dir", str(tmp_path))

    assert done.returncode == 1
    assert "no running system" in done.stderr


def test_a_saga_is_ended_early_by_one_of_its_participants() -> None:
    given: dict[str, Any] = {"participants": SAGA.participants, "outside": SAGA.outside}

    with pytest.raises(SagaError, match="'nobody', which is no participant"):
        Saga("errands", early_end=EarlyEnd("nobody", "/{subject}"), **given)

    assert EarlyEnd("any", "/a/{subject}/end").path_for("x/y") == "/a/x%2Fy/end"


def test_a_name_too_short_to_be_looked_for_was_not_looked_for(tmp_path: Path) -> None:
    look = _look_or_say("Bob", tmp_path, [])

    assert not look.clean
    assert "3 characters" in look.unseen[0].why


def test_a_request_that_fails_does_not_keep_the_others_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(tmp_path, a_request("one", "s1"))
    keep(tmp_path, a_request("two", "s2"))

    class Fake:
        def __init__(self, _: Path) -> None: ...

        def __enter__(self) -> Fake:
            return self

        def __exit__(self, *_: object) -> None: ...

        async def record_of(self, given: str) -> PersonRecord:
            if given == "one":
                raise BrokerError("the broker is away")
            person = Person(given, datetime(2030, 1, 1, tzinfo=UTC), None, "")
            return PersonRecord(person, {}, (), (), (), (), (), 0)

        async def forget(self, record: PersonRecord, reason: str, **_: object) -> Outcome:
            return Outcome(record, forgotten_at=datetime(2030, 1, 2, tzinfo=UTC))

    monkeypatch.setattr(forgetting, "_forgetter", Fake)

    done = saga("forget", "--resume", "--json", "--data-dir", str(tmp_path))

    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert document["failed"] == [{"person": "one", "why": "the broker is away"}]
    assert [request["person"] for request in document["requests"]] == ["two"]


def _ask(folder: Path, first: int) -> None:
    for number in range(first, first + 20):
        keep(folder, a_request(f"person {number}"))


def test_no_request_is_lost_where_several_ask_at_once(tmp_path: Path) -> None:
    ask = "import sys, pathlib; from tests.unit.test_forgetting import _ask; "
    ask += "_ask(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
    processes = [
        subprocess.Popen([sys.executable, "-c", ask, str(tmp_path), str(first)], cwd=ROOT)
        for first in (0, 20, 40)
    ]

    assert [process.wait(120) for process in processes] == [0, 0, 0]
    assert len(waiting_in(tmp_path)) == 60


def test_more_requests_than_are_kept_are_refused_and_lose_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.personal.requests.REQUESTS_MAX", 1)
    keep(tmp_path, a_request("one"))

    with pytest.raises(RequestsError, match="--resume"):
        keep(tmp_path, a_request("two"))

    assert waiting_in(tmp_path) == (a_request("one"),)


def test_the_status_names_requests_that_wait(tmp_path: Path) -> None:
    assert problems_in(tmp_path) == ()
    keep(tmp_path, a_request("one", "s1"))

    (problem,) = SystemStatus(forgetting=problems_in(tmp_path)).problems

    assert problem.startswith("1 request waits to forget a person, the oldest since 2030-01-31")
    (tmp_path / FILE_NAME).write_text("{")
    assert "cannot read" in problems_in(tmp_path)[0]
