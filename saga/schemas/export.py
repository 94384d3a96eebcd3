"""JSON Schemas of events and commands: one per version, and one document with all for AsyncAPI.

They describe what a reader accepts: a field with a default may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from pydantic.json_schema import models_json_schema

from common.choreography import Choreography
from common.envelope import Envelope, schema_uri
from common.message import Command, Event, all_below

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]
Travelling = type[Event] | type[Command]


def travelling(choreography: Choreography) -> tuple[Travelling, ...]:
    """What goes over the broker, newest versions only: events, and the commands taken there."""
    commands = {c.type: c for p in choreography.participants for c in p.intake}
    return (*choreography.events, *(commands[type_] for type_ in sorted(commands)))


def versions_of(message: Travelling) -> dict[int, Travelling]:
    """Every version of a type that there is a class for, by number."""
    if issubclass(message, Command):
        return {message.version: message}
    kinds = [kind for kind in all_below(Event) if getattr(kind, "type", None) == message.type]
    return {kind.version: kind for kind in sorted(kinds, key=lambda kind: kind.version)}


def schema_of(message: Travelling) -> Schema:
    """The JSON Schema of a message's `data`; its `$id` is the envelope's `dataschema`."""
    return {
        "$schema": DIALECT,
        "$id": schema_uri(message),
        **_plain(message.model_json_schema()),
    }


def shared_schemas(messages: Iterable[Travelling], template: str) -> dict[str, Schema]:
    """The schemas of all these by class name, of what they consist of, and of `Envelope` less its
    data; they refer to one another by `template`, in which `{model}` stands for the name."""
    kinds: list[Any] = [(kind, "validation") for kind in (Envelope, *messages)]
    _, document = models_json_schema(kinds, ref_template=template)
    schemas = {name: _plain(schema) for name, schema in sorted(document["$defs"].items())}
    envelope = schemas["Envelope"]
    del envelope["properties"]["data"], schemas["Message"]
    envelope["required"].remove("data")
    return schemas


def _plain(schema: Schema) -> Schema:
    """Less the titles that only repeat a field's name."""
    for name, part in (schema.get("$defs") or {}).items():
        schema["$defs"][name] = _plain(part)
    for part in (schema.get("properties") or {}).values():
        part.pop("title", None)
    return schema
