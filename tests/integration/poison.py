"""Messages whose properties and headers hold every kind of wrong bytes, and what is to come of
them."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from hypothesis import strategies as st

from saga.runtime.messaging.dead_letters import OURS
from tests.raw_amqp import header, long, property_list, short, text

FRAME_MAX: Final = 131_072
ROOM: Final = FRAME_MAX - 8 - 12
"""The longest property list that RabbitMQ takes; it takes one byte more, which it should not."""
NOT_UTF_8: Final = b"\xff\xfe\x80"
SHORTS: Final = (
    *("content_type", "content_encoding", "correlation_id", "reply_to", "expiration"),
    *("message_id", "type", "user_id", "app_id", "cluster_id"),
)
TERMINAL: Final = "\x1b[2J\x07\x9b31m\u202e\u2066\u200b[red]\r\n".encode()
"""What a terminal obeys, or turns round, or hides; and what Rich takes for markup."""


def number(code: str, value: float) -> bytes:
    """A value's tag and its bytes; `code` is both the tag and what `struct` calls it."""
    return code.encode() + struct.pack(">" + {"l": "q", "i": "I", "L": "q"}.get(code, code), value)


def nested(kind: bytes, depth: int) -> bytes:
    """A table in a table in a table, or lists."""
    value = b"V"
    for _ in range(depth):
        value = kind + long(header(b"a", value) if kind == b"F" else value)
    return value


def death(**values: bytes) -> bytes:
    """A note that looks like the broker's on a dead-lettering."""
    inside = b"".join(header(name.replace("_", "-").encode(), v) for name, v in values.items())
    return header(b"x-death", b"A" + long(b"F" + long(inside)))


def _headers() -> Iterator[tuple[str, list[bytes]]]:
    yield "names not UTF-8", [header(NOT_UTF_8, text(b"a")), header(b"b\xff", b"V")]
    yield "a name of nothing", [header(b"", text(b"a"))]
    yield "a name of 255 bytes", [header(b"n" * 255, text(b"a"))]
    yield (
        "two names of 200 that differ at the end",
        [header(b"n" * 199 + end, text(end)) for end in (b"1", b"2")],
    )
    yield "a name twice", [header(b"a", text(b"1")), header(b"a", text(b"2"))]
    yield "names that look alike", [header(b"\xff", text(b"1")), header(b"\\xff", text(b"2"))]
    yield "text not UTF-8", [header(b"a", text(NOT_UTF_8))]
    yield "text with NUL", [header(b"a\0", text(b"a\0b"))]
    yield "text for terminals", [header(TERMINAL, text(TERMINAL))]
    yield "bytes", [header(b"a", b"x" + long(NOT_UTF_8 * 100))]
    yield "doubles", [header(b"a", number("d", 1e300)), header(b"b", number("d", 5e-324))]
    yield "a float", [header(b"a", number("f", 1e38))]
    for name, value in (("NaN", float("nan")), ("infinity", float("inf"))):
        yield name, [header(b"a", number("d", value))]
        yield f"{name} as a float", [header(b"a", number("f", value))]
    yield "int64", [header(b"a", number("l", 2**63 - 1)), header(b"b", number("l", -(2**63)))]
    yield "int64 by another tag", [header(b"a", number("L", 2**63 - 1))]
    yield "uint32", [header(b"a", number("i", 2**32 - 1))]
    yield "short numbers", [header(bytes((tag,)), bytes((tag, 255, 255))) for tag in b"su"]
    yield "a short number by another tag", [header(b"a", b"U\xff\xff")]
    yield "small numbers", [header(bytes((tag,)), bytes((tag, 255))) for tag in b"bB"]
    yield "a truth of 2", [header(b"a", b"t\x02")]
    yield "nothing", [header(b"a", b"V")]
    yield "a decimal", [header(b"a", b"D\xff\xff\xff\xff\xff")]
    yield "a time beyond all", [header(b"a", b"T" + b"\xff" * 8)]
    yield "a time in microseconds", [header(b"a", b"T" + (1_700_000_000_000_000).to_bytes(8))]
    yield "an unknown tag", [header(b"a", b"Qxyz")]
    yield "an unknown tag within", [header(b"a", b"F" + long(header(b"b", b"Qxyz")))]
    yield "cut off within", [header(b"a", b"F" + long(b"\x01bS\0\0\0\xffx"))]
    yield "nested 33 tables", [header(b"a", nested(b"F", 33))]
    yield "nested 5,000 tables", [header(b"a", nested(b"F", 5_000))]
    yield "nested 10,000 lists", [header(b"a", nested(b"A", 10_000))]
    yield (
        "a list of everything",
        [header(b"a", b"A" + long(b"V" + text(NOT_UTF_8) + b"T" + b"\xff" * 8 + nested(b"F", 2)))],
    )
    yield "130,600 characters", [header(b"a", text(b"y" * 130_600))]
    yield "as much as a frame takes", [header(b"a", text(b"y" * (ROOM - 13)))]
    yield "a byte more than a frame takes", [header(b"a", text(b"y" * (ROOM - 12)))]
    yield "much more than a frame takes", [header(b"a", text(b"y" * ROOM))]
    yield "9,000 headers", [header(b"h%d" % n, b"t\x01") for n in range(9_000)]
    yield "CC", [header(b"CC", b"A" + long(text(b"nobody.home")))]
    yield "CC not UTF-8", [header(b"CC", b"A" + long(text(NOT_UTF_8)))]
    yield "CC that is no list", [header(b"CC", text(b"nobody.home"))]
    yield "BCC", [header(b"BCC", b"A" + long(text(b"nobody.home"))), header(b"a", b"V")]
    yield (
        "our marks",
        [
            header(name, b"F" + long(header(mark, text(b"!"))))
            for name, mark in ((b"a", b"$bytes"), (b"b", b"$time"), (b"c", b"$$number"))
        ],
    )
    yield "x-death that is text", [header(b"x-death", text(b"no"))]
    yield "x-death that is a number", [header(b"x-death", number("l", 1))]
    yield "x-death of numbers", [header(b"x-death", b"A" + long(number("l", 1)))]
    yield "x-death of nonsense", [death(count=text(b"x"), exchange=b"V", time=text(b"x"))]
    yield (
        "x-death of another time",
        [death(exchange=text(b""), queue=text(b"\x1b"), time=b"T" + (2**37).to_bytes(8))],
    )
    yield "x-first-death", [header(b"x-first-death-queue", number("l", 1))]
    yield "x-delivery-count", [header(b"x-delivery-count", text(b"many"))]
    yield "x-stream-offset", [header(b"x-stream-offset", number("l", 999_999))]
    yield (
        "x-stream-offset twice",
        [header(b"x-stream-offset", number("l", 999_999 + n)) for n in range(2)],
    )
    yield "x-stream-offset that is text", [header(b"x-stream-offset", text(b"x"))]
    yield "x-saga-attempts", [header(b"x-saga-attempts", number("l", 2**63 - 1))]
    yield "x-saga-replays", [header(b"x-saga-replays", number("l", -(2**63)))]
    yield (
        "x-saga times",
        [
            header(name, text(at))
            for name in (b"x-saga-first-failed-at", b"x-saga-last-failed-at")
            for at in (b"0001-01-01T00:00:00+14:00",)
        ],
    )
    yield (
        "x-saga bytes",
        [header(name.encode(), b"x" + long(NOT_UTF_8 * 2_500)) for name in sorted(OURS)],
    )
    yield "x-saga text", [header(name.encode(), text(TERMINAL * 90)) for name in sorted(OURS)]
    yield "x-saga tables", [header(name.encode(), nested(b"F", 2)) for name in sorted(OURS)]
    yield (
        "x-saga-kept of lies",
        [header(b"x-saga-kept", b"x" + long(property_list({}, [header(b"a", b"Q")])))],
    )
    yield (
        "an origin of 100,000 bytes",
        [header(b"x-saga-origin-exchange", b"x" + long(b"y" * 100_000))],
    )


def _properties() -> Iterator[tuple[str, dict[str, bytes]]]:
    for name in SHORTS:
        yield f"{name} not UTF-8", {name: short(NOT_UTF_8)}
        yield f"{name} of 255 odd bytes", {name: short(b"\xff" * 255)}
        yield f"{name} for terminals", {name: short(TERMINAL)}
    yield "an expiration", {"expiration": short(b"600000")}
    yield "an expiration of nothing", {"expiration": short(b"")}
    yield "the user_id", {"user_id": short(b"guest")}
    yield "a message_id with NUL", {"message_id": short(b"a\0b")}
    for value in (0, 3, 255):
        yield f"a delivery_mode of {value}", {"delivery_mode": bytes((value,))}
        yield f"a priority of {value}", {"priority": bytes((value,))}
    yield "a timestamp in microseconds", {"timestamp": (1_700_000_000_000_000).to_bytes(8)}
    yield "a timestamp beyond all", {"timestamp": b"\xff" * 8}
    yield "a reply_to of the broker's", {"reply_to": short(b"amq.rabbitmq.reply-to")}
    yield "a reply_to like the broker's", {"reply_to": short(b"amq.rabbitmq.reply-to.g1h2")}


def _lists() -> Iterator[tuple[str, bytes]]:
    yield "a list of no bytes", b""
    yield "a list of one byte", b"\0"
    yield "flags and nothing else", b"\xff\xfc"
    yield "a flag that says more flags come", b"\0\1"
    yield "a flag of no property", b"\0\2"
    yield "bytes after the last property", property_list({"message_id": short(b"a")}) + b"xyz"
    yield "a property cut off", property_list({"message_id": b"\xffabc"})
    yield "a table cut off", property_list({"headers": long(b"\x05ab")})
    yield "a header cut off", property_list({"headers": long(b"\x01aS\0\0\0\x05ab")})
    yield "a table longer than the list", property_list({"headers": b"\0\0\xff\xff"})
    yield (
        "everything",
        property_list(
            {
                **{
                    name: short(NOT_UTF_8)
                    for name in SHORTS
                    if name not in ("expiration", "user_id")
                },
                "timestamp": b"\xff" * 8,
                "priority": b"\xff",
            },
            [header(NOT_UTF_8, text(NOT_UTF_8)), header(b"a", nested(b"F", 40))],
        ),
    )


CASES: Final[dict[str, bytes]] = {
    **{name: property_list(values) for name, values in _properties()},
    **{name: property_list({}, headers) for name, headers in _headers()},
    **dict(_lists()),
}

_BY_BOTH: Final = frozenset(
    {
        *("NaN", "NaN as a float", "infinity", "infinity as a float"),
        *("a short number by another tag", "an unknown tag", "an unknown tag within"),
        *("cut off within", "much more than a frame takes", "CC that is no list"),
        *("expiration not UTF-8", "expiration of 255 odd bytes", "expiration for terminals"),
        *("an expiration of nothing", "user_id not UTF-8", "user_id of 255 odd bytes"),
        *("user_id for terminals", "a reply_to of the broker's", "a list of no bytes"),
        *("a list of one byte", "flags and nothing else", "bytes after the last property"),
        *("a property cut off", "a table cut off", "a header cut off"),
        "a table longer than the list",
        # Where the stream is to get it: no stream can hold one.
        "a decimal",
    }
)
REFUSED: Final[dict[str, frozenset[str]]] = {
    "3": _BY_BOTH | {f"a delivery_mode of {value}" for value in (0, 3, 255)},
    "4": _BY_BOTH,
}
"""Keyed by RabbitMQ's version: what it does not take from a publisher: it closes the channel or the
connection, and no consumer gets it."""

LOST: Final[dict[str, frozenset[str]]] = {"3": frozenset({"x-death of numbers"}), "4": frozenset()}
"""What must not get into a wait queue: when it expires, RabbitMQ 3.10 fails to add its own note to
it, and loses it, at times with what expires next. It gets there only from who publishes straight to
such a queue, which our own users alone may: copies of ours carry no foreign x-death."""


# --- generated ---------------------------------------------------------------------------------

_names = st.sampled_from([b"a", b"x-death", b"x-delivery-count", b"x-stream-offset", NOT_UTF_8]) | (
    st.sampled_from(sorted(OURS)).map(str.encode) | st.binary(max_size=255)
)
_texts = st.binary(max_size=60) | st.sampled_from([TERMINAL, NOT_UTF_8, b"\0"])
_leaves = (
    _texts.map(text)
    | _texts.map(lambda value: b"x" + long(value))
    | st.integers(-(2**63), 2**63 - 1).map(lambda value: number("l", value))
    | st.binary(min_size=8, max_size=8).map(lambda value: b"T" + value)
    | st.floats(allow_nan=False, allow_infinity=False).map(lambda value: number("d", value))
    | st.sampled_from([b"V", b"t\x00", b"t\x01", b"s\xff\xff", b"u\xff\xff", b"b\xff", b"B\xff"])
)
_values = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner, max_size=4).map(lambda values: b"A" + long(b"".join(values)))
        | st.lists(st.tuples(_names, inner), max_size=4, unique_by=lambda item: item[0]).map(
            lambda items: b"F" + long(b"".join(header(*item) for item in items))
        )
    ),
    max_leaves=6,
)
_shorts = (_texts | st.binary(max_size=255)).map(short)
property_lists = st.builds(
    property_list,
    st.fixed_dictionaries(
        {},
        optional={
            **{name: _shorts for name in SHORTS if name not in ("expiration", "user_id")},
            "timestamp": st.binary(min_size=8, max_size=8),
            "priority": st.binary(min_size=1, max_size=1),
        },
    ),
    st.lists(st.tuples(_names, _values), max_size=6, unique_by=lambda item: item[0]).map(
        lambda items: [header(*item) for item in items]
    ),
)
"""Any property list that RabbitMQ takes."""
