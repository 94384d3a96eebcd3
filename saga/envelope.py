"""CloudEvents 1.0 in JSON structured mode: the one envelope around every event and command.

https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import blake2b, sha1, sha256
from typing import Annotated, Any, Final, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainSerializer,
    SerializeAsAny,
    ValidationError,
)

from saga.limits import BODY_MAX_BYTES, Attempt, Moment, SequenceNumber, Text, json_of
from saga.message import Command, Event, Message, Priority, check_distinct, versions_of
from saga.text import plain

CONTENT_TYPE = "application/cloudevents+json"

_ID_NAMESPACE = UUID("6ba7b812-9dad-11d1-80b4-00c04fd430c8")
_TRACEPARENT = re.compile(r"00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")

M = TypeVar("M", bound=Message, covariant=True)


def rfc3339(moment: datetime) -> str:
    """A time as it is written on the wire: UTC, to the microsecond."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def w3c_trace(value: Any) -> str | None:
    """A `traceparent` if it is one; W3C Trace Context says to go on without it otherwise."""
    return value if isinstance(value, str) and _TRACEPARENT.fullmatch(value) else None


class MessageKey(NamedTuple):
    """What tells a message from all others. By CloudEvents, an id is unique within its source."""

    source: str
    id: str


class Undecodable(ValueError):
    """A body that is not a message this reader knows. `reason` is a short, bounded label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


_Time = Annotated[Moment, PlainSerializer(rfc3339, when_used="json")]


class Attributes(BaseModel):
    """What an envelope says of its message; see `Envelope`."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    specversion: Literal["1.0"] = "1.0"
    id: Text
    source: Text
    type: Text
    subject: Text
    time: _Time
    datacontenttype: Literal["application/json"] = "application/json"
    dataschema: Text
    correlationid: Text
    causationid: Text | None = None
    priority: Priority = Priority.NORMAL
    sequence: SequenceNumber | None = None
    traceparent: Annotated[str | None, BeforeValidator(w3c_trace)] = None
    takenat: _Time | None = None
    attempt: Attempt | None = None

    @property
    def key(self) -> MessageKey:
        """What tells the message from all others."""
        return MessageKey(self.source, self.id)

    @property
    def routing_key(self) -> str:
        """`<type>.<priority>`."""
        return f"{self.type}.{self.priority}"

    @classmethod
    def of(cls, body: bytes) -> Attributes:
        """The attributes in a body, whatever its data are. Raises `Undecodable`."""
        _document_in(body)
        try:
            return Attributes.model_validate_json(body)
        except ValidationError as error:
            raise Undecodable("malformed", _explain(error)) from error


class Envelope(Attributes, Generic[M]):
    """One message with its identity, its cause and its place in its sender's sequence.

    `sequence` numbers what one participant has published about one subject, from 1; a command from
    outside has none. `traceparent` is W3C Trace Context: where in the subject's one trace it was
    made. `takenat` is when the participant had the causing message in its hands, so from there to
    `time` is its own work; `attempt` says which try of that message it was, where it was not the
    first.
    """

    data: SerializeAsAny[M]  # An upcast payload is of another class than the model's.

    def to_bytes(self) -> bytes:
        """The JSON document that travels."""
        return self.model_dump_json(exclude_none=True).encode()


_AnyEnvelope = Envelope[Any]  # Kept: pydantic makes it again otherwise.


def schema_uri(message: type[Event | Command]) -> str:
    """The `dataschema` of a message type: names type and version."""
    return f"urn:order-saga:{message.type}:{message.version}"


def derived_id(cause: str, step: str) -> str:
    """The id of what `step` publishes because of `cause`: the same each time it is done again."""
    # What `uuid.uuid5` gives (RFC 9562, section 5.5), in a third of the time.
    digest = sha1(_ID_NAMESPACE.bytes + f"{cause}/{step}".encode(), usedforsecurity=False).digest()
    id = bytearray(digest[:16])
    id[6] = id[6] & 0x0F | 0x50
    id[8] = id[8] & 0x3F | 0x80
    text = id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def digest_of(envelope: Envelope[Any], body: bytes) -> bytes:
    """16 bytes that are equal for repetitions of a message, and for nothing else with its key.

    An event is repeated byte for byte: its publisher, a retry and a replay each send the body that
    there is. A command's sender may wrap it again, at another time, so what counts is its content,
    without what has its default: a field that a later version adds makes no other command of it.
    """
    if isinstance(envelope.data, Command):
        body = f"{envelope.type} {envelope.data.model_dump_json(exclude_defaults=True)}".encode()
    return blake2b(body, digest_size=16).digest()


def source_of(participant: str) -> str:
    """The CloudEvents `source` of a participant."""
    return f"/services/{participant}"


def believed_of(message: type[Event | Command]) -> frozenset[str] | None:
    """The sources whose messages of this type, coming by the events' exchange, are what they say;
    None where any is. A command that no participant sends has none."""
    if issubclass(message, Command):
        return frozenset(map(source_of, message.senders))
    return None if message.publisher is None else frozenset({source_of(message.publisher)})


def is_recorded(envelope: Envelope[Any]) -> bool:
    """Whether it came about within the saga, as an event or as a command from a participant, so
    that the history has it; a command from outside did not."""
    data = envelope.data
    return isinstance(data, Event) or envelope.source in map(source_of, data.senders)


def trace_id_of(subject: str) -> str:
    """The id of the one trace of a saga, in hexadecimal digits. All of them look random, which
    sampling by trace id relies on."""
    return sha256(f"trace/{subject}".encode()).hexdigest()[:32]


def trace_of(subject: str, span: str) -> str:
    """A `traceparent` where no spans are recorded: within the trace of the subject."""
    parent = sha256(f"span/{span}".encode()).hexdigest()[:16]
    return f"00-{trace_id_of(subject)}-{parent}-01"


def wrap(
    message: Event | Command,
    *,
    id: str,
    source: str,
    time: datetime,
    priority: Priority,
    causation: str | None = None,
    sequence: int | None = None,
    traceparent: str | None = None,
    taken_at: datetime | None = None,
    attempt: int = 1,
    subject: str | None = None,
) -> Envelope[Any]:
    """An envelope for `message`. The saga's correlation id is its subject's, which need not be
    worked out again where it is given."""
    subject = subject or message.subject
    return _made(
        id=id,
        source=source,
        type=message.type,
        subject=subject,
        time=time,
        dataschema=schema_uri(type(message)),
        correlationid=subject,
        causationid=causation,
        priority=priority,
        sequence=sequence,
        traceparent=traceparent or trace_of(subject, id),
        takenat=taken_at,
        attempt=attempt if attempt > 1 else None,
        data=message,
    )


_IN_ORDER: Final = {
    name: None if field.is_required() else field.default
    for name, field in _AnyEnvelope.model_fields.items()
}
"""Of the fields, those that have a default. They are written in this order."""


def _made(**values: Any) -> Envelope[Any]:
    """What `model_construct` makes of these values, in a tenth of the time: every field that has
    no default is among them."""
    envelope = _AnyEnvelope.__new__(_AnyEnvelope)
    for slot, value in (
        ("__dict__", {**_IN_ORDER, **values}),
        ("__pydantic_fields_set__", set(_IN_ORDER)),
        ("__pydantic_extra__", None),
        ("__pydantic_private__", None),
    ):
        object.__setattr__(envelope, slot, value)
    return envelope


@cache
def _model_of(message: type[Event | Command]) -> type[Envelope[Any]]:
    """Pydantic takes milliseconds to make one, and keeps none that is not in use."""
    return Envelope[message]  # type: ignore[valid-type]  # built at run time


class Decoder:
    """Reads bodies of the given message types, in any version ever published of them."""

    def __init__(self, types: Iterable[type[Event | Command]]) -> None:
        """Raises `AmbiguousMessage` if two classes claim the same type and version."""
        asked = tuple(dict.fromkeys(types))
        self._models = _models_of(asked)
        self._types = {message.type for message in asked}

    def decode(self, body: bytes) -> Envelope[Any]:
        """The message in `body`, upcast to its newest version.

        Raises `Undecodable`, which says what is wrong with it.
        """
        document = _document_in(body)
        if document.get("specversion") != "1.0":
            raise Undecodable("malformed", "the body is not a CloudEvents 1.0 document")
        type_, schema = document.get("type"), document.get("dataschema")
        if not isinstance(type_, str) or type_ not in self._types:
            raise Undecodable(
                "unknown_type", f"no reaction here takes messages of type {type_!r:.200}"
            )
        model = self._models.get((type_, schema)) if isinstance(schema, str) else None
        if model is None:
            raise Undecodable(
                "unknown_version",
                f"dataschema {schema!r:.200} is no known version of {type_}; upgrade this service, "
                f"then replay the message",
            )
        try:
            envelope = model.model_validate_json(body)
        except ValidationError as error:
            raise Undecodable("invalid", _explain(error)) from error
        if envelope.subject != envelope.data.subject:
            raise Undecodable(
                "invalid",
                f"subject {envelope.subject!r} does not match the data's {envelope.data.subject!r}",
            )
        if isinstance(envelope.data, Command):
            _check_plain(envelope)
        return _newest(envelope)


@lru_cache(maxsize=256)
def _models_of(
    asked: tuple[type[Event | Command], ...],
) -> Mapping[tuple[str, str], type[Envelope[Any]]]:
    """Keyed by type and `dataschema`. Raises `AmbiguousMessage`."""
    check_distinct(asked)
    # Of what was asked for comes last what has the last word.
    messages = (*_versions_of(asked), *asked)
    return {(message.type, schema_uri(message)): _model_of(message) for message in messages}


def _versions_of(asked: Iterable[type[Event | Command]]) -> Iterator[type[Event | Command]]:
    for message in asked:
        yield from versions_of(message).values()


def _check_plain(envelope: Envelope[Any]) -> None:
    """Refuse a command whose attributes have control or format characters. Events had them once,
    and are what they are."""
    for name in ("id", "source", "correlationid", "causationid"):
        try:
            plain(getattr(envelope, name) or "")
        except ValueError as error:
            raise Undecodable("invalid", f"{name}: {error}") from None


def _document_in(body: bytes) -> dict[str, Any]:
    if len(body) > BODY_MAX_BYTES:
        raise Undecodable(
            "too_large", f"the body has {len(body)} bytes; the limit is {BODY_MAX_BYTES}"
        )
    try:
        document = json_of(body)
    except ValueError as error:
        raise Undecodable("malformed", f"the body is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Undecodable("malformed", "the body is JSON, but not an object")
    return document


def _newest(envelope: Envelope[Any]) -> Envelope[Any]:
    newest = envelope.data.newest()
    if newest is envelope.data:
        return envelope
    return envelope.model_copy(update={"data": newest, "dataschema": schema_uri(type(newest))})


def _explain(error: ValidationError) -> str:
    """Where and why, without the rejected values, which may be long or private."""
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'document'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)[:5]
    )
