"""The frames of AMQP 0-9-1 that every message takes: read and written without a detour.

Pure functions and a parser; no I/O. Properties and headers stay the bytes they are until one
is asked for, and reading them never raises: what cannot be read is named instead. Whatever a broker
delivers can so be copied byte for byte.

https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf, sections 2.3.5 and 4.2
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple, Protocol

FRAME_MAX_BYTES: Final = 131_072
"""What RabbitMQ proposes for a whole frame, unless it is configured otherwise."""
FRAME_OVERHEAD_BYTES: Final = 8
NOTES_MAX_BYTES: Final = 1_048_576
"""How much longer than agreed a frame from the broker may be. RabbitMQ adds its notes to headers
without regard to the limit (3.10 and 4.0, measured: `x-delivery-count` to a list that just fits).
"""
SHORT_MAX_BYTES: Final = 255
"""Of a short string: routing keys, names, most properties."""
DEPTH_MAX: Final = 32
"""How deep tables and arrays are read; what is nested deeper is kept, and shown as bytes."""
UNLIMITED_MAX_BYTES: Final = 536_870_912
"""How long a frame may be where the broker sets no limit: as long as the longest message may be."""
UNREADABLE_MAX: Final = 20
"""How many things that cannot be read are named."""
_WHERE_MAX_CHARACTERS: Final = 200
_ROUTES_MAX: Final = 1_024
"""Pairs of exchange and routing key kept decoded."""

METHOD, HEADER, BODY, HEARTBEAT = 1, 2, 3, 8
_END: Final = 0xCE

_FRAME = struct.Struct(">BHI")
_METHOD = struct.Struct(">I")
_CONTENT = struct.Struct(">IQ")
_TAG = struct.Struct(">QB")
_SHORT = struct.Struct(">H")
_LONG = struct.Struct(">I")
_LONG_LONG = struct.Struct(">Q")
_SETTLE = struct.Struct(">BHIIQBB")
NO_PROPERTIES: Final = b"\x00\x00"


def _method(class_id: int, method_id: int) -> int:
    return class_id << 16 | method_id


TUNE_OK: Final = _method(10, 31)
CONNECTION_OPEN_OK: Final = _method(10, 41)
CONNECTION_CLOSE: Final = _method(10, 50)
CHANNEL_OPEN: Final = _method(20, 10)
CHANNEL_CLOSE: Final = _method(20, 40)
CHANNEL_CLOSE_OK: Final = _method(20, 41)
CONSUME: Final = _method(60, 20)
PUBLISH: Final = _method(60, 40)
RETURN: Final = _method(60, 50)
DELIVER: Final = _method(60, 60)
GET: Final = _method(60, 70)
GET_OK: Final = _method(60, 71)
GET_EMPTY: Final = _method(60, 72)
ACK: Final = _method(60, 80)
NACK: Final = _method(60, 120)

_BASIC_HEADER: Final = _method(60, 0)
"""Class and weight of a content header."""
_MULTIPLE, _REQUEUE = 1, 2

HEARTBEAT_FRAME: Final = _FRAME.pack(HEARTBEAT, 0, 0) + bytes((_END,))


class FrameError(Exception):
    """These bytes are no AMQP frames; nothing after them can be read."""


# --- properties --------------------------------------------------------------------------------

_SHORT_TEXT: Final = "short"
"""A short string; tables have none, and `s` is a number there."""
_PROPERTIES: Final = (
    (1 << 15, "content_type", _SHORT_TEXT),
    (1 << 14, "content_encoding", _SHORT_TEXT),
    (1 << 13, "headers", "F"),
    (1 << 12, "delivery_mode", "B"),
    (1 << 11, "priority", "B"),
    (1 << 10, "correlation_id", _SHORT_TEXT),
    (1 << 9, "reply_to", _SHORT_TEXT),
    (1 << 8, "expiration", _SHORT_TEXT),
    (1 << 7, "message_id", _SHORT_TEXT),
    (1 << 6, "timestamp", "T"),
    (1 << 5, "type", _SHORT_TEXT),
    (1 << 4, "user_id", _SHORT_TEXT),
    (1 << 3, "app_id", _SHORT_TEXT),
    (1 << 2, "cluster_id", _SHORT_TEXT),
)
_KIND_OF: Final = {name: kind for _, name, kind in _PROPERTIES}
_SIZES: Final = {
    "t": 1, "b": 1, "B": 1, "s": 2, "u": 2, "U": 2, "I": 4, "i": 4, "f": 4, "D": 5,
    "l": 8, "L": 8, "d": 8, "T": 8, "V": 0,
}  # fmt: skip
_WITH_LENGTH: Final = "SxFA"
_NUMBERS: Final = {
    "b": ">b", "B": ">B", "s": ">h", "U": ">h", "u": ">H", "I": ">i", "i": ">I",
    "l": ">q", "L": ">q", "f": ">f", "d": ">d",
}  # fmt: skip
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


class Field(NamedTuple):
    """A header as it stands in its table: its name, and its value with the type's tag before it."""

    name: bytes
    value: bytes


@dataclass(frozen=True, slots=True)
class Properties:
    """A message's properties. What is not there, or cannot be read, is None.

    `unreadable` says what could not be read, and why, for people: `UNREADABLE_MAX` things at most.
    Text that is not UTF-8 is given with its odd bytes as `\\xNN`, and named there too. Not so the
    message id, by which messages are told apart: one that is not UTF-8 is None.
    """

    content_type: str | None = None
    content_encoding: str | None = None
    headers: dict[str, Any] | None = None
    delivery_mode: int | None = None
    priority: int | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    expiration: str | None = None
    message_id: str | None = None
    timestamp: datetime | None = None
    type: str | None = None
    user_id: str | None = None
    app_id: str | None = None
    cluster_id: str | None = None
    unreadable: tuple[str, ...] = ()


def split(raw: bytes) -> tuple[dict[str, bytes], str]:
    """The properties in a list by name, each as the bytes of its value; and what is wrong with the
    list, where it ends before its last property does."""
    found: dict[str, bytes] = {}
    if len(raw) < _SHORT.size:
        return found, "the property list is cut off before its flags"
    flags = _SHORT.unpack_from(raw)[0]
    position = _SHORT.size
    for flag, name, kind in _PROPERTIES:
        if not flags & flag:
            continue
        end = _end_of(raw, position, kind)
        if end is None:
            return found, f"the property list is cut off in {name}"
        found[name] = raw[position:end]
        position = end
    return found, ""


def join(values: Mapping[str, bytes]) -> bytes:
    """The property list of these values: what `split` takes apart."""
    flags = 0
    parts = [b""]
    for flag, name, _ in _PROPERTIES:
        if (value := values.get(name)) is not None:
            flags |= flag
            parts.append(value)
    parts[0] = _SHORT.pack(flags)
    return b"".join(parts)


def properties_in(raw: bytes) -> Properties:
    """Read a property list. Never raises."""
    values, problem = split(raw)
    unreadable = [problem] if problem else []
    read: dict[str, Any] = {}
    for name, value in values.items():
        kind = _KIND_OF[name]
        if kind == _SHORT_TEXT:
            read[name] = _text(value[1:], name, unreadable)
        elif kind == "F":
            read[name] = _table(value, name, unreadable, 1)
        else:
            read[name] = _value(kind, value, name, unreadable, 1)
    if unreadable and not _is_utf8(values.get("message_id", b"")[1:]):
        read["message_id"] = None
    return Properties(**read, unreadable=tuple(unreadable))


def has_headers(raw: bytes) -> bool:
    """Whether a property list says that it has headers."""
    return len(raw) >= _SHORT.size and bool(raw[0] & 0x20)


def fields_in(table: bytes) -> tuple[list[Field], bytes]:
    """The fields of a table, and what is left of it from where it cannot be split. `table` is a
    property's value: its length comes first."""
    fields: list[Field] = []
    position, size = _LONG.size, len(table)
    while position < size:
        tag = position + 1 + table[position]
        end = _end_of(table, tag + 1, chr(table[tag])) if tag < size else None
        if end is None:
            return fields, table[position:]
        fields.append(Field(table[position + 1 : tag], table[tag:end]))
        position = end
    return fields, b""


def table_of(fields: Iterable[Field], rest: bytes = b"") -> bytes:
    """The table of these fields, as a property's value: what `fields_in` takes apart."""
    inside = b"".join([bytes((len(name),)) + name + value for name, value in fields]) + rest
    return _LONG.pack(len(inside)) + inside


def field(name: str, value: str | int | bytes) -> Field:
    """A header of ours. Raises ValueError for what does not fit into one."""
    if isinstance(value, bytes):
        packed = b"x" + _LONG.pack(len(value)) + value
    elif isinstance(value, str):
        text = value.encode(errors="backslashreplace")
        packed = b"S" + _LONG.pack(len(text)) + text
    else:
        try:
            packed = b"l" + struct.pack(">q", value)
        except struct.error as error:
            raise ValueError(f"{value} does not fit into the header {name}") from error
    return Field(short(name)[1:], packed)


def first_of(raw: bytes, name: bytes) -> Field | None:
    """The first header of this name in a property list. (RabbitMQ writes its own notes there, and
    leaves others of the same name behind them.)"""
    table = split(raw)[0].get("headers", b"")
    return next((field for field in fields_in(table)[0] if field.name == name), None)


def value_of(field: Field) -> Any:
    """A header's value; None where it cannot be read."""
    return _value(chr(field.value[0]), field.value[1:], "", [], 1)


def short(text: str, *, cut: bool = False) -> bytes:
    """A short string. One of more than `SHORT_MAX_BYTES` is `cut`, or raises ValueError."""
    encoded = text.encode(errors="backslashreplace")
    if len(encoded) > SHORT_MAX_BYTES:
        if not cut:
            raise ValueError(
                f"{text[:40]!r}... has {len(encoded)} bytes; {SHORT_MAX_BYTES} is the most"
            )
        encoded = encoded[:SHORT_MAX_BYTES].decode(errors="ignore").encode()
    return bytes((len(encoded),)) + encoded


def _end_of(data: bytes, position: int, kind: str) -> int | None:
    """Where a value ends; None where it is cut off, or its kind is unknown and so its size."""
    if kind == _SHORT_TEXT:
        end = position + 1 + data[position] if position < len(data) else position + 1
    elif kind in _WITH_LENGTH:
        if position + _LONG.size > len(data):
            return None
        end = position + _LONG.size + _LONG.unpack_from(data, position)[0]
    elif kind in _SIZES:
        end = position + _SIZES[kind]
    else:
        return None
    return end if end <= len(data) else None


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _note(unreadable: list[str], what: str) -> None:
    if len(unreadable) < UNREADABLE_MAX:
        unreadable.append(what)


def _text(value: bytes, where: str, unreadable: list[str]) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        _note(unreadable, f"{where} is not UTF-8")
        return value.decode(errors="backslashreplace")


def _table(table: bytes, where: str, unreadable: list[str], depth: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    fields, rest = fields_in(table)
    for name_bytes, value in fields:
        name = _text(name_bytes, f"a name in {where}", unreadable)
        within = f"{where}: {name}"[:_WHERE_MAX_CHARACTERS]
        found[name] = _value(chr(value[0]), value[1:], within, unreadable, depth)
    if rest:
        beyond = len(table) - _LONG.size - len(rest)
        _note(unreadable, f"{where} cannot be read beyond byte {beyond}")
    return found


def _array(inside: bytes, where: str, unreadable: list[str], depth: int) -> list[Any]:
    found: list[Any] = []
    position, size = 0, len(inside)
    while position < size:
        end = _end_of(inside, position + 1, chr(inside[position]))
        if end is None:
            _note(unreadable, f"{where} cannot be read beyond byte {position}")
            break
        found.append(
            _value(chr(inside[position]), inside[position + 1 : end], where, unreadable, depth)
        )
        position = end
    return found


def _value(kind: str, data: bytes, where: str, unreadable: list[str], depth: int) -> Any:
    """The value of some kind in bytes that are just as long as it takes."""
    if kind == "S":
        return _text(data[4:], where, unreadable)
    if kind == "x":
        return data[4:]
    if kind in "FA":
        if depth > DEPTH_MAX:
            _note(unreadable, f"{where} is nested more than {DEPTH_MAX} deep")
            return data[4:]
        if kind == "F":
            return _table(data, where, unreadable, depth + 1)
        return _array(data[4:], where, unreadable, depth + 1)
    if kind == "t":
        return data != b"\x00"
    if kind == "V":
        return None
    if kind == "T":
        seconds = _LONG_LONG.unpack(data)[0]
        try:
            return _EPOCH + timedelta(seconds=seconds)
        except OverflowError:
            _note(unreadable, f"{where} is no time: {seconds} seconds since 1970")
            return None
    if kind == "D":
        scale, digits = struct.unpack(">Bi", data)
        return Decimal(digits).scaleb(-scale)
    return struct.unpack(_NUMBERS[kind], data)[0] if kind in _NUMBERS else data[0]


# --- what comes in -----------------------------------------------------------------------------


class Delivery:
    """A message as the broker delivered or returned it. `raw` is its property list.

    `exchange` and `routing_key` have odd bytes as `\\xNN`, where they are not UTF-8.
    """

    __slots__ = ("_properties", "body", "exchange", "raw", "redelivered", "routing_key", "tag")

    def __init__(
        self,
        tag: int,
        redelivered: bool,
        exchange: str,
        routing_key: str,
        raw: bytes = NO_PROPERTIES,
        body: bytes = b"",
    ) -> None:
        self.tag = tag
        self.redelivered = redelivered
        self.exchange = exchange
        self.routing_key = routing_key
        self.raw = raw
        self.body = body
        self._properties: Properties | None = None

    def with_body(self, body: bytes) -> Delivery:
        """The same delivery with another body."""
        return Delivery(self.tag, self.redelivered, self.exchange, self.routing_key, self.raw, body)

    @property
    def properties(self) -> Properties:
        """The properties, read when first asked for."""
        if self._properties is None:
            self._properties = properties_in(self.raw)
        return self._properties

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers that can be read."""
        return (self.properties.headers or {}) if has_headers(self.raw) else {}


class Confirms(Protocol):
    """Takes the answers to what was published on a channel."""

    def confirmed(self, tag: int, multiple: bool, ack: bool) -> None: ...

    def returned(self, code: int, text: str, delivery: Delivery) -> None: ...


class Receiver(Protocol):
    """The receiver of what a `Parser` reads, in the order in which it came. Where there is none,
    and for whatever is not hot, `cold` gets the frames as they are."""

    def taker(self, channel: int, consumer_tag: bytes) -> Callable[[Delivery], None] | None:
        """Who takes this consumer's deliveries."""

    def getter(self, channel: int) -> Callable[[Delivery | None], None] | None:
        """Who takes the answers to `basic.get`; None says that the queue was empty."""

    def confirms(self, channel: int) -> Confirms | None: ...

    def cold(self, frame: bytes) -> None: ...


class Parser:
    """Cuts what arrives into frames, and puts the three frames of a message together.

    Belongs to one connection. `feed` takes bytes however the network cuts them; each is copied
    once, or twice where a frame arrives in parts.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.frame_max = FRAME_MAX_BYTES
        """How long a frame that we send may be. Bytes."""
        self._longest = FRAME_MAX_BYTES + NOTES_MAX_BYTES
        """A frame that says it is longer than this is none. Bytes."""
        self._receiver = receiver
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 0
        self._open: dict[int, _Content] = {}
        """Keyed by channel: the message whose content is arriving."""

    def agree(self, frame_max: int) -> None:
        """Both sides have agreed on how long frames may be; 0 is no limit."""
        self.frame_max = frame_max or FRAME_MAX_BYTES
        self._longest = (frame_max or UNLIMITED_MAX_BYTES) + NOTES_MAX_BYTES

    def forget(self, channel: int) -> None:
        """The channel is being closed: what is arriving on it is read to its end, and dropped. (The
        client, which expects an answer to its `close`, must not get the rest of a message.)"""
        if (content := self._open.get(channel)) is not None:
            content.done = _ignore

    def feed(self, data: bytes) -> None:
        """Read everything that is complete. Raises `FrameError`."""
        if self._parts:
            self._parts.append(data)
            self._have += len(data)
            if self._have < self._need:
                return
            data = b"".join(self._parts)
            self._parts.clear()
        receiver, contents = self._receiver, self._open
        position, size = 0, len(data)
        while size - position >= FRAME_OVERHEAD_BYTES:
            kind, channel, length = _FRAME.unpack_from(data, position)
            self._check(length)
            start = position + _FRAME.size
            end = start + length
            if end >= size:
                break
            if data[end] != _END:
                raise FrameError("a frame does not end where it should")
            content = contents.get(channel)
            if kind == METHOD and length >= _METHOD.size:
                if not self._method(data, start, end, channel):
                    receiver.cold(data[position : end + 1])
            elif content is None or kind not in (HEADER, BODY):
                receiver.cold(data[position : end + 1])
            elif kind == BODY:
                content.add(data[start:end])
                if not content.left:
                    del contents[channel]
                    content.finish()
            else:
                if length < _CONTENT.size + _SHORT.size:
                    raise FrameError("a content header is too short")
                content.left = _CONTENT.unpack_from(data, start)[1]
                content.delivery.raw = data[start + _CONTENT.size : end]
                if not content.left:
                    del contents[channel]
                    content.finish()
            position = end + 1
        left = size - position
        if left:
            self._parts.append(data[position:] if position else data)
            self._have = left
            self._need = FRAME_OVERHEAD_BYTES
            if left >= _FRAME.size:
                length = _FRAME.unpack_from(data, position)[2]
                self._check(length)
                self._need += length

    def _check(self, length: int) -> None:
        if length > self._longest:
            raise FrameError(f"a frame of {length} bytes; the most is {self._longest}")

    def _method(self, data: bytes, start: int, end: int, channel: int) -> bool:
        """Read a method; false for one that is cold."""
        method = _METHOD.unpack_from(data, start)[0]
        # What follows the frame must not be taken for the end of a method that is cut off.
        arguments = data[start + _METHOD.size : end]
        try:
            if method == DELIVER:
                tag_at = 1 + arguments[0]
                taker = self._receiver.taker(channel, arguments[1:tag_at])
                if taker is None:
                    return False
                tag, redelivered = _TAG.unpack_from(arguments, tag_at)
                exchange, key = _route(arguments[tag_at + _TAG.size :])
                delivery = Delivery(tag, redelivered != 0, exchange, key)
                self._open[channel] = _Content(delivery, taker)
            elif method in (ACK, NACK):
                if (confirms := self._receiver.confirms(channel)) is None:
                    return False
                tag, bits = _TAG.unpack_from(arguments)
                confirms.confirmed(tag, bool(bits & _MULTIPLE), method == ACK)
            elif method in (GET_OK, GET_EMPTY):
                if (getter := self._receiver.getter(channel)) is None:
                    return False
                if method == GET_EMPTY:
                    getter(None)
                else:
                    tag, redelivered = _TAG.unpack_from(arguments)
                    exchange, key = _route(arguments[_TAG.size : -_LONG.size])
                    delivery = Delivery(tag, redelivered != 0, exchange, key)
                    self._open[channel] = _Content(delivery, getter)
            elif method == RETURN:
                if (confirms := self._receiver.confirms(channel)) is None:
                    return False
                text_at = _SHORT.size + 1
                route_at = text_at + arguments[text_at - 1]
                code = _SHORT.unpack_from(arguments)[0]
                text = arguments[text_at:route_at].decode(errors="backslashreplace")
                delivery = Delivery(0, False, *_route(arguments[route_at:]))
                self._open[channel] = _Content(delivery, partial(confirms.returned, code, text))
            else:
                return False
        except (IndexError, struct.error) as error:
            raise FrameError(f"method {method >> 16}.{method & 0xFFFF} is cut off") from error
        return True


def _ignore(_: Delivery) -> None:
    pass


class _Content:
    """A message whose method has arrived, until all of its body has."""

    __slots__ = ("delivery", "done", "left", "parts")

    def __init__(self, delivery: Delivery, done: Callable[[Delivery], None]) -> None:
        self.delivery = delivery
        self.done = done
        self.left = -1
        self.parts: list[bytes] | None = None

    def add(self, part: bytes) -> None:
        if self.left < 0:
            raise FrameError("a body without a content header")
        self.left -= len(part)
        if self.left < 0:
            raise FrameError("a body is longer than its content header says")
        if self.parts is not None:
            self.parts.append(part)
        elif self.left:
            self.parts = [part]
        else:
            self.delivery.body = part

    def finish(self) -> None:
        if self.parts is not None:
            self.delivery.body = b"".join(self.parts)
        self.done(self.delivery)


@lru_cache(_ROUTES_MAX)
def _route(data: bytes) -> tuple[str, str]:
    """An exchange's name and a routing key, which come one after the other."""
    exchange_end = 1 + data[0]
    key_end = exchange_end + 1 + data[exchange_end]
    if key_end > len(data):
        raise IndexError
    return (
        data[1:exchange_end].decode(errors="backslashreplace"),
        data[exchange_end + 1 : key_end].decode(errors="backslashreplace"),
    )


# --- what goes out -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Posting:
    """A message, and where it goes. `properties` is its property list."""

    routing_key: str
    properties: bytes
    body: bytes


def properties_max_bytes(frame_max: int) -> int:
    """How long a property list may be: it has to fit into one frame."""
    return frame_max - FRAME_OVERHEAD_BYTES - _CONTENT.size


def published(
    channel: int, exchange: str, postings: Iterable[Posting], frame_max: int = FRAME_MAX_BYTES
) -> bytes:
    """The frames that publish these, in order, each as mandatory.

    Raises ValueError for a property list that does not fit into a frame, or a routing key that is
    too long.
    """
    parts: list[bytes] = []
    room = frame_max - FRAME_OVERHEAD_BYTES
    for posting in postings:
        properties, body = posting.properties, posting.body
        if len(properties) > properties_max_bytes(frame_max):
            raise ValueError(
                f"properties of {len(properties)} bytes; "
                f"a frame takes {properties_max_bytes(frame_max)}"
            )
        header = _FRAME.pack(HEADER, channel, _CONTENT.size + len(properties))
        parts += (
            _publish_method(channel, exchange, posting.routing_key),
            header,
            _CONTENT.pack(_BASIC_HEADER, len(body)),
            properties,
        )
        for start in range(0, len(body), room):
            part = body[start : start + room] if len(body) > room else body
            parts += (b"\xce", _FRAME.pack(BODY, channel, len(part)), part)
        parts.append(b"\xce")
    return b"".join(parts)


@lru_cache(_ROUTES_MAX)
def _publish_method(channel: int, exchange: str, routing_key: str) -> bytes:
    """The frame before a message's content, which is the same for all that go the same way."""
    arguments = b"".join(
        (_METHOD.pack(PUBLISH), b"\x00\x00", short(exchange), short(routing_key), b"\x01")
    )
    return _FRAME.pack(METHOD, channel, len(arguments)) + arguments + b"\xce"


def acknowledged(channel: int, tag: int, *, multiple: bool = False) -> bytes:
    """The frame that acknowledges a delivery, or all up to it."""
    return _SETTLE.pack(METHOD, channel, 13, ACK, tag, multiple, _END)


def refused(channel: int, tag: int, *, multiple: bool = False, requeue: bool = True) -> bytes:
    """The frame that gives a delivery back, or all up to it."""
    bits = _MULTIPLE * multiple | _REQUEUE * requeue
    return _SETTLE.pack(METHOD, channel, 13, NACK, tag, bits, _END)


def asked(channel: int, queue: str) -> bytes:
    """The frame that gets one message from a queue, to be acknowledged."""
    arguments = _METHOD.pack(GET) + b"\x00\x00" + short(queue) + b"\x00"
    return _FRAME.pack(METHOD, channel, len(arguments)) + arguments + b"\xce"


def methods_in(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The methods in whole frames that a client is about to send: channel, method, arguments."""
    position = 0
    while len(data) - position >= FRAME_OVERHEAD_BYTES:
        kind, channel, length = _FRAME.unpack_from(data, position)
        start, end = position + _FRAME.size, position + _FRAME.size + length
        if kind == METHOD and length >= _METHOD.size:
            yield channel, _METHOD.unpack_from(data, start)[0], data[start + _METHOD.size : end]
        position = end + 1


def consumed(arguments: bytes) -> tuple[str, bytes]:
    """The queue and the consumer tag that the arguments of `basic.consume` name.

    Raises IndexError for what is no such method.
    """
    queue_end = 3 + arguments[2]
    tag_end = queue_end + 1 + arguments[queue_end]
    return arguments[3:queue_end].decode(), arguments[queue_end + 1 : tag_end]


def frame_max_in(arguments: bytes) -> int:
    """The longest frame that the arguments of `connection.tune-ok` agree on; 0 is no limit."""
    return int(_LONG.unpack_from(arguments, 2)[0])


def closed(arguments: bytes) -> tuple[int, str]:
    """The code and the text that the arguments of a method `close` have. Raises `FrameError`."""
    try:
        code = _SHORT.unpack_from(arguments)[0]
        return code, arguments[3 : 3 + arguments[2]].decode(errors="backslashreplace")
    except (IndexError, struct.error) as error:
        raise FrameError("a method `close` is cut off") from error


def without_properties(frame: bytes) -> bytes:
    """A whole content header frame, with an empty property list."""
    _, channel, _ = _FRAME.unpack_from(frame)
    content = frame[_FRAME.size : _FRAME.size + _CONTENT.size] + NO_PROPERTIES
    return _FRAME.pack(HEADER, channel, len(content)) + content + bytes((_END,))
