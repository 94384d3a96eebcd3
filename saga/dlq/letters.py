"""A dead letter: what the queue held, what is kept of it, and the message that goes out again."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from pydantic_core import from_json

from saga.dlq.states import LetterState
from saga.envelope import MessageKey
from saga.limits import ATTEMPT_MAX, TEXT_MAX_BYTES, moment_of
from saga.message import Priority
from saga.runtime.messaging import dead_letters as headers_of
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import (
    attempts_in,
    key_of,
    ours_in,
    time_in,
)
from saga.runtime.messaging.frames import Delivery, Field, Posting
from saga.runtime.messaging.topology import work_queue

REPLAYS: Final = headers_of.REPLAYS

TEXT_MAX_CHARACTERS: Final = 255
"""Of most texts that are kept of a letter; of what is longer, the beginning is shown."""
LABEL_MAX_CHARACTERS: Final = 64
_BYTES, _TIME, _NUMBER = "$bytes", "$time", "$number"
"""What JSON has not is an object with one of these for its only member. A header that looks like it
gets another `$`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadMessage:
    """What is known of a message that died at a participant.

    `key` names the message wherever it is. `raw` is its property list, as it came.
    """

    participant: str
    key: str
    event_id: str | None
    type: str
    subject: str | None
    queue: str
    reason: str
    error_type: str
    error: str
    fingerprint: str
    attempts: int
    replays: int
    first_failed_at: datetime
    last_failed_at: datetime
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]
    raw: bytes
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(DeadMessage):
    """One message taken from a dead-letter queue.

    `died` tells the copies of one message apart: it is the dead-letter time as the message carries
    it, empty if it carries none. Where that is the same, `digest` does: it is of what the message
    carries, without the broker's notes.
    """

    died: str

    @property
    def digest(self) -> str:
        return digest_of(self.raw, self.body)

    @property
    def named_by_event(self) -> bool:
        """Whether `key` is the id in the envelope, which is one event's only."""
        return self.key == self.event_id


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter(DeadMessage):
    """One message that died at one participant, however many copies of it there are.

    `replays` counts how often it was sent again. Body, headers and properties are those of the
    newest copy, and are read only where they are needed.
    """

    number: int
    state: LetterState
    copies: int
    note: str

    @property
    def message_id(self) -> str:
        """The id of the message, or what it is recognised by without one."""
        return self.event_id or self.key


def document_of(body: bytes) -> dict[str, Any] | None:
    """The JSON object in a body, if it is one."""
    try:
        document = from_json(body)
    except ValueError:
        return None
    return document if isinstance(document, dict) else None


def message_key_of(body: bytes) -> MessageKey | None:
    """The source and the id in the envelope, if there are both."""
    document = document_of(body) or {}
    source, id = _attribute(document, "source"), _attribute(document, "id")
    return MessageKey(source, id) if source and id else None


def event_id_of(body: bytes) -> str | None:
    """The id in the envelope, if there is any that a participant would take."""
    return _attribute(document_of(body) or {}, "id")


def digest_of(raw: bytes, body: bytes) -> str:
    """The same for the same message, however often the broker has delivered it: 16 hexadecimal
    digits."""
    values, _ = frames.split(raw)
    fields, rest = frames.fields_in(values.pop("headers", b""))
    carried = sorted(f for f in fields if not f.name.startswith(headers_of.BROKERS))
    content = frames.join({**values, "headers": frames.table_of(carried, rest)}) + body
    return hashlib.sha256(content).hexdigest()[:16]


def copy_of(message: Delivery, participant: str, now: datetime) -> Copy:
    """What a message from the participant's dead-letter queue is.

    One that the broker itself has set aside carries the broker's notes only; one without a note
    is taken to have died `now`.
    """
    properties, body = message.properties, message.body
    headers = dict(message.headers)
    ours = ours_in(message)
    death = _first(headers.get("x-death"))
    reason = _text(ours.get(headers_of.REASON)) or _text(death.get("reason")) or "unknown"
    reason = reason[:LABEL_MAX_CHARACTERS]
    last = time_in(ours, headers_of.LAST_FAILED_AT) or _moment(death.get("time"))
    died = "" if last is None else last.isoformat()
    last = last or now
    document = document_of(body) or {}
    event_id = event_id_of(body)
    key = key_of(properties.message_id, body)
    if reason == headers_of.Reason.CONFLICTING:
        key = key_of(None, body)  # The message that it conflicts with has its id.
    elif reason != headers_of.Reason.UNDECODABLE:
        key = event_id or key
    queue = _text(ours.get(headers_of.ORIGIN_QUEUE)) or _text(death.get("queue"))
    return Copy(
        participant=participant,
        key=key,
        died=died,
        event_id=event_id,
        type=_attribute(document, "type")
        or _text(properties.type)
        or _text(ours.get(headers_of.ORIGIN_ROUTING_KEY)).rpartition(".")[0]
        or "unknown",
        subject=_attribute(document, "subject") or _text(properties.correlation_id) or None,
        queue=queue or work_queue(participant, _priority(document, ours)),
        reason=reason,
        error_type=_text(ours.get(headers_of.ERROR_TYPE)),
        error=_text(ours.get(headers_of.ERROR), headers_of.ERROR_MAX_CHARACTERS),
        fingerprint=(_text(ours.get(headers_of.FINGERPRINT)) or f"broker:{reason}")[
            :LABEL_MAX_CHARACTERS
        ],
        attempts=attempts_in(ours),
        replays=replays_in(ours),
        first_failed_at=time_in(ours, headers_of.FIRST_FAILED_AT) or last,
        last_failed_at=last,
        properties={
            "message_id": properties.message_id,
            "correlation_id": properties.correlation_id,
            "type": properties.type,
            "app_id": properties.app_id,
            "content_type": properties.content_type,
            "content_encoding": properties.content_encoding,
            "timestamp": properties.timestamp,
            "priority": properties.priority,
        },
        headers=headers,
        raw=message.raw,
        body=body,
    )


def posting_of(letter: DeadLetter | Copy, replays: int) -> Posting:
    """The message as it was first, to be sent again to the queue it came from: nothing is left of
    its failures but how often it was replayed, so its attempts begin again."""
    again = headers_of.replayed(letter.raw, min(replays, ATTEMPT_MAX))
    return Posting(letter.queue, again, letter.body)


def raw_of(properties: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
    """The property list of a letter that was kept without it."""
    values = {
        name: frames.short(value, cut=True)
        for name, value in properties.items()
        if isinstance(value, str)
    }
    if isinstance(moment := properties.get("timestamp"), datetime):
        values["timestamp"] = int(moment.timestamp()).to_bytes(8)
    if isinstance(priority := properties.get("priority"), int):
        values["priority"] = priority.to_bytes(1)
    values["delivery_mode"] = b"\x02"
    values["headers"] = _packed(dict(headers))[1:]
    return frames.join(values)


def way_before_death(headers: Mapping[str, Any]) -> tuple[Any, Any]:
    """The exchange and the routing key by which a message had come that the broker itself has set
    aside; None and None for any other."""
    death = _first(headers.get("x-death"))
    keys = death.get("routing-keys")
    return death.get("exchange"), keys[0] if isinstance(keys, list) and keys else None


def to_json(value: Mapping[str, Any]) -> str:
    """Headers or properties as text; what AMQP has and JSON has not is marked."""
    return json.dumps({name: _marked(each) for name, each in value.items()}, allow_nan=False)


def from_text(text: str) -> dict[str, Any]:
    """What `to_json` made text of."""
    found: dict[str, Any] = json.loads(text)
    return {name: _unmarked(each) for name, each in found.items()}


def printable_body(body: bytes) -> dict[str, Any]:
    """A body for a JSON document: as JSON if it is that, as text if it is that, else in Base64.

    NaN and infinity, which some take for JSON and others do not, make it a text.
    """
    document = document_of(body)
    if document is not None:
        try:
            json.dumps(document, allow_nan=False)
        except ValueError:
            pass
        else:
            return {"payload": document}
    try:
        return {"payload_text": body.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(body).decode()}


def brief(letter: DeadLetter) -> dict[str, Any]:
    """A letter for a JSON document, without what is in it."""
    return {
        "letter": letter.number,
        "state": str(letter.state),
        "service": letter.participant,
        "queue": letter.queue,
        "message_id": letter.key,
        "type": letter.type,
        "subject": letter.subject,
        "reason": letter.reason,
        "error_type": letter.error_type,
        "error": letter.error,
        "fingerprint": letter.fingerprint,
        "attempts": letter.attempts,
        "replays": letter.replays,
        "copies": letter.copies,
        "first_failed_at": letter.first_failed_at.isoformat(),
        "last_failed_at": letter.last_failed_at.isoformat(),
        "note": letter.note,
    }


def full(letter: DeadLetter) -> dict[str, Any]:
    """A letter for a JSON document, with everything that is known of it."""
    document = document_of(letter.body) or {}
    traceparent = document.get("traceparent")
    trace = traceparent.split("-") if isinstance(traceparent, str) else []
    return brief(letter) | {
        "correlation_id": letter.properties.get("correlation_id"),
        "causation_id": document.get("causationid"),
        "trace_id": trace[1] if len(trace) == 4 else None,
        "properties": json.loads(to_json(letter.properties)),
        "headers": json.loads(to_json(letter.headers)),
        **printable_body(letter.body),
    }


def _marked(value: Any) -> Any:
    if isinstance(value, dict):
        names = {f"${name}" if _is_mark(value, name) else name: name for name in value}
        return {as_: _marked(value[name]) for as_, name in names.items()}
    if isinstance(value, list):
        return [_marked(each) for each in value]
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    if isinstance(value, float) and not math.isfinite(value):
        return {_NUMBER: str(value)}
    if value is None or isinstance(value, str | int | float):
        return value
    return str(value)  # A decimal, which no client of ours sends.


def _unmarked(value: Any) -> Any:
    if isinstance(value, list):
        return [_unmarked(each) for each in value]
    if not isinstance(value, dict):
        return value
    for mark, read in _READ.items():
        if value.keys() == {mark} and isinstance(text := value[mark], str):
            try:
                return read(text)
            except (ValueError, binascii.Error):  # Kept before such headers were told apart.
                return value
    names = {name[1:] if _is_mark(value, name[1:]) else name: name for name in value}
    return {as_: _unmarked(value[name]) for as_, name in names.items()}


_READ: Final[Mapping[str, Callable[[str], Any]]] = {
    _BYTES: partial(base64.b64decode, validate=True),
    _TIME: datetime.fromisoformat,
    _NUMBER: float,
}


def _is_mark(table: Mapping[str, Any], name: str) -> bool:
    """Whether a table might be taken for one of the marks, by its only member's name."""
    return len(table) == 1 and name.lstrip("$") in ("bytes", "time", "number") and name[:1] == "$"


def _packed(value: Any) -> bytes:
    """A header's value, with the type's tag before it."""
    match value:
        case None:
            return b"V"
        case bool():
            return b"t" + bytes((value,))
        case int() if -(2**63) <= value < 2**63:
            return b"l" + value.to_bytes(8, signed=True)
        case float():
            return b"d" + struct.pack(">d", value)
        case bytes() | bytearray():
            return b"x" + len(value).to_bytes(4) + value
        case datetime():
            return b"T" + int(value.timestamp()).to_bytes(8, signed=True)
        case list():
            inside = b"".join(map(_packed, value))
            return b"A" + len(inside).to_bytes(4) + inside
        case dict():
            fields = [Field(frames.short(n, cut=True)[1:], _packed(v)) for n, v in value.items()]
            return b"F" + frames.table_of(fields)
        case _:
            text = str(value).encode(errors="backslashreplace")
            return b"S" + len(text).to_bytes(4) + text


def _first(deaths: Any) -> dict[str, Any]:
    """The broker's newest note on a dead-lettering."""
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    return death if isinstance(death, dict) else {}


def _text(value: Any, most: int = TEXT_MAX_CHARACTERS) -> str:
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return value[:most] if isinstance(value, str) else ""


def _attribute(document: Mapping[str, Any], name: str) -> str | None:
    """A text in an envelope, unless it is longer than any that is taken."""
    value = document.get(name)
    if isinstance(value, str) and 0 < len(value) <= TEXT_MAX_BYTES:
        return value
    return None


def replays_in(ours: Mapping[str, Any]) -> int:
    """How often the operator's store has sent a message again, as it says itself."""
    replays = ours.get(REPLAYS, 0)
    return replays if type(replays) is int and 0 <= replays <= ATTEMPT_MAX else 0


def _moment(value: Any) -> datetime | None:
    """A time that the broker has noted; none of a year in which there was no broker."""
    return moment_of(value.isoformat()) if isinstance(value, datetime) else None


def _priority(document: Mapping[str, Any], ours: Mapping[str, Any]) -> Priority:
    key = _text(ours.get(headers_of.ORIGIN_ROUTING_KEY))
    said = document.get("priority")
    high = said == Priority.HIGH or key.endswith(f".{Priority.HIGH}")
    return Priority.HIGH if high else Priority.NORMAL
