"""Setting a message aside: to wait for its next try, or for an operator as a dead letter.

Either way it is a copy with everything needed to understand it and to try it again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from saga.limits import ATTEMPT_MAX, moment_of
from saga.retry import RUNGS_MS
from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Delivery, Field
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, wait_queue
from saga.version import engine_version

ERROR_MAX_CHARACTERS = 1_000

REASON = "x-saga-reason"
ERROR_TYPE = "x-saga-error-type"
ERROR = "x-saga-error"
ATTEMPTS = "x-saga-attempts"
FINGERPRINT = "x-saga-fingerprint"
SERVICE_VERSION = "x-saga-service-version"
FIRST_FAILED_AT = "x-saga-first-failed-at"
LAST_FAILED_AT = "x-saga-last-failed-at"
REPLAYS = "x-saga-replays"
"""How often the operator's store has sent a message again."""
ORIGIN_QUEUE = "x-saga-origin-queue"
ORIGIN_EXCHANGE = "x-saga-origin-exchange"
ORIGIN_ROUTING_KEY = "x-saga-origin-routing-key"
KEPT = "x-saga-kept"
"""A property list, as bytes: what the message carried that a copy must not, see `set_aside`."""
RESTORED = "x-saga-restored"
"""On a message of the history's stream that was put back there: names the run that did it. Where it
first came from stands in the headers of its origin."""
LEFT_OUT = "x-saga-left-out"
"""Which headers were left out of a copy, because there was no room for them, and their sizes."""
OURS: Final = frozenset(
    {
        REASON, ERROR_TYPE, ERROR, ATTEMPTS, FINGERPRINT, SERVICE_VERSION, FIRST_FAILED_AT,
        LAST_FAILED_AT, REPLAYS, ORIGIN_QUEUE, ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY, KEPT, LEFT_OUT,
        RESTORED,
    }
)  # fmt: skip
_OURS: Final = frozenset(name.encode() for name in OURS)

ADDRESSEE = "addressee"
"""The CloudEvents attribute that names the one participant a corrected copy is for."""


class Reason(StrEnum):
    """Why a message is dead."""

    UNDECODABLE = "undecodable"
    FAILED = "failed"
    CONFLICTING = "conflicting"
    """Another message was done under its source and id."""


BROKERS: Final = (b"x-death", b"x-first-death-", b"x-last-death-", b"x-delivery-count")
"""What the names of the broker's own notes begin with. Published again, RabbitMQ 3 would go on
counting from them."""
_WAIT_QUEUES: Final = frozenset(map(wait_queue, RUNGS_MS))
_ROUTING: Final = (b"CC", b"BCC")
"""Headers that send a copy elsewhere, without a check of permissions there."""
_BINDING: Final = ("expiration", "user_id")
"""Properties that make the broker drop a copy, or refuse it."""
LEFT_OUT_MAX_BYTES: Final = 4 * ERROR_MAX_CHARACTERS + 100
"""What naming the headers that were left out takes at most."""

_VARIABLE = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|0x[0-9a-f]+|\d+", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Failure:
    """What became of one try of a message from `queue`."""

    reason: Reason
    error: Exception
    queue: str
    at: datetime


BY_BODY: Final = "sha256:"
"""How the key of a message begins that has no id."""


def key_of(message_id: str | None, body: bytes) -> str:
    """What a message is recognised by: its AMQP message id, or, having none, its body."""
    return message_id or f"{BY_BODY}{hashlib.sha256(body).hexdigest()}"


def fingerprint(reason: Reason, error: Exception) -> str:
    """The same for failures that are alike but for ids and numbers: 12 hexadecimal digits."""
    alike = _VARIABLE.sub("*", f"{reason}/{type(error).__name__}/{error}")
    return hashlib.sha256(alike.encode(errors="backslashreplace")).hexdigest()[:12]


def is_believed(delivery: Delivery, queue: str | None = None) -> bool:
    """Whether headers of ours on a message are ours: whether only we can have sent it that way.

    A work queue gets by the default exchange, under its own name, what has waited, what was
    replayed, and what an operator sent; events come by their own exchange, from the users that
    may publish them. A copy among those that wait or are dead is its service's own, unless the
    broker has moved it there. From a wait queue the broker moves to work queues only: a note of
    that was on what its service has copied, with all its headers.
    """
    if not delivery.exchange:
        return queue in (None, delivery.routing_key)
    if delivery.exchange == EVENTS_EXCHANGE:
        return False
    deaths = delivery.headers.get("x-death")
    if deaths is None:
        return True
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    return isinstance(last, dict) and (
        last.get("exchange") == "" or last.get("queue") in _WAIT_QUEUES
    )


def ours_in(delivery: Delivery, queue: str | None = None) -> Mapping[str, Any]:
    """The headers of ours that a message carries, where they are ours. `queue` is the work queue
    that it came from, if it came from one."""
    if not frames.has_headers(delivery.raw) or not is_believed(delivery, queue):
        return {}
    return {name: value for name, value in delivery.headers.items() if name in OURS}


def attempts_in(ours: Mapping[str, Any]) -> int:
    """How often a message has failed before; what is no such number counts as never."""
    attempts = ours.get(ATTEMPTS, 0)
    return attempts if type(attempts) is int and 0 <= attempts < ATTEMPT_MAX else 0


def time_in(ours: Mapping[str, Any], name: str) -> datetime | None:
    """The time in a header of ours; None if there is none within the limits."""
    value = ours.get(name)
    return moment_of(value) if isinstance(value, str) else None


def set_aside(
    delivery: Delivery, failure: Failure, *, frame_max: int = frames.FRAME_MAX_BYTES
) -> bytes:
    """The property list of the copy to publish: what the message carried, byte for byte, and
    headers of ours that say what happened, all times ISO 8601 in UTC.

    What would have the copy dropped, refused or sent elsewhere it carries along in `KEPT`: the
    properties `expiration` and `user_id`, the headers `CC` and `BCC`, and headers with names of the
    broker's notes or of ours that neither has written. Where not all of it fits into a frame,
    foreign headers are left out, the largest first, and `LEFT_OUT` names them. Where the message
    first came from is kept over retries.
    """
    said = ours_in(delivery, failure.queue)
    returned = ATTEMPTS in said
    at = failure.at.astimezone(UTC).isoformat()
    ours: dict[str, str | int | bytes] = {
        ORIGIN_EXCHANGE: delivery.exchange,
        ORIGIN_ROUTING_KEY: delivery.routing_key,
    }
    for name, value in said.items():
        # What is longer is none of ours, and there has to be room for the others.
        if isinstance(value, str) or (isinstance(value, bytes) and name != KEPT):
            ours[name] = value[:ERROR_MAX_CHARACTERS]
        elif isinstance(value, int | bytes):
            ours[name] = value
    ours |= {
        FIRST_FAILED_AT: (time_in(said, FIRST_FAILED_AT) or failure.at.astimezone(UTC)).isoformat(),
        REASON: str(failure.reason),
        ERROR_TYPE: type(failure.error).__name__,
        ERROR: str(failure.error)[:ERROR_MAX_CHARACTERS],
        FINGERPRINT: fingerprint(failure.reason, failure.error),
        ATTEMPTS: attempts_in(said) + 1,
        LAST_FAILED_AT: at,
        ORIGIN_QUEUE: failure.queue,
        SERVICE_VERSION: engine_version(),
    }
    values, _ = frames.split(delivery.raw)
    fields, rest = frames.fields_in(values.pop("headers", b""))
    foreign: list[Field] = []
    moved: list[Field] = []
    for field in fields:
        if field.name.startswith(BROKERS):
            if not returned:
                moved.append(field)
        elif field.name in _ROUTING or (field.name in _OURS and not said):
            moved.append(field)
        elif field.name not in _OURS:
            foreign.append(field)
    kept = _keep(ours.pop(KEPT, None), values, moved, rest)
    if kept is not None:
        ours[KEPT] = kept
    return _fitted(values, foreign, ours, frame_max)


def replayed(raw: bytes, replays: int) -> bytes:
    """The property list of a dead letter that is sent again: what the message carried, byte for
    byte, and nothing of its failures but how often it was sent again, and what was left out."""
    values, _ = frames.split(raw)
    fields, rest = frames.fields_in(values.pop("headers", b""))
    mine = (KEPT.encode(), LEFT_OUT.encode())
    notes = {f.name: frames.value_of(f) for f in reversed(fields) if f.name in mine}
    before, left_out = notes.get(KEPT.encode()), notes.get(LEFT_OUT.encode())
    moved = [field for field in fields if field.name in _ROUTING]
    foreign = [
        field
        for field in fields
        if not (field.name in _OURS or field.name in _ROUTING or field.name.startswith(BROKERS))
    ]
    ours: dict[str, str | int | bytes] = {REPLAYS: replays}
    if isinstance(left_out, str):
        ours[LEFT_OUT] = left_out[:ERROR_MAX_CHARACTERS]
    if (kept := _keep(before, values, moved, rest)) is not None:
        ours[KEPT] = kept
    return _fitted(values, foreign, ours, frames.FRAME_MAX_BYTES)


def _keep(
    before: str | int | bytes | None, values: dict[str, bytes], moved: list[Field], rest: bytes
) -> bytes | None:
    """What a copy is to carry in `KEPT`, what it carried there before included."""
    kept, _ = frames.split(before if isinstance(before, bytes) else frames.NO_PROPERTIES)
    kept |= {name: values.pop(name) for name in _BINDING if name in values}
    if moved or rest:
        earlier, left = frames.fields_in(kept.get("headers", b""))
        kept["headers"] = frames.table_of([*earlier, *moved], left + rest)
    return frames.join(kept) if kept else None


def _fitted(
    values: dict[str, bytes],
    foreign: Sequence[Field],
    ours: Mapping[str, str | int | bytes],
    frame_max: int,
) -> bytes:
    """The property list, with as many of the foreign headers as there is room for."""
    own = [frames.field(name, value) for name, value in ours.items()]
    room = frames.properties_max_bytes(frame_max) - len(
        frames.join({**values, "headers": frames.table_of(own)})
    )
    if sum(map(_size, foreign)) <= room:
        return frames.join({**values, "headers": frames.table_of([*foreign, *own])})
    candidates = [*foreign, *(field for field in own if field.name == KEPT.encode())]
    left_out: set[int] = set()
    room -= LEFT_OUT_MAX_BYTES + sum(map(_size, foreign))
    for field in sorted(candidates, key=_size, reverse=True):
        if room >= 0:
            break
        left_out.add(id(field))
        room += _size(field)
    names = [
        f"{field.name.decode(errors='backslashreplace')} ({len(field.value)} bytes)"
        for field in candidates
        if id(field) in left_out
    ]
    named = frames.field(
        LEFT_OUT,
        "; ".join([str(ours.get(LEFT_OUT, "")), *names]).lstrip("; ")[:ERROR_MAX_CHARACTERS],
    )
    own = [field for field in own if field.name != named.name]
    stays = [field for field in (*foreign, *own) if id(field) not in left_out]
    return frames.join({**values, "headers": frames.table_of([*stays, named])})


def _size(field: Field) -> int:
    return 1 + len(field.name) + len(field.value)
