"""What differs between a broker's definitions and the choreography's is told, all else is not."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from saga.broker.drift import MISSING, Deviation, differences
from saga.runtime.messaging.definitions import Definitions, definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of
from tests.circle import GRAPH

EXPECTED = definitions(topology_of(GRAPH), users_of(GRAPH))


@pytest.fixture
def found() -> Definitions:
    return copy.deepcopy(EXPECTED)


def named(things: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(thing for thing in things if thing["name"] == name)


def test_nothing_differs_from_itself_nor_by_what_is_not_the_sagas(found: Definitions) -> None:
    found["queues"].append({"name": "somebody's", "vhost": "/", "arguments": {}})
    found["users"].append({"name": "guest", "tags": "administrator"})
    found["bindings"] = [dict(b, vhost="other") for b in found["bindings"]] + found["bindings"]

    assert differences(EXPECTED, found) == []


def test_what_is_missing_and_what_is_too_much_is_told(found: Definitions) -> None:
    found["queues"] = [q for q in found["queues"] if q["name"] != "asker.high"]
    stray = {"source": "saga.events", "destination": "asker.normal", "routing_key": "#"}
    found["bindings"].append(stray | {"vhost": "/", "destination_type": "queue", "arguments": {}})

    missing, extra = differences(EXPECTED, found)

    assert (missing.kind, missing.name, missing.found) == ("queue", "asker.high", MISSING)
    assert "x-queue-type" in missing.expected
    assert (extra.kind, extra.name) == ("binding", "saga.events # asker.normal")
    assert extra.expected == MISSING


def test_an_argument_that_differs_is_told_alone(found: Definitions) -> None:
    named(found["queues"], "asker.high")["arguments"]["x-delivery-limit"] = 20

    assert differences(EXPECTED, found) == [
        Deviation("queue", "asker.high", "x-delivery-limit=1000000", "x-delivery-limit=20")
    ]


def test_a_right_that_is_too_much_is_told(found: Definitions) -> None:
    asker = next(p for p in found["permissions"] if p["user"] == "asker")
    asker["configure"] = ".*"
    named(found["users"], "asker")["tags"] = "administrator"

    told = {(d.kind, d.name, d.expected, d.found) for d in differences(EXPECTED, found)}

    assert told == {
        ("permission", "asker", "configure=^$", "configure=.*"),
        ("user", "asker", "tags=[]", "tags=['administrator']"),
    }


def test_users_are_left_out_where_they_cannot_be_seen(found: Definitions) -> None:
    for section in ("users", "permissions", "topic_permissions"):
        del found[section]

    assert differences(EXPECTED, found, users=False) == []
    assert {d.kind for d in differences(EXPECTED, found)} == {
        "user",
        "permission",
        "topic permission",
    }
