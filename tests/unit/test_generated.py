"""Generated files are in step with what they are generated from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.choreography import Choreography, Participant, State
from common.events import PaymentRefunded, StockAdded, StockReleased
from common.message import Event
from common.messaging.definitions import Definitions, definitions, text
from common.messaging.permissions import users_of
from common.messaging.topology import topology_of
from saga.discovery import choreography, participants

DEFINITIONS = Path(__file__).parents[2] / "rabbitmq" / "definitions.json"


def test_the_definitions_file_is_what_the_reactions_ask_for() -> None:
    assert DEFINITIONS.read_text() == text(_definitions(choreography())), (
        "run `saga topology export rabbitmq/definitions.json`"
    )


class _Refunds(State):
    """How many refunds were seen."""


def count(event: PaymentRefunded, refunds: _Refunds) -> None: ...


def restock(event: StockReleased, refunds: _Refunds) -> StockAdded | None: ...


def test_the_definitions_file_holds_no_secret() -> None:
    users = json.loads(DEFINITIONS.read_text())["users"]

    assert users
    assert all(user.keys() == {"name", "tags"} and not user["tags"] for user in users)


def test_an_event_in_a_signature_is_a_binding_and_a_permission_and_nothing_else_changes() -> None:
    before = _exported([*participants().values(), Participant("audit", count)])
    after = _exported([*participants().values(), Participant("audit", count, restock)])

    old, new = before.pop("bindings"), after.pop("bindings")
    added = [binding for binding in new if binding not in old]

    assert [binding for binding in new if binding not in added] == old
    assert sorted((b["source"], b["routing_key"], b["destination"]) for b in added) == [
        ("saga.events", "stock.released.high", "audit.high"),
        ("saga.events", "stock.released.normal", "audit.normal"),
    ]

    permissions = [(old, new) for old, new in _topic_permissions(before, after) if old != new]

    assert [(new["user"], new["exchange"], new["write"]) for _, new in permissions] == [
        ("audit", "saga.events", r"^(stock\.added\.high|stock\.added\.normal)$")
    ]
    assert after == before


def _topic_permissions(before: Definitions, after: Definitions) -> list[tuple[Any, Any]]:
    """Takes them out of both."""
    return list(zip(before.pop("topic_permissions"), after.pop("topic_permissions"), strict=True))


def test_every_binding_is_of_an_event_its_reader_reacts_to() -> None:
    graph = choreography()
    readers = {p.name: {event.type for event in p.consumes} for p in graph.participants}
    bound: dict[str, set[str]] = {name: set() for name in readers}
    for binding in topology_of(graph).bindings:
        name, _, kind = binding.queue.rpartition(".")
        if kind in ("high", "normal"):
            bound[name].add(binding.key.rpartition(".")[0])

    assert bound == readers


def _exported(those: list[Participant]) -> Definitions:
    return _definitions(Choreography(those))


def _definitions(graph: Choreography) -> Definitions:
    return definitions(topology_of(graph), users_of(graph))


def test_every_event_somebody_reacts_to_is_published_by_somebody() -> None:
    graph = choreography()
    published: set[type[Event]] = {kind for p in graph.participants for kind in p.publishes}

    assert {kind for p in graph.participants for kind in p.consumes} <= published
