"""The choreography as an AsyncAPI 3.0 document: channels, operations and messages of all services.

What AsyncAPI has no words for is in extensions: `x-retry` and `x-dead-letter` say what becomes of a
message whose reaction fails.

https://www.asyncapi.com/docs/reference/specification/v3.0.0
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote

from saga.choreography import Participant
from saga.envelope import CONTENT_TYPE, Envelope, schema_uri
from saga.graph.flow import Flow, Step
from saga.graph.listing import retry_as_data
from saga.message import Command, Event, Priority
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    dead_letter_queue,
    intake_queue,
    work_queue,
)
from saga.schemas.export import Travelling, shared_schemas, travelling
from saga.version import engine_version

_SCHEMAS: Final = "#/components/schemas/{model}"
_BINDING: Final = "0.3.0"
GENERATED_BY: Final = "make generate: edit the reactions, not this file"

Document = dict[str, Any]


def asyncapi(flow: Flow, saga: str) -> Document:
    """The document of the saga of that name."""
    messages = travelling(flow.choreography)
    return {
        "asyncapi": "3.0.0",
        "x-generated-by": GENERATED_BY,
        "id": f"urn:saga:{quote(saga)}",
        "info": {
            "title": saga,
            "version": engine_version(),
            "description": (
                "Services that react to each other's events. Every message is a CloudEvents 1.0 "
                "document in JSON; events go to a topic exchange under `<type>.<priority>`."
            ),
            "license": {"name": "MIT"},
            "tags": [{"name": p.name} for p in flow.choreography.participants],
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": {message.type: _channel(flow, message) for message in messages},
        "operations": _operations(flow),
        "components": {
            "messages": {message.type: _message(message) for message in messages},
            "schemas": shared_schemas(messages, _SCHEMAS),
        },
    }


def _channel(flow: Flow, message: Travelling) -> Document:
    sent = flow.publishers(message)
    if issubclass(message, Event) or sent:
        address, about = f"{message.type}.{{priority}}", f"The event {message.type}."
        if issubclass(message, Command):
            receiver = _taker(flow, message)
            about = f"The command {message.type}, sent by {_names(sent)} to {receiver}."
        binding: Document = {
            "is": "routingKey",
            "exchange": {
                "name": EVENTS_EXCHANGE,
                "type": "topic",
                "durable": True,
                "autoDelete": False,
            },
        }
    else:
        queue = intake_queue(_taker(flow, message), Priority.NORMAL)
        address = queue.replace(Priority.NORMAL, "{priority}")
        about = (
            f"The command {message.type}, sent to {_taker(flow, message)} by the default exchange."
        )
        binding = {"is": "queue", "queue": {"durable": True, "autoDelete": False}}
    return {
        "address": address,
        "description": about,
        "messages": {message.type: {"$ref": f"#/components/messages/{message.type}"}},
        "parameters": {
            "priority": {
                "description": inspect.getdoc(Priority),
                "enum": list(Priority),
            }
        },
        "bindings": {"amqp": {**binding, "bindingVersion": _BINDING}},
    }


def _taker(flow: Flow, command: type[Command]) -> str:
    (taker,) = flow.takers(command)
    return taker.participant.name


def _names(steps: Iterable[Step]) -> str:
    return " or ".join(dict.fromkeys(step.participant.name for step in steps))


def _message(message: Travelling) -> Document:
    extensions = (
        {"x-role": message.role, "x-terminal": message.role.terminal}
        if issubclass(message, Event)
        else {}
    )
    return {
        "name": message.type,
        "title": message.__name__,
        "summary": inspect.getdoc(message),
        "contentType": CONTENT_TYPE,
        "payload": {
            "allOf": [
                {"$ref": _SCHEMAS.format(model=Envelope.__name__)},
                {
                    "type": "object",
                    "required": ["data"],
                    "properties": {
                        "type": {"const": message.type},
                        "dataschema": {"const": schema_uri(message)},
                        "data": {"$ref": _SCHEMAS.format(model=message.__name__)},
                    },
                },
            ]
        },
        "correlationId": {"location": "$message.payload#/correlationid"},
        "bindings": {"amqp": {"messageType": message.type, "bindingVersion": _BINDING}},
        **extensions,
    }


def _operations(flow: Flow) -> Document:
    received = {
        step.name: _receives(flow, step, message)
        for message in travelling(flow.choreography)
        for step in flow.takers(message)
    }
    sent = {
        f"{participant.name}.publish.{message.type}": _sends(flow, participant, message)
        for participant in flow.choreography.participants
        for message in travelling(flow.choreography)
        if any(kind.type == message.type for kind in participant.emits)
    }
    return dict(sorted({**received, **sent}.items()))


def _operation(action: str, message: Travelling, participant: Participant) -> Document:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{message.type}"},
        "messages": [{"$ref": f"#/channels/{message.type}/messages/{message.type}"}],
        "tags": [{"name": participant.name}],
    }


def _receives(flow: Flow, step: Step, message: Travelling) -> Document:
    name = step.participant.name
    queue_of = intake_queue if issubclass(message, Command) else work_queue
    shown = {message.type for message in travelling(flow.choreography)}
    results = [kind.type for kind in step.reaction.emits if kind.type in shown]
    return {
        **_operation("receive", message, step.participant),
        "summary": f"{step.name} reacts to {message.type}",
        "bindings": {"amqp": {"ack": True, "bindingVersion": _BINDING}},
        "x-queues": [queue_of(name, priority) for priority in Priority],
        "x-publishes": results,
        "x-retry": retry_as_data(step.participant.retry_of(step.reaction.consumes)),
        "x-dead-letter": {
            "exchange": DEAD_EXCHANGE,
            "routing_key": name,
            "queue": dead_letter_queue(name),
        },
    }


def _sends(flow: Flow, participant: Participant, message: Travelling) -> Document:
    by = [step.name for step in flow.publishers(message) if step.participant is participant]
    verb = "sends" if issubclass(message, Command) else "publishes"
    return {
        **_operation("send", message, participant),
        "summary": f"{participant.name} {verb} {message.type}",
        "bindings": {"amqp": {"deliveryMode": 2, "mandatory": True, "bindingVersion": _BINDING}},
        "x-published-by": by,
    }
