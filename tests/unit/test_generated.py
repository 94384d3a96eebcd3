"""Generated files are in step with what they are generated from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from common.choreography import Choreography, Participant, State
from common.events import PaymentRefunded, StockAdded, StockReleased
from common.message import Event
from common.messaging.topology import definitions, topology_of
from saga.discovery import choreography, participants

DEFINITIONS = Path(__file__).parents[2] / "rabbitmq" / "definitions.json"


def test_the_definitions_file_is_what_the_reactions_ask_for() -> None:
    assert DEFINITIONS.read_text() == definitions(topology_of(choreography())), (
        "run `saga topology export rabbitmq/definitions.json`"
    )


class _Refunds(State):
    """How many refunds were seen."""


def count(event: PaymentRefunded, refunds: _Refunds) -> None: ...


def restock(event: StockReleased, refunds: _Refunds) -> StockAdded | None: ...


def test_an_event_in_a_signature_is_a_binding_in_the_export_and_nothing_else_changes() -> None:
    before = _exported([*participants().values(), Participant("audit", count)])
    after = _exported([*participants().values(), Participant("audit", count, restock)])

    old, new = before.pop("bindings"), after.pop("bindings")
    added = [binding for binding in new if binding not in old]

    assert [binding for binding in new if binding not in added] == old
    assert sorted((b["source"], b["routing_key"], b["destination"]) for b in added) == [
        ("saga.events", "stock.released.high", "audit.high"),
        ("saga.events", "stock.released.normal", "audit.normal"),
    ]
    assert after == before


def test_every_binding_is_of_an_event_its_reader_reacts_to() -> None:
    graph = choreography()
    readers = {p.name: {event.type for event in p.consumes} for p in graph.participants}
    bound: dict[str, set[str]] = {name: set() for name in readers}
    for binding in topology_of(graph).bindings:
        name, _, kind = binding.queue.rpartition(".")
        if kind in ("high", "normal"):
            bound[name].add(binding.key.rpartition(".")[0])

    assert bound == readers


def _exported(those: list[Participant]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(definitions(topology_of(Choreography(those))))
    return document


def test_every_event_somebody_reacts_to_is_published_by_somebody() -> None:
    graph = choreography()
    published: set[type[Event]] = {kind for p in graph.participants for kind in p.publishes}

    assert {kind for p in graph.participants for kind in p.consumes} <= published
