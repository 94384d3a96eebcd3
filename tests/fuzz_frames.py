"""Feed the parser, and all that reads and copies property lists, with whatever comes to mind.

    .venv/bin/python -m tests.fuzz_frames --minutes 60 [--seed 1]

Mutated traffic and random frames, cut anywhere. Nothing but `FrameError` may come out of `feed`,
and nothing at all out of what reads properties, copies messages or shows them; a property list that
can be split completely has to be put together as it was. Prints how many inputs it ran, and for
each finding what makes it again; exit status 1 if there was any.
"""

from __future__ import annotations

import argparse
import json
import random
import struct
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, Final

from saga.archive.store import Stray, judge, key
from saga.dlq.letters import (
    Copy,
    copy_of,
    digest_of,
    from_text,
    posting_of,
    printable_body,
    raw_of,
    to_json,
)
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import (
    LEFT_OUT,
    OURS,
    Failure,
    Reason,
    attempts_in,
    is_believed,
    ours_in,
    replayed,
    set_aside,
    time_in,
)
from saga.runtime.messaging.frames import Delivery, FrameError, Parser
from saga.runtime.messaging.stream import StreamError, record_of
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE
from saga.text import harmless
from tests.stores import GRAPH

FINDINGS_MAX: Final = 20
TRACEBACK_MAX_CHARACTERS: Final = 3_000
NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
REPORT_SECONDS: Final = 30.0

_EVENT: Final = (
    b'{"specversion":"1.0","id":"event-1","source":"/services/order","type":"order.cancelled",'
    b'"subject":"order-1","time":"2030-01-01T00:00:00Z","dataschema":"urn:order-saga:'
    b'order.cancelled:1","correlationid":"order-1","priority":"normal","data":{}}'
)
_NAMES: Final = (
    *(name.encode() for name in sorted(OURS)),
    *(b"x-death", b"x-first-death-queue", b"x-last-death-reason", b"x-delivery-count"),
    *(b"x-stream-offset", b"CC", b"BCC", b"a", b"", b"\xff\xfe", b"n" * 255, b"traceparent"),
)
_TEXTS: Final = (
    b"",
    b"x",
    b"\xff",
    b"\x00",
    b"\x1b[2J",
    "\u202e\x9b".encode(),
    b"0001-01-01T00:00:00+14:00",
    b"9999-12-31T23:59:59-14:00",
    b"2030-01-01T00:00:00+00:00",
    b"0001-01-01",
    b"20300101T000000,5Z",
    b"saga.events",
    b"toy.normal",
    b"undecodable",
    b"failed",
    b"$bytes",
    b"y" * 300,
)
_TAGS: Final = b"tbBsuUIilLfdDTVSxFAQ\x00\xff"
_PLACES: Final = (
    (EVENTS_EXCHANGE, "order.cancelled.normal"),
    (DEAD_EXCHANGE, "toy"),
    ("", "toy.normal"),
    ("", "saga.history"),
    ("\\xff", "\\xff" * 255),
)


class Recorder:
    """Takes everything that a parser reads."""

    def __init__(self) -> None:
        self.deliveries: list[Delivery] = []

    def taker(self, channel: int, consumer_tag: bytes) -> Callable[[Delivery], None] | None:
        return self.deliveries.append if consumer_tag == b"t" else None

    def getter(self, channel: int) -> Callable[[Delivery | None], None] | None:
        return self._got if channel % 2 else None

    def _got(self, delivery: Delivery | None) -> None:
        if delivery is not None:
            self.deliveries.append(delivery)

    def confirms(self, channel: int) -> frames.Confirms | None:
        return self if channel % 2 else None

    def confirmed(self, tag: int, multiple: bool, ack: bool) -> None: ...

    def returned(self, code: int, text: str, delivery: Delivery) -> None:
        self.deliveries.append(delivery)

    def cold(self, frame: bytes) -> None:
        for _, method, arguments in frames.methods_in(frame):
            if method == frames.CHANNEL_CLOSE:
                frames.closed(arguments)


class Maker:
    """Makes inputs, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def blob(self, most: int = 40) -> bytes:
        return self.random.randbytes(self.random.randrange(most))

    def text(self) -> bytes:
        return self.random.choice(_TEXTS) if self.random.random() < 0.7 else self.blob()

    def long(self, inside: bytes) -> bytes:
        size = len(inside)
        if self.random.random() < 0.03:
            size = self.random.choice([0, size + 1, size - 1 if size else 9, 2**32 - 1])
        return struct.pack(">I", size) + inside

    def value(self, depth: int = 0) -> bytes:
        r = self.random
        tag = bytes((r.choice(_TAGS),))
        if tag in b"FA" and depth < 4:
            count = r.randrange(4)
            make = self.field if tag == b"F" else self.value
            inside = b"".join(make(depth + 1) for _ in range(count))
            return tag + self.long(inside)
        if tag in b"Sx":
            text = self.property_list() if r.random() < 0.1 and depth == 0 else self.text()
            if r.random() < 0.005:
                text = text * r.choice([100, 1_000, 5_000])
            return tag + self.long(text)
        size = {b"t": 1, b"b": 1, b"B": 1, b"s": 2, b"u": 2, b"U": 2, b"V": 0}.get(tag)
        if size is None:
            size = 5 if tag == b"D" else 4 if tag in b"Iif" else 8
        special = (b"\x00" * size, b"\xff" * size, b"\x7f" + b"\xff" * (size - 1), b"\x80")
        bits = r.choice(special)[:size] if r.random() < 0.5 else r.randbytes(size)
        return tag + bits

    def field(self, depth: int = 0) -> bytes:
        r = self.random
        name = r.choice(_NAMES) if r.random() < 0.8 else self.blob()
        if name == b"x-death" and r.random() < 0.5:
            death = b"".join(
                bytes((len(n),)) + n + self.value(3)
                for n in (b"exchange", b"queue", b"reason", b"time", b"count", b"routing-keys")
                if r.random() < 0.7
            )
            table = b"F" + self.long(death)
            return b"\x07x-death" + b"A" + self.long(table * r.randrange(3))
        return bytes((len(name),)) + name + self.value(depth)

    def property_list(self) -> bytes:
        r = self.random
        values: dict[str, bytes] = {}
        if r.random() < 0.9:
            many = r.choice([1, 3, 8, 8, 20]) if r.random() < 0.99 else r.choice([200, 9_000])
            fields = b"".join(self.field(3 if many > 8 else 0) for _ in range(r.randrange(many)))
            if r.random() < 0.01:
                fields += self.nested(r.choice([b"F", b"A"]), r.choice([31, 32, 33, 2_000]))
            if r.random() < 0.01:
                fields += b"\x01aS" + self.long(b"y" * r.choice([65_000, 130_000, 131_030]))
            values["headers"] = self.long(fields[:131_034])
        for name in ("content_type", "correlation_id", "reply_to", "expiration", "message_id"):
            if r.random() < 0.3:
                values[name] = self.short()
        for name in ("type", "user_id", "app_id", "cluster_id", "content_encoding"):
            if r.random() < 0.2:
                values[name] = self.short()
        if r.random() < 0.3:
            values["timestamp"] = r.choice([b"\xff" * 8, b"\0" * 8, r.randbytes(8)])
        for name in ("delivery_mode", "priority"):
            if r.random() < 0.3:
                values[name] = r.randbytes(1)
        return self.mutated(frames.join(values))

    def short(self) -> bytes:
        text = self.text()[:255] if self.random.random() < 0.9 else b"\xff" * 255
        return bytes((len(text),)) + text

    def nested(self, kind: bytes, depth: int) -> bytes:
        value = b"V"
        for _ in range(depth):
            inside = b"\x01a" + value if kind == b"F" else value
            value = kind + struct.pack(">I", len(inside)) + inside
        return b"\x01d" + value

    def mutated(self, data: bytes, share: float = 0.3) -> bytes:
        r = self.random
        if r.random() > share or not data:
            return data
        changed = bytearray(data)
        for _ in range(r.randrange(1, 4)):
            at = r.randrange(len(changed) or 1)
            match r.randrange(4):
                case 0:
                    changed[at : at + 1] = r.randbytes(1)
                case 1:
                    del changed[at : at + r.randrange(1, 9)]
                case 2:
                    changed[at:at] = self.blob(9)
                case _:
                    del changed[at:]
        return bytes(changed)

    def body(self) -> bytes:
        r = self.random
        known = (b"{", b"", b"[1]", b"\xff\x00", b'{"a":NaN}', b'{"id":"' + b"i" * 300 + b'"}')
        if r.random() < 0.5:
            return r.choice(known)
        return self.mutated(_EVENT) if r.random() < 0.8 else self.blob(200)

    def delivery(self) -> Delivery:
        exchange, routing_key = self.random.choice(_PLACES)
        return Delivery(1, False, exchange, routing_key, self.property_list(), self.body())

    def traffic(self) -> tuple[bytes, list[bytes]]:
        """What arrives on a connection, and how it is cut into packets."""
        r = self.random
        data = b""
        for _ in range(r.randrange(1, 5)):
            channel = r.choice([0, 1, 1, 2, 3])
            method = r.choice([frames.DELIVER, frames.GET_OK, frames.RETURN, frames.ACK])
            route = self.short() + self.short()
            if method == frames.DELIVER:
                tag = b"\x01t" if r.random() < 0.8 else self.short()
                arguments = tag + r.randbytes(8) + b"\0" + route
            elif method == frames.GET_OK:
                arguments = r.randbytes(8) + b"\0" + route + bytes(4)
            elif method == frames.RETURN:
                arguments = r.randbytes(2) + self.short() + route
            else:
                arguments = r.randbytes(9)
            if r.random() < 0.15:
                method = r.choice(
                    [frames.GET_EMPTY, frames.NACK, frames.CHANNEL_CLOSE, r.getrandbits(32)]
                )
            data += self.frame(1, channel, struct.pack(">I", method) + arguments)
            body = self.body()
            head = struct.pack(">HHQ", 60, 0, len(body)) + self.property_list()
            data += self.frame(2, channel, head)
            if body:
                at = r.randrange(len(body) + 1)
                data += self.frame(3, channel, body[:at]) + self.frame(3, channel, body[at:])
            if r.random() < 0.2:
                data += frames.HEARTBEAT_FRAME
        data = self.mutated(data, 0.5)
        cuts = sorted(r.randrange(len(data) + 1) for _ in range(r.choice([0, 1, 5, 50])))
        places = [0, *cuts, len(data)]
        return data, [data[a:b] for a, b in pairwise(places)]

    def frame(self, kind: int, channel: int, payload: bytes) -> bytes:
        r = self.random
        if r.random() < 0.02:
            kind = r.randrange(256)
        size = len(payload) if r.random() < 0.98 else r.choice([0, len(payload) + 1, 2**31])
        end = b"\xce" if r.random() < 0.99 else b"\xcd"
        return struct.pack(">BHI", kind, channel, size) + payload + end


def try_parser(maker: Maker) -> None:
    _, packets = maker.traffic()
    recorder = Recorder()
    parser = Parser(recorder)
    try:
        for packet in packets:
            parser.feed(packet)
            if maker.random.random() < 0.05:
                parser.forget(1)
    except FrameError:
        pass
    for delivery in recorder.deliveries:
        check(delivery)


def try_delivery(maker: Maker) -> None:
    check(maker.delivery())


def check(delivery: Delivery) -> None:
    """Everything that is done with a delivery, whatever is in it."""
    raw = delivery.raw
    values, problem = frames.split(raw)
    if not problem:
        again = frames.join(values)
        assert again[2:] == raw[2 : len(again)], "split and join"
    table = values.get("headers", b"")
    fields, rest = frames.fields_in(table)
    assert frames.table_of(fields, rest)[4:] == table[4:], "fields_in and table_of"
    assert frames.properties_in(raw) is not None
    is_believed(delivery)
    ours = ours_in(delivery)
    attempts_in(ours)
    for name in OURS:
        time_in(ours, name)
    most = frames.properties_max_bytes(frames.FRAME_MAX_BYTES)
    for reason in Reason:
        failure = Failure(reason, ValueError("\ud800\x1b" * 900), "toy.normal", NOW)
        copy = set_aside(delivery, failure)
        whole(copy, most)
        if not frames.first_of(copy, LEFT_OUT.encode()):
            carried(delivery, copy)
        dead = Delivery(1, False, DEAD_EXCHANGE, "toy", copy, delivery.body)
        assert ours_in(dead), "what we wrote is ours"
        letter = copy_of(dead, "toy", NOW)
        assert letter.queue == "toy.normal", "it goes back where it came from"
        shown(letter)
        again = replayed(copy, 1)
        whole(again, most)
        # What was sent again may fail again.
        once_more = Delivery(1, False, "", "toy.normal", again, delivery.body)
        whole(set_aside(once_more, failure), most)
    shown(copy_of(delivery, "toy", NOW))
    try:
        record = record_of(delivery, 7)
    except StreamError:
        return
    found = judge(record, 1, GRAPH)
    assert len(key(record)) <= 255, "a key fits into its column"
    if isinstance(found, Stray):
        assert len(found.routing_key) <= 255, "a routing key fits into its column"
        assert "\0" not in found.key + found.routing_key + found.detail, "it can be stored"


def whole(raw: bytes, most: int) -> None:
    """A list of ours can be split completely, and fits."""
    values, problem = frames.split(raw)
    assert not problem, problem
    assert frames.join(values) == raw, "nothing is after it"
    assert frames.fields_in(values["headers"])[1] == b"", "its headers can be split"
    assert len(raw) <= most, f"{len(raw)} bytes are too many"


def carried(delivery: Delivery, copy: bytes) -> None:
    """Everything that the message carried, and that we do not overwrite, is in the copy."""
    values, _ = frames.split(delivery.raw)
    copied, _ = frames.split(copy)
    for name, value in values.items():
        if name not in ("headers", "expiration", "user_id"):
            assert copied[name] == value, f"{name} is as it was"
    there = frames.fields_in(copied["headers"])[0]
    for field in frames.fields_in(values.get("headers", b""))[0]:
        mine = field.name.decode(errors="replace") in OURS
        if not (mine or field.name in (b"CC", b"BCC") or field.name.startswith(b"x-")):
            assert field in there, f"{field.name!r} is as it was"


def shown(copy: Copy) -> None:
    """What is kept of a letter can be kept, read again, shown and sent."""
    limits = {"key": 255, "died": 64, "type": 255, "queue": 255, "reason": 64, "error_type": 255}
    for name, most in (limits | {"fingerprint": 64, "subject": 255, "event_id": 255}).items():
        assert len(getattr(copy, name) or "") <= most, f"{name} is too long"
    assert len(digest_of(copy.raw, copy.body)) == 16
    for values in (copy.headers, copy.properties):
        text = to_json(values)
        json.loads(text, parse_constant=_never)
        assert repr(from_text(text)) == repr(_plain(values)), "kept and read"
    raw_of(copy.properties, copy.headers)
    json.loads(json.dumps(printable_body(copy.body)), parse_constant=_never)
    line = harmless(f"{copy.key} {copy.type} {copy.subject} {copy.error} {copy.headers}"[:2_000])
    assert line.isprintable(), "harmless"
    posting_of(copy, 1)


def _never(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def _plain(value: Any) -> Any:
    """What comes back of a value that was kept: decimals as text."""
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    kinds = str | bytes | int | float | datetime | None
    return value if isinstance(value, kinds) else str(value)


TRIES: Final[tuple[Callable[[Maker], None], ...]] = (try_parser, try_delivery)


def fuzz(seconds: float, seed: int) -> int:
    """Run inputs for so long; returns how many findings there were."""
    until = time.monotonic() + seconds
    report_at = time.monotonic() + REPORT_SECONDS
    count = findings = 0
    while time.monotonic() < until and findings < FINDINGS_MAX:
        number = seed + count
        try:
            TRIES[count % len(TRIES)](Maker(number))
        except Exception:
            findings += 1
            print(f"input {number} of {TRIES[count % len(TRIES)].__name__}:")
            print(traceback.format_exc()[:TRACEBACK_MAX_CHARACTERS])
        count += 1
        if time.monotonic() > report_at:
            report_at += REPORT_SECONDS
            print(f"{count} inputs, {findings} findings", flush=True)
    print(f"{count} inputs, {findings} findings, from seed {seed} on", flush=True)
    return findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.exit(1 if fuzz(arguments.minutes * 60, arguments.seed) else 0)


if __name__ == "__main__":
    main()
