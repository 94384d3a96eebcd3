"""An AMQP 0-9-1 client that sends any bytes as a property list, and shows those that come.

It shares no code with `saga.runtime.messaging.frames`, nor with pamqp: what either would refuse to
write is what it is for. https://www.rabbitmq.com/resources/specs/amqp0-9-1.pdf
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import yarl

ANSWER_SECONDS: Final = 20.0
_METHOD, _HEADER, _BODY, _HEARTBEAT = 1, 2, 3, 8
_CHANNEL: Final = 1

_FLAGS: Final = {
    "content_type": 15,
    "content_encoding": 14,
    "headers": 13,
    "delivery_mode": 12,
    "priority": 11,
    "correlation_id": 10,
    "reply_to": 9,
    "expiration": 8,
    "message_id": 7,
    "timestamp": 6,
    "type": 5,
    "user_id": 4,
    "app_id": 3,
    "cluster_id": 2,
}


class Refused(Exception):
    """The broker closed the channel or the connection."""


@dataclass(frozen=True)
class Message:
    """A message as it came."""

    tag: int
    redelivered: bool
    exchange: bytes
    key: bytes
    raw: bytes
    body: bytes


def short(value: bytes) -> bytes:
    """A short string."""
    return bytes((len(value),)) + value


def long(value: bytes) -> bytes:
    """A long string, or whatever else has its length before it."""
    return struct.pack(">I", len(value)) + value


def header(name: bytes, value: bytes) -> bytes:
    """A field of a table; `value` begins with the tag of its type."""
    return short(name) + value


def text(value: bytes) -> bytes:
    """The value of a header that is a string."""
    return b"S" + long(value)


def property_list(values: Mapping[str, bytes] = {}, headers: Sequence[bytes] = ()) -> bytes:
    """A property list of values as they are on the wire, and of the headers."""
    given = dict(values)
    if headers:
        given["headers"] = long(b"".join(headers))
    flags = sum(1 << _FLAGS[name] for name in given)
    return struct.pack(">H", flags) + b"".join(given[name] for name in _FLAGS if name in given)


def parts(raw: bytes) -> tuple[dict[str, bytes], list[bytes]]:
    """The values of a property list, and its headers, each with its name: what `property_list`
    puts together. Only for what is well formed on its uppermost level."""
    (flags,) = struct.unpack_from(">H", raw)
    at = 2
    values: dict[str, bytes] = {}
    headers: list[bytes] = []
    for name, bit in _FLAGS.items():
        if not flags & 1 << bit:
            continue
        if name == "headers":
            (size,) = struct.unpack_from(">I", raw, at)
            headers = _fields(raw[at + 4 : at + 4 + size])
            at += 4 + size
            continue
        size = {"delivery_mode": 1, "priority": 1, "timestamp": 8}.get(name) or 1 + raw[at]
        values[name] = raw[at : at + size]
        at += size
    assert at == len(raw), "bytes after the last property"
    return values, headers


_WIDTHS: Final = {
    **dict.fromkeys(b"tbB", 1),
    **dict.fromkeys(b"suU", 2),
    **dict.fromkeys(b"Iif", 4),
    **dict.fromkeys(b"lLdT", 8),
    ord("D"): 5,
    ord("V"): 0,
}


def _fields(table: bytes) -> list[bytes]:
    found = []
    at = 0
    while at < len(table):
        tag = at + 1 + table[at]
        if table[tag] in b"SFAx":
            end = tag + 5 + struct.unpack_from(">I", table, tag + 1)[0]
        else:
            end = tag + 1 + _WIDTHS[table[tag]]
        found.append(table[at:end])
        at = end
    return found


class RawClient:
    """One connection with one channel in confirm mode. Not for several tasks at once."""

    def __init__(self, url: str) -> None:
        self._url = yarl.URL(url)
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter
        self._published = 0
        self.version = ""
        """The broker's."""

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Connect; may be called again once the broker has closed the connection."""
        url = self._url
        self._published = 0
        self._reader, self._writer = await asyncio.open_connection(url.host, url.port)
        self._writer.write(b"AMQP\x00\x00\x09\x01")
        start = await self._method(10, 10)
        at = start.index(b"versionS") + 8  # Of the server, among its properties.
        (size,) = struct.unpack_from(">I", start, at)
        self.version = start[at + 4 : at + 4 + size].decode()
        login = b"\0" + (url.user or "guest").encode() + b"\0" + (url.password or "guest").encode()
        self._send(10, 11, long(b"") + short(b"PLAIN") + long(login) + short(b"en_US"))
        tune = await self._method(10, 30)
        self._send(10, 31, tune[:6] + b"\0\0", channel=0)  # No heartbeats.
        host = url.path.removeprefix("/") or "/"
        self._send(10, 40, short(host.encode()) + short(b"") + b"\0", channel=0)
        await self._method(10, 41)
        self._send(20, 10, short(b""))
        await self._method(20, 11)
        self._send(85, 10, b"\0")
        await self._method(85, 11)

    async def close(self) -> None:
        """Drop the connection; what was not acknowledged goes back."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def publish(self, exchange: str, key: str, raw: bytes, body: bytes) -> None:
        """Publish a message with these bytes as its property list, and wait for the confirm.

        Raises `Refused` for what the broker does not take; then the client is to be opened again.
        """
        arguments = b"\0\0" + short(exchange.encode()) + short(key.encode()) + b"\x01"
        self._send(60, 40, arguments)
        content = struct.pack(">HHQ", 60, 0, len(body)) + raw
        self._frame(_HEADER, content)
        for start in range(0, len(body), 100_000):
            self._frame(_BODY, body[start : start + 100_000])
        self._published += 1
        try:
            arguments = await self._method(60, 80)
        except Refused:
            await self.close()
            raise
        assert struct.unpack_from(">Q", arguments)[0] == self._published

    async def get(self, queue: str) -> Message | None:
        """The next message of a queue, not acknowledged; None if there is none."""
        self._send(60, 70, b"\0\0" + short(queue.encode()) + b"\0")
        method, arguments = await self._any_method()
        if method == (60, 72):
            return None
        assert method == (60, 71), method
        tag, redelivered, exchange_size = struct.unpack_from(">QBB", arguments)
        exchange_end = 10 + exchange_size
        key_end = exchange_end + 1 + arguments[exchange_end]
        raw, body = await self._content()
        return Message(
            tag,
            bool(redelivered),
            arguments[10:exchange_end],
            arguments[exchange_end + 1 : key_end],
            raw,
            body,
        )

    async def drop(self) -> None:
        """Take everything for good that came by `get`."""
        self._send(60, 80, struct.pack(">QB", 0, 1))
        await self._in_order()

    async def drain(self, queue: str) -> list[Message]:
        """Get everything that is ready in a queue."""
        found = []
        while message := await self.get(queue):
            found.append(message)
        return found

    async def _in_order(self) -> None:
        """Return once the broker has done what it was sent before."""
        self._send(60, 10, struct.pack(">IHB", 0, 0, 0))  # basic.qos, of no effect
        await self._method(60, 11)

    async def _content(self) -> tuple[bytes, bytes]:
        kind, payload = await self._next_frame()
        assert kind == _HEADER
        (size,) = struct.unpack_from(">Q", payload, 4)
        body = b""
        while len(body) < size:
            kind, part = await self._next_frame()
            assert kind == _BODY
            body += part
        return payload[12:], body

    async def _method(self, class_id: int, method_id: int) -> bytes:
        """The arguments of the next method, which has to be this one."""
        method, arguments = await self._any_method()
        if method == (60, 50):  # What comes back has its confirm after it.
            await self._content()
            raise Refused("no queue takes it")
        assert method == (class_id, method_id), method
        return arguments

    async def _any_method(self) -> tuple[tuple[int, int], bytes]:
        kind, payload = await self._next_frame()
        assert kind == _METHOD, kind
        class_id, method_id = struct.unpack_from(">HH", payload)
        arguments = payload[4:]
        if (class_id, method_id) in ((10, 50), (20, 40)):
            (code,) = struct.unpack_from(">H", arguments)
            said = arguments[3 : 3 + arguments[2]].decode(errors="replace")
            raise Refused(f"{code} {said}")
        return (class_id, method_id), arguments

    async def _next_frame(self) -> tuple[int, bytes]:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    kind, _, size = struct.unpack(">BHI", await self._reader.readexactly(7))
                    payload = await self._reader.readexactly(size + 1)
                    assert payload[-1] == 0xCE
                    if kind != _HEARTBEAT:
                        return kind, payload[:-1]
        except (asyncio.IncompleteReadError, OSError) as error:
            raise Refused("the broker closed the connection without a word") from error
        except TimeoutError as error:
            raise Refused("the broker does not answer") from error

    def _send(
        self, class_id: int, method_id: int, arguments: bytes, *, channel: int | None = None
    ) -> None:
        on = (0 if class_id == 10 else _CHANNEL) if channel is None else channel
        self._frame(_METHOD, struct.pack(">HH", class_id, method_id) + arguments, channel=on)

    def _frame(self, kind: int, payload: bytes, *, channel: int = _CHANNEL) -> None:
        self._writer.write(struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce")
