"""What a broker holds against what the choreography asks for.

Both sides are definitions, as RabbitMQ exports and imports them. Only what bears the saga's names
is compared: other exchanges, queues and users are ignored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from saga.runtime.messaging.definitions import Definitions

MISSING: Final = "-"
PREFIX: Final = "saga."

_Key = tuple[str, ...]
_Things = Mapping[_Key, Any]


@dataclass(frozen=True, slots=True)
class Deviation:
    """One thing that is not as it should be; `MISSING` stands for what is not there."""

    kind: str
    name: str
    expected: str
    found: str


def differences(
    expected: Definitions, found: Definitions, *, virtual_host: str = "/", users: bool = True
) -> list[Deviation]:
    """Everything missing, different, or there without being asked for, in `virtual_host`.

    Without `users`, users and permissions are not compared.
    """
    queues = {queue["name"] for queue in expected["queues"]}
    exchanges = {exchange["name"] for exchange in expected["exchanges"]}
    names = {user["name"] for user in expected["users"]}

    def ours(kind: str, thing: Mapping[str, Any]) -> bool:
        match kind:
            case "exchange":
                return thing["name"] in exchanges or thing["name"].startswith(PREFIX)
            case "queue":
                return thing["name"] in queues or thing["name"].startswith(PREFIX)
            case "binding":
                return thing["destination"] in queues | exchanges or thing["source"] in exchanges
            case "user":
                return thing["name"] in names
            case _:
                return thing["user"] in names

    kinds = ["exchange", "queue", "binding"]
    if users:
        kinds += ["user", "permission", "topic permission"]
    return [
        difference
        for kind in kinds
        for difference in _compare(
            kind,
            _things(kind, expected, virtual_host),
            _things(
                kind,
                {
                    _SECTIONS[kind]: [
                        thing
                        for thing in found.get(_SECTIONS[kind], [])
                        if _in(thing, virtual_host) and ours(kind, thing)
                    ]
                },
                virtual_host,
            ),
        )
    ]


_SECTIONS: Final = {
    "exchange": "exchanges",
    "queue": "queues",
    "binding": "bindings",
    "user": "users",
    "permission": "permissions",
    "topic permission": "topic_permissions",
}
_NAMED_BY: Final = {
    "exchange": ("name",),
    "queue": ("name",),
    "binding": ("source", "routing_key", "destination", "destination_type"),
    "user": ("name",),
    "permission": ("user",),
    "topic permission": ("user", "exchange"),
}
_COMPARED: Final = {
    "exchange": ("type", "durable", "auto_delete", "internal", "arguments"),
    "queue": ("durable", "auto_delete", "arguments"),
    "binding": ("destination_type", "arguments"),
    "user": ("tags",),
    "permission": ("configure", "write", "read"),
    "topic permission": ("write", "read"),
}


def _in(thing: Mapping[str, Any], virtual_host: str) -> bool:
    # An export of one virtual host does not name it.
    return bool(thing.get("vhost", virtual_host) == virtual_host)


def _things(kind: str, document: Mapping[str, Any], virtual_host: str) -> _Things:
    return {
        tuple(thing[part] for part in _NAMED_BY[kind]): {
            part: _plain(part, thing[part]) for part in _COMPARED[kind] if part in thing
        }
        for thing in document.get(_SECTIONS[kind], [])
        if _in(thing, virtual_host)
    }


def _plain(part: str, value: Any) -> Any:
    if part == "tags":  # A list, or in older exports a text with commas.
        tags: Iterable[str] = value.split(",") if isinstance(value, str) else value
        return sorted(tag for tag in tags if tag)
    return value


def _compare(kind: str, expected: _Things, found: _Things) -> Iterable[Deviation]:
    for key in dict.fromkeys((*expected, *found)):
        name = " ".join(key[:-1] if kind == "binding" and key[-1] == "queue" else key)
        if key not in found:
            yield Deviation(kind, name, _said(expected[key]), MISSING)
        elif key not in expected:
            yield Deviation(kind, name, MISSING, _said(found[key]))
        else:
            for part, value in expected[key].items():
                if part in found[key]:  # `rabbitmqctl` leaves out some that have their default.
                    yield from _compare_part(kind, name, part, value, found[key][part])


def _compare_part(
    kind: str, name: str, part: str, expected: Any, found: Any
) -> Iterable[Deviation]:
    """A part as a whole, or, where it consists of parts (arguments do), those that differ."""
    if expected == found:
        return
    if not (isinstance(expected, dict) and isinstance(found, dict)):
        yield Deviation(kind, name, f"{part}={expected}", f"{part}={found}")
        return
    for argument in dict.fromkeys((*expected, *found)):
        wanted, there = expected.get(argument), found.get(argument)
        if wanted != there:
            yield Deviation(
                kind,
                name,
                MISSING if wanted is None else f"{argument}={wanted}",
                MISSING if there is None else f"{argument}={there}",
            )


def _said(thing: Mapping[str, Any]) -> str:
    parts = {part: value for part, value in thing.items() if value not in ({}, [])}
    return ", ".join(f"{part}={value}" for part, value in parts.items()) or "there"
