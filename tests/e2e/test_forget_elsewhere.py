"""A traveller is forgotten by a system of another saga, `examples/trips`: one whose trip is
still open, which ends first as that saga declares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from saga.deployment import Deployment
from tests.polling import wait_until
from tests.test_any_saga import EXAMPLES, SETTLED_SECONDS, Place, typed_in, up

NAME: Final = "Zoë O'Neil-Ünsal"
KEY: Final = "oslo/1"
WISH: Final = {
    "trip": KEY,
    "traveller": NAME,
    "flight": "LX 40",
    "flight_cents": 200,
    "hold_seconds": 10**6,
    "hotel": "Bristol",
    "hotel_cents": 300,
    "car": "small",
    "car_cents": 90,
    "time_limit_seconds": 10**6,
}


def forget(place: Place, *arguments: str) -> tuple[int, dict[str, Any]]:
    """How the command ends, and the document it prints."""
    done = place.on_system("forget", *arguments, "--json")
    assert done.returncode in (0, 1), done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


@pytest.mark.long
@pytest.mark.timeout(4 * SETTLED_SECONDS)
def test_a_traveller_with_an_open_trip_is_forgotten_once_it_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERSONAL", "sealed")
    monkeypatch.setenv("PERSONAL_CACHE_SECONDS", "0.2")
    (trips,) = (project for project in EXAMPLES if project.name == "trips")
    with typed_in(trips, tmp_path) as place:
        place.say("generate", of_system=False)
        _is_forgotten_once_it_has_ended(place)


def _is_forgotten_once_it_has_ended(place: Place) -> None:
    with up(place):
        url = str(Deployment.load(place.data).http_urls["trip"][0])
        down = place.data / "airline.down"
        down.touch()
        with httpx.Client(base_url=url, timeout=SETTLED_SECONDS, trust_env=False) as asking:
            assert asking.post("/trips", json=WISH).status_code == 202
            assert asking.get("/trips/oslo/1").json()["traveller"].startswith("person ")
        wait_until(lambda: bool(forget(place, NAME, "--reason", "a look")[1]["subjects"]))

        status, waits = forget(place, NAME, "--reason", "they asked", "--yes", "--wait", "0.5")

        assert (status, waits["ended"], waits["waits"]["waits_for"]) == (1, [KEY], [KEY])
        assert "1 request waits to forget a person" in place.on_system("status").stdout
        down.unlink()

        done: dict[str, Any] = {}

        def forgotten() -> bool:
            if place.dead():
                place.on_system("dlq", "replay", "--reason", "the airline is back")
            done.update(
                zip(("status", "document"), forget(place, "--resume", "--wait", "5"), strict=True)
            )
            return bool(done["document"]["requests"][0]["forgotten_at"])

        wait_until(forgotten, seconds=SETTLED_SECONDS)
        assert done["status"] == 0, done
        assert forget(place, "--verify", NAME)[0] == 0
        wait_until(place.settled, seconds=SETTLED_SECONDS)
        with httpx.Client(base_url=url, timeout=SETTLED_SECONDS, trust_env=False) as asking:
            shown = asking.get("/trips/oslo/1").json()
        assert shown["stage"] == "cancelled"
        assert NAME not in json.dumps(shown, ensure_ascii=False)
