"""The AsyncAPI document is one, and says what the signatures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft7Validator

from common.events import PlaceOrder
from saga.choreography import Choreography
from saga.discovery import choreography
from saga.graph.asyncapi import asyncapi
from saga.graph.flow import Flow
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.topology import topology_of
from saga.schemas.export import schema_files
from tests import errands

OFFICIAL = Path(__file__).parents[1] / "data" / "asyncapi" / "3.0.0.json"
GRAPH = choreography()


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    return Draft7Validator(json.loads(OFFICIAL.read_text()))


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(json.dumps(asyncapi(Flow(GRAPH), "orders")))  # type: ignore[no-any-return]  # an object


def test_the_document_is_valid_against_the_official_schema(
    official: Draft7Validator, document: dict[str, Any]
) -> None:
    assert not list(official.iter_errors(document))

    document["operations"]["inventory.reserve"]["action"] = "consume"
    assert list(official.iter_errors(document))


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(part: Any) -> list[str]:
        if isinstance(part, dict):
            own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
            return own + [ref for value in part.values() for ref in references(value)]
        return (
            [ref for value in part for ref in references(value)] if isinstance(part, list) else []
        )

    found = set(references(document))
    assert len(found) > 2 * len(GRAPH.events)
    for reference in found:
        part: Any = document
        for name in reference.removeprefix("#/").split("/"):
            part = part[name]


def test_there_is_an_operation_for_each_message_taken_and_each_event_published(
    document: dict[str, Any],
) -> None:
    received: dict[str, str] = {}
    for participant in GRAPH.participants:
        for reaction in participant.reactions:
            if reaction.consumes in (*participant.consumes, *participant.intake):
                received[f"{participant.name}.{reaction.name}"] = reaction.consumes.type  # type: ignore[union-attr]  # an event or a command
    sent = {
        f"{p.name}.publish.{kind.type}": kind.type
        for p in GRAPH.participants
        for kind in p.publishes
    }

    operations = document["operations"]
    for action, expected in (("receive", received), ("send", sent)):
        assert expected == {
            name: operation["channel"]["$ref"].removeprefix("#/channels/")
            for name, operation in operations.items()
            if operation["action"] == action
        }


def test_addresses_queues_and_dead_letters_are_the_brokers(document: dict[str, Any]) -> None:
    broker = definitions(topology_of(GRAPH))
    keys = {binding["routing_key"] for binding in broker["bindings"]}
    queues = {queue["name"] for queue in broker["queues"]}

    for operation in document["operations"].values():
        if operation["action"] == "receive":
            assert queues.issuperset(operation["x-queues"])
            assert operation["x-dead-letter"]["queue"] in queues
            for wait_ms in operation["x-retry"]["waits_ms"]:
                assert f"saga.retry.{wait_ms}" in queues
            channel = document["channels"][operation["channel"]["$ref"].split("/")[-1]]
            for priority in channel["parameters"]["priority"]["enum"]:
                address = channel["address"].format(priority=priority)
                assert address in (queues if channel["bindings"]["amqp"]["is"] == "queue" else keys)


def test_the_policy_of_a_reaction_is_its_own(document: dict[str, Any]) -> None:
    operations = document["operations"]

    assert operations["payment.compensate"]["x-retry"]["max_calls"] == 12
    assert operations["payment.charge"]["x-retry"]["max_calls"] == 4


def test_the_command_over_the_broker_is_there_and_those_from_within_are_not(
    document: dict[str, Any],
) -> None:
    assert document["channels"][PlaceOrder.type]["address"] == "order.intake.{priority}"
    assert "order.cancel" not in document["channels"]


def test_a_choreography_of_nothing_is_a_valid_document(official: Draft7Validator) -> None:
    assert not list(official.iter_errors(asyncapi(Flow(Choreography([])), "none")))


def test_commands_between_participants_are_in_the_document_and_private_facts_are_not(
    official: Draft7Validator,
) -> None:
    document = json.loads(json.dumps(asyncapi(Flow(errands.GRAPH), "errands")))

    assert not list(official.iter_errors(document))
    started, asked = (document["channels"][type_] for type_ in ("ride.start", "errand.ask"))
    assert started["address"] == "ride.start.{priority}"
    assert started["description"] == "The command ride.start, sent by desk to rider."
    assert started["bindings"]["amqp"]["exchange"]["name"] == "saga.events"
    assert asked["address"] == "desk.intake.{priority}"
    assert document["operations"]["desk.publish.ride.start"]["action"] == "send"
    assert document["operations"]["rider.ride"]["x-queues"] == [
        "rider.intake.high",
        "rider.intake.normal",
    ]
    assert "errand.ridden" not in json.dumps(document)
    assert not any(name.startswith("errand.ridden") for name in schema_files(errands.GRAPH))
