"""A dead letter: what the queue held, what is kept of it, and the message that goes out again."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from pamqp import encode
from pydantic_core import from_json

from common.envelope import MessageKey
from common.limits import ATTEMPT_MAX, TEXT_MAX_BYTES, moment_of
from common.message import Priority
from common.messaging import dead_letters as headers_of
from common.messaging import frames
from common.messaging.dead_letters import attempts_in, key_of, ours_in, time_in
from common.messaging.frames import Delivery, Posting
from common.messaging.topology import work_queue

REPLAYS: Final = headers_of.REPLAYS

_BYTES, _TIME = "$bytes", "$time"


class State(StrEnum):
    """Where a letter stands. `sent` is out and not yet heard of; `done` is known to be done."""

    DEAD = "dead"
    SENDING = "sending"
    SENT = "sent"
    DONE = "done"
    DISCARDED = "discarded"
    REPLACED = "replaced"


HERE: Final = (State.DEAD, State.SENDING)
"""The states of letters whose message is nowhere else."""
SETTLED: Final = (State.DISCARDED, State.REPLACED)
"""The states of letters that a person has settled."""


@dataclass(frozen=True, slots=True)
class Copy:
    """One message taken from a dead-letter queue.

    `key` names the message wherever it is. `died` tells the copies of one message apart: it is the
    dead-letter time as the message carries it, empty if it carries none.
    """

    participant: str
    key: str
    died: str
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
    properties: dict[str, Any]
    headers: dict[str, Any]
    raw: bytes
    body: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """One message that died at one participant, however many copies of it there are.

    `replays` counts how often it was sent again. Body, headers and properties are those of the
    newest copy, and are read only where they are needed; `raw` is its property list, as it came.
    """

    number: int
    participant: str
    key: str
    state: State
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
    copies: int
    first_failed_at: datetime
    last_failed_at: datetime
    note: str
    properties: Mapping[str, Any]
    headers: Mapping[str, Any]
    raw: bytes
    body: bytes

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
    """The id in the envelope, if there is any."""
    return _attribute(document_of(body) or {}, "id")


def copy_of(message: Delivery, participant: str, now: datetime) -> Copy:
    """What a message from the participant's dead-letter queue is.

    One that the broker itself has set aside carries the broker's notes only; what nobody noted is
    taken to have died `now`.
    """
    properties, body = message.properties, message.body
    headers = dict(message.headers)
    ours = ours_in(message)
    death = _first(headers.get("x-death"))
    reason = _text(ours.get(headers_of.REASON)) or _text(death.get("reason")) or "unknown"
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
        error=_text(ours.get(headers_of.ERROR)),
        fingerprint=_text(ours.get(headers_of.FINGERPRINT)) or f"broker:{reason}",
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


def posting_of(letter: Letter | Copy, replays: int) -> Posting:
    """The message as it was first, to be sent again to the queue it came from: nothing is left of
    its failures but how often it was replayed, so its attempts begin anew."""
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
    values["headers"] = encode.field_table(dict(headers))
    return frames.join(values)


def way_before_death(headers: Mapping[str, Any]) -> tuple[Any, Any]:
    """The exchange and the routing key by which a message had come that the broker itself has set
    aside; None and None for any other."""
    death = _first(headers.get("x-death"))
    keys = death.get("routing-keys")
    return death.get("exchange"), keys[0] if isinstance(keys, list) and keys else None


def to_json(value: Mapping[str, Any]) -> str:
    """Headers or properties as text; what AMQP has and JSON has not is marked."""
    return json.dumps(value, default=_marked)


def from_text(text: str) -> dict[str, Any]:
    """What `to_json` made text of."""
    found: dict[str, Any] = json.loads(text, object_hook=_unmarked)
    return found


def printable_body(body: bytes) -> dict[str, Any]:
    """A body for a JSON document: as JSON if it is that, as text if it is that, else in Base64."""
    document = document_of(body)
    if document is not None:
        return {"payload": document}
    try:
        return {"payload_text": body.decode()}
    except UnicodeDecodeError:
        return {"payload_base64": base64.b64encode(body).decode()}


def _marked(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return {_BYTES: base64.b64encode(value).decode()}
    if isinstance(value, datetime):
        return {_TIME: value.isoformat()}
    return str(value)  # A decimal, which no client of ours sends.


def _unmarked(found: dict[str, Any]) -> Any:
    if found.keys() == {_BYTES}:
        return bytearray(base64.b64decode(found[_BYTES]))  # What pamqp sends as bytes.
    if found.keys() == {_TIME}:
        return datetime.fromisoformat(found[_TIME])
    return found


def _first(deaths: Any) -> dict[str, Any]:
    """The broker's newest note on a dead-lettering."""
    death = deaths[0] if isinstance(deaths, list) and deaths else None
    return death if isinstance(death, dict) else {}


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value if isinstance(value, str) else ""


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
    return moment_of(value.isoformat()) if isinstance(value, datetime) else None


def _priority(document: Mapping[str, Any], ours: Mapping[str, Any]) -> Priority:
    key = _text(ours.get(headers_of.ORIGIN_ROUTING_KEY))
    said = document.get("priority")
    high = said == Priority.HIGH or key.endswith(f".{Priority.HIGH}")
    return Priority.HIGH if high else Priority.NORMAL
