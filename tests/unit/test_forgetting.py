"""Requests that wait, and how a person to be forgotten is named."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from stat import S_IMODE
from types import SimpleNamespace
from typing import Any

import pytest

from saga.commands.forgetting import _look_or_say
from saga.declaration import EarlyEnd, Saga, SagaError
from saga.outside import OutsideError
from saga.personal.forgetting import Forgetter, Whom
from saga.personal.requests import FILE_NAME, Request, RequestsError, drop, keep, waiting_in
from tests.command import saga
from tests.errands import SAGA


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

    assert waiting_in(tmp_path) == (a_request("two", "s2"), a_request("one", "s3"))
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


async def test_the_key_stays_as_long_as_an_outside_still_has_the_name(tmp_path: Path) -> None:
    def away(_: object) -> int:
        raise OutsideError("its books are locked")

    outside: Any = SimpleNamespace(name="shop", forget=away)
    fakes: Any = SimpleNamespace(outside=[outside], outside_urls={})
    no_store: Any = None  # Destroying the key would fail.
    person: Any = SimpleNamespace(person_id="one")
    whom = Whom(person, {"Ada": "~1"}, (), (), (), (), (), 0)

    forgetter = Forgetter(fakes, tmp_path, fakes, no_store)
    outcome = await forgetter.forget(whom, "asked", wait_seconds=0, report=print)

    assert outcome.again == ["shop: its books are locked"]
    assert [request.person_id for request in waiting_in(tmp_path)] == ["one"]
