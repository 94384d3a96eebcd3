"""The frames of AMQP against pamqp, both ways; and what is no frame, property list or table."""

from __future__ import annotations

import asyncio
import struct
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from types import FrameType
from typing import Any, cast

import pamqp.frame
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from pamqp import body, commands, decode, encode, header, heartbeat

from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import (
    NOTES_MAX_BYTES,
    Delivery,
    Field,
    FrameError,
    Parser,
    Posting,
)
from saga.runtime.messaging.wire import Channel, ChannelLost, NotTaken, Unroutable, Wire

CONSUMER = b"saga-1-1"
CHANNELS = (1, 2, 65_535)


class Recorder:
    """Takes whatever a parser reads, and remembers it in order."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def taker(self, channel: int, consumer_tag: bytes) -> Callable[[Delivery], None] | None:
        if consumer_tag != CONSUMER:
            return None
        return lambda delivery: self._see("deliver", channel, delivery)

    def getter(self, channel: int) -> Callable[[Delivery | None], None] | None:
        return lambda delivery: self._see("get", channel, delivery)

    def confirms(self, channel: int) -> frames.Confirms | None:
        return _Confirms(self, channel)

    def cold(self, frame: bytes) -> None:
        self.seen.append(("cold", frame))

    def _see(self, kind: str, channel: int, delivery: Delivery | None) -> None:
        self.seen.append((kind, channel, *_seen(delivery)))


@dataclass
class _Confirms:
    recorder: Recorder
    channel: int

    def confirmed(self, tag: int, multiple: bool, ack: bool) -> None:
        self.recorder.seen.append(("confirm", self.channel, tag, multiple, ack))

    def returned(self, code: int, text: str, delivery: Delivery) -> None:
        self.recorder.seen.append(("return", self.channel, code, text, *_seen(delivery)))


class Nobody(Recorder):
    """To whom everything is cold."""

    def taker(self, channel: int, consumer_tag: bytes) -> None:
        return None

    def getter(self, channel: int) -> None:
        return None

    def confirms(self, channel: int) -> None:
        return None


def _seen(delivery: Delivery | None) -> tuple[Any, ...]:
    if delivery is None:
        return ()
    return (
        delivery.tag,
        delivery.redelivered,
        delivery.exchange,
        delivery.routing_key,
        delivery.raw,
        delivery.body,
    )


# --- what comes in -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Coming:
    """Frames that belong together, as pamqp writes them, and what is to be read in them."""

    parts: tuple[bytes, ...]
    seen: tuple[Any, ...]


tags = st.integers(0, 2**63 - 1)  # pamqp writes no higher ones
names = st.from_regex(r"[a-zA-Z0-9._:-]{0,127}", fullmatch=True)
keys = st.text(max_size=255).filter(lambda text: len(text.encode()) <= 255)
moments = st.datetimes(datetime(1970, 1, 1), datetime(2106, 1, 1)).map(  # noqa: DTZ001  # pamqp reads later ones otherwise
    lambda moment: moment.replace(tzinfo=UTC, microsecond=0)
)
texts = keys
values: SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 2)
    | st.text(max_size=30)
    | st.binary(max_size=30).map(bytearray)
    | moments,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=30), inner),
    max_leaves=8,
)
tables = st.dictionaries(st.text(max_size=30), values, max_size=5)
properties = st.builds(
    commands.Basic.Properties,
    content_type=st.none() | texts,
    content_encoding=st.none() | texts,
    headers=st.none() | tables.filter(bool),
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    expiration=st.none() | texts,
    message_id=st.none() | texts,
    timestamp=st.none() | moments,
    message_type=st.none() | texts,
    user_id=st.none() | texts,
    app_id=st.none() | texts,
)


@st.composite
def contents(draw: st.DrawFn) -> tuple[tuple[bytes, ...], bytes, bytes]:
    """The payloads of a content's frames, its property list and its body."""
    raw = draw(properties).marshal()
    parts = draw(st.lists(st.binary(min_size=1, max_size=60), max_size=6))
    whole = b"".join(parts)
    return (
        (struct.pack(">HHQ", 60, 0, len(whole)) + raw, *parts),
        raw,
        whole,
    )


def framed(kind: int, channel: int, payload: bytes) -> bytes:
    return struct.pack(">BHI", kind, channel, len(payload)) + payload + b"\xce"


def marshalled(channel: int, frame: Any) -> bytes:
    return pamqp.frame.marshal(frame, channel)


@st.composite
def messages(draw: st.DrawFn, channel: int) -> Coming:
    """A message that the broker delivers, gives or returns."""
    tag, again, exchange, key = draw(tags), draw(st.booleans()), draw(names), draw(keys)
    payloads, raw, whole = draw(contents())
    came = raw, whole
    kind = draw(st.sampled_from(["deliver", "get", "return"]))
    method: Any
    seen: tuple[Any, ...]
    if kind == "deliver":
        method = commands.Basic.Deliver(CONSUMER.decode(), tag, again, exchange, key)
        seen = kind, channel, tag, again, exchange, key, *came
    elif kind == "get":
        method = commands.Basic.GetOk(tag, again, exchange, key, draw(st.integers(0, 2**32 - 1)))
        seen = kind, channel, tag, again, exchange, key, *came
    else:
        code, text = draw(st.integers(0, 2**16 - 1)), draw(keys)
        method = commands.Basic.Return(code, text, exchange, key)
        seen = kind, channel, code, text, 0, False, exchange, key, *came
    head, *parts = payloads
    return Coming(
        (
            marshalled(channel, method),
            framed(frames.HEADER, channel, head),
            *(marshalled(channel, body.ContentBody(part)) for part in parts),
        ),
        seen,
    )


@st.composite
def settlements(draw: st.DrawFn, channel: int) -> Coming:
    """A confirm, or the answer that a queue is empty."""
    tag, multiple = draw(tags), draw(st.booleans())
    kind = draw(st.sampled_from(["ack", "nack", "empty"]))
    if kind == "ack":
        frame: Any = commands.Basic.Ack(tag, multiple)
        seen: tuple[Any, ...] = ("confirm", channel, tag, multiple, True)
    elif kind == "nack":
        frame = commands.Basic.Nack(tag, multiple, draw(st.booleans()))
        seen = ("confirm", channel, tag, multiple, False)
    else:
        frame, seen = commands.Basic.GetEmpty(), ("get", channel)
    return Coming((marshalled(channel, frame),), seen)


@st.composite
def colds(draw: st.DrawFn, channel: int) -> Coming:
    """A frame that is the client's: of a method that is not hot, or of another's consumer."""
    frame = draw(
        st.sampled_from(
            [
                heartbeat.Heartbeat(),
                commands.Channel.CloseOk(),
                commands.Basic.QosOk(),
                commands.Basic.Cancel("x"),
                commands.Basic.CancelOk("x"),
                commands.Channel.Close(404, "NOT_FOUND - é", 60, 20),
                commands.Queue.DeclareOk("toy.normal", 1, 2),
            ]
        )
    )
    on = 0 if isinstance(frame, heartbeat.Heartbeat) else channel
    bytes_ = marshalled(on, frame)
    return Coming((bytes_,), ("cold", bytes_))


@st.composite
def traffic(draw: st.DrawFn) -> tuple[bytes, list[tuple[Any, ...]]]:
    """What arrives on a connection whose channels take turns, and what there is to be read."""
    queues = [
        deque(draw(st.lists(messages(channel) | settlements(channel) | colds(channel), max_size=4)))
        for channel in CHANNELS
    ]
    order = draw(st.randoms(use_true_random=False))
    stream, seen = b"", []
    under_way: list[tuple[deque[bytes], tuple[Any, ...]] | None] = [None] * len(queues)
    while any(queues) or any(under_way):
        index = order.randrange(len(queues))
        now = under_way[index]
        if now is None:
            if not queues[index]:
                continue
            coming = queues[index].popleft()
            now = under_way[index] = deque(coming.parts), coming.seen
        parts, what = now
        stream += parts.popleft()
        if not parts:
            seen.append(what)
            under_way[index] = None
        if order.random() < 0.2:
            stream += frames.HEARTBEAT_FRAME
            seen.append(("cold", frames.HEARTBEAT_FRAME))
    return stream, seen


def pieces(data: bytes, cuts: Sequence[int]) -> Iterator[bytes]:
    places = sorted({cut % (len(data) + 1) for cut in cuts} - {0, len(data)})
    for start, end in zip([0, *places], [*places, len(data)], strict=True):
        yield data[start:end]


@given(traffic(), st.lists(st.integers(0, 100_000), max_size=30))
def test_what_pamqp_writes_is_read_the_same_however_it_is_cut(
    came: tuple[bytes, list[tuple[Any, ...]]], cuts: list[int]
) -> None:
    data, expected = came
    recorder = Recorder()
    parser = Parser(recorder)
    for piece in pieces(data, cuts):
        parser.feed(piece)
    assert recorder.seen == expected


@settings(max_examples=30)
@given(traffic())
def test_byte_by_byte_is_read_the_same(came: tuple[bytes, list[tuple[Any, ...]]]) -> None:
    data, expected = came
    recorder = Recorder()
    parser = Parser(recorder)
    for at in range(len(data)):
        parser.feed(data[at : at + 1])
    assert recorder.seen == expected


@settings(max_examples=30)
@given(traffic(), st.lists(st.integers(0, 100_000), max_size=30))
def test_what_nobody_takes_reaches_the_client_byte_for_byte(
    came: tuple[bytes, list[tuple[Any, ...]]], cuts: list[int]
) -> None:
    data, _ = came
    nobody = Nobody()
    parser = Parser(nobody)
    for piece in pieces(data, cuts):
        parser.feed(piece)
    assert b"".join(frame for _, frame in nobody.seen) == data


@pytest.mark.parametrize("size", [0, 1, 131_064, 131_065, 1_000_000])
def test_a_body_of_any_size_is_one(size: int) -> None:
    recorder = Recorder()
    whole = bytes(size)
    posting = frames.published(1, "", [Posting("k", frames.NO_PROPERTIES, whole)])
    method = marshalled(1, commands.Basic.Deliver(CONSUMER.decode(), 7, False, "", "k"))
    start = len(frames.published(1, "", [Posting("k", frames.NO_PROPERTIES, b"")])) - 22
    Parser(recorder).feed(method + posting[start:])
    ((_, _, _, _, _, _, raw, came),) = recorder.seen
    assert (raw, came) == (frames.NO_PROPERTIES, whole)


def test_what_arrives_on_a_channel_that_closes_is_read_to_its_end_for_nobody() -> None:
    recorder = Recorder()
    parser = Parser(recorder)
    method = marshalled(1, commands.Basic.Deliver(CONSUMER.decode(), 7, False, "", "k"))
    head = framed(frames.HEADER, 1, struct.pack(">HHQ", 60, 0, 4) + frames.NO_PROPERTIES)
    parser.feed(method + head)
    parser.forget(1)
    closed = marshalled(1, commands.Channel.CloseOk())
    parser.feed(framed(frames.BODY, 1, b"ab") + framed(frames.BODY, 1, b"cd") + closed)
    assert recorder.seen == [("cold", closed)]


# --- what is no frame --------------------------------------------------------------------------


def test_a_frame_may_be_longer_than_agreed_by_the_brokers_notes_only() -> None:
    most = frames.FRAME_MAX_BYTES + NOTES_MAX_BYTES
    recorder = Recorder()
    Parser(recorder).feed(framed(frames.BODY, 1, bytes(most)))
    assert len(recorder.seen) == 1
    for size in (most + 1, 2**32 - 1):
        begun = struct.pack(">BHI", frames.METHOD, 1, size) + b"x"
        with pytest.raises(FrameError, match=str(size)):
            Parser(recorder).feed(begun)
        with pytest.raises(FrameError, match=str(size)):
            Parser(recorder).feed(begun + bytes(max(0, 2 * most - size)))


def test_a_frame_ends_with_its_own_byte() -> None:
    whole = bytearray(marshalled(1, commands.Basic.Ack(1)))
    whole[-1] = 0xCD
    with pytest.raises(FrameError, match="end"):
        Parser(Recorder()).feed(bytes(whole))


HOT = [
    commands.Basic.Deliver(CONSUMER.decode(), 7, False, "exchange", "key"),
    commands.Basic.GetOk(7, False, "exchange", "key", 0),
    commands.Basic.Return(312, "NO_ROUTE", "exchange", "key"),
    commands.Basic.Ack(7),
    commands.Basic.Nack(7),
]


@pytest.mark.parametrize("method", HOT, ids=lambda method: method.name)
def test_a_method_that_is_cut_off_is_an_error(method: Any) -> None:
    payload = marshalled(1, method)[7:-1]
    # What follows the frame must not be taken for the rest of it. (The consumer tag has to be whole
    # for the method to be hot, and the number of messages in the queue is not read.)
    beginning = 4 + 1 + len(CONSUMER) if isinstance(method, commands.Basic.Deliver) else 4
    end = len(payload) - (4 if isinstance(method, commands.Basic.GetOk) else 0)
    for size in range(beginning, end):
        with pytest.raises(FrameError, match="cut off"):
            Parser(Recorder()).feed(framed(frames.METHOD, 1, payload[:size]) + bytes(300))


def test_contents_that_do_not_fit_are_errors() -> None:
    method = marshalled(1, HOT[0])
    head = framed(frames.HEADER, 1, struct.pack(">HHQ", 60, 0, 1) + frames.NO_PROPERTIES)
    for after in (
        framed(frames.BODY, 1, b"x"),
        head + framed(frames.BODY, 1, b"xy"),
        framed(frames.HEADER, 1, bytes(13)),
    ):
        with pytest.raises(FrameError):
            Parser(Recorder()).feed(method + after)


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Traffic with some bytes changed, left out, or put in."""
    data = bytearray(draw(traffic())[0])
    for _ in range(draw(st.integers(1, 5))):
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 2)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at : at + draw(st.integers(1, 30))]
            case _:
                data[at:at] = draw(st.binary(max_size=30))
    return bytes(data)


@given(damaged() | st.binary(max_size=300), st.lists(st.integers(0, 100_000), max_size=10))
def test_whatever_arrives_nothing_but_a_frame_error_is_raised(data: bytes, cuts: list[int]) -> None:
    parser = Parser(Recorder())
    try:
        for piece in pieces(data, cuts):
            parser.feed(piece)
    except FrameError:
        pass


# --- property lists ----------------------------------------------------------------------------


@given(properties)
def test_properties_that_pamqp_writes_are_read_the_same(given: commands.Basic.Properties) -> None:
    read = frames.properties_in(given.marshal())
    assert read.unreadable == ()
    for name in commands.Basic.Properties.__slots__:
        ours = {"message_type": "type"}.get(name, name)
        wanted = getattr(given, name)
        # pamqp leaves out what is empty.
        assert getattr(read, ours) == (None if wanted == "" else wanted), name


@given(properties)
def test_a_property_list_is_put_together_as_it_was(given: commands.Basic.Properties) -> None:
    raw = given.marshal()
    found, problem = frames.split(raw)
    assert problem == ""
    assert frames.join(found) == raw
    read = header.ContentHeader()
    read.unmarshal(struct.pack(">HHQ", 60, 0, 0) + frames.join(found))
    assert read.properties.marshal() == raw


@st.composite
def lists(draw: st.DrawFn) -> bytes:
    """Property lists, more or less: any flags, and anything after them."""
    raw = bytearray(draw(properties).marshal())
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(raw)))
        raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=4))
    return bytes(raw)


@given(lists() | st.binary(max_size=100))
@example(b"")
@example(b"\xff\xff")
@example(b"\x20\x00" + b"\xff" * 100)
def test_reading_properties_never_raises_and_loses_nothing(raw: bytes) -> None:
    read = frames.properties_in(raw)
    found, problem = frames.split(raw)
    assert bool(problem) <= bool(read.unreadable)
    if not problem:
        again = frames.join(found)
        assert again[2:] == raw[2 : len(again)]
        assert again[:2] == (struct.unpack_from(">H", raw)[0] & 0xFFFC).to_bytes(2)
    table = found.get("headers", b"")
    assert frames.table_of(*frames.fields_in(table))[4:] == table[4:]


@given(st.binary(min_size=4, max_size=200))
def test_any_bytes_are_some_fields_and_a_rest(table: bytes) -> None:
    fields, rest = frames.fields_in(table)
    assert frames.table_of(fields, rest)[4:] == table[4:]
    for field in fields:
        frames.value_of(field)


@given(tables)
def test_a_table_that_pamqp_writes_is_put_together_as_it_was(table: dict[str, Any]) -> None:
    packed = encode.field_table(table)
    fields, rest = frames.fields_in(packed)
    assert rest == b""
    assert frames.table_of(fields) == packed
    assert {field.name.decode(): frames.value_of(field) for field in fields} == table


@given(
    keys,
    st.integers(-(2**63), 2**63 - 1) | st.text(max_size=50) | st.binary(max_size=50),
)
def test_a_header_of_ours_is_read_by_pamqp(name: str, value: str | int | bytes) -> None:
    _, read = decode.field_table(frames.table_of([frames.field(name, value)]))
    assert read == {name: bytearray(value) if isinstance(value, bytes) else value}


def nested(kind: bytes, depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        inside = b"\x01a" + value if kind == b"F" else value
        value = kind + struct.pack(">I", len(inside)) + inside
    return value


@pytest.mark.parametrize("kind", [b"F", b"A"])
def test_what_is_nested_deep_is_kept_as_bytes_and_named(kind: bytes) -> None:
    raw = frames.join({"headers": frames.table_of([Field(b"deep", nested(kind, 10_000))])})
    read = frames.properties_in(raw)
    assert read.headers is not None
    value, depth = read.headers["deep"], 0
    while not isinstance(value, bytes):
        value, depth = (value["a"] if kind == b"F" else value[0]), depth + 1
    assert depth == frames.DEPTH_MAX
    assert "nested more than" in read.unreadable[0]


def test_what_cannot_be_read_is_named_briefly_however_much_it_is() -> None:
    odd = b"\x01\xffV" * 20_000
    for _ in range(20):
        odd = b"\xff" + b"\xfe" * 255 + b"F" + struct.pack(">I", len(odd)) + odd
    raw = frames.join({"headers": struct.pack(">I", len(odd)) + odd})
    unreadable = frames.properties_in(raw).unreadable
    assert len(unreadable) == frames.UNREADABLE_MAX
    assert sum(map(len, unreadable)) < 10_000


def test_a_message_id_that_is_not_utf_8_is_none() -> None:
    """Shown with its odd bytes spelt out, it could be taken for another one."""
    read = frames.properties_in(frames.join({"message_id": b"\x01\xff", "type": b"\x01\xff"}))
    assert (read.message_id, read.type) == (None, "\\xff")
    assert read.unreadable == ("message_id is not UTF-8", "type is not UTF-8")


def test_the_first_of_several_headers_with_one_name_is_found() -> None:
    twice = [frames.field("a", 1), frames.field("b", 2), frames.field("b", 3)]
    raw = frames.join({"headers": frames.table_of(twice)})
    assert frames.first_of(raw, b"b") == twice[1]
    assert frames.first_of(raw, b"c") is None
    assert frames.first_of(b"\x20\x00\xff", b"b") is None


# --- what goes out -----------------------------------------------------------------------------


def unmarshalled(data: bytes) -> list[tuple[int, Any]]:
    found = []
    while data:
        size, channel, frame = pamqp.frame.unmarshal(data)
        found.append((channel, frame))
        data = data[size:]
    return found


@given(
    st.integers(1, 65_535),
    names,
    st.lists(st.tuples(keys, properties, st.binary(max_size=10_000)), max_size=4),
    st.integers(4_096, 131_072),
)
def test_what_is_published_is_read_by_pamqp(
    channel: int,
    exchange: str,
    given: list[tuple[str, commands.Basic.Properties, bytes]],
    frame_max: int,
) -> None:
    postings = [Posting(key, each.marshal(), whole) for key, each, whole in given]
    try:
        sent = frames.published(channel, exchange, postings, frame_max)
    except ValueError:
        assert any(len(p.properties) + 20 > frame_max for p in postings)
        return
    came = deque(unmarshalled(sent))
    for posting in postings:
        on, method = came.popleft()
        assert on == channel
        assert method.name == "Basic.Publish"
        assert (method.exchange, method.routing_key) == (exchange, posting.routing_key)
        assert (method.mandatory, method.immediate) == (True, False)
        _, head = came.popleft()
        assert head.body_size == len(posting.body)
        assert head.properties.marshal() == posting.properties
        whole = b""
        while len(whole) < len(posting.body):
            _, part = came.popleft()
            assert len(part.value) + frames.FRAME_OVERHEAD_BYTES <= frame_max
            whole += part.value
        assert whole == posting.body
    assert not came


@given(st.integers(1, 65_535), tags, st.booleans(), st.booleans(), names)
def test_what_is_settled_and_asked_for_is_as_pamqp_writes_it(
    channel: int, tag: int, multiple: bool, requeue: bool, queue: str
) -> None:
    assert frames.acknowledged(channel, tag, multiple=multiple) == marshalled(
        channel, commands.Basic.Ack(tag, multiple)
    )
    assert frames.refused(channel, tag, multiple=multiple, requeue=requeue) == marshalled(
        channel, commands.Basic.Nack(tag, multiple, requeue)
    )
    assert frames.asked(channel, queue) == marshalled(channel, commands.Basic.Get(queue=queue))


def test_what_does_not_fit_into_a_frame_is_refused() -> None:
    most = frames.properties_max_bytes(frames.FRAME_MAX_BYTES)
    for raw, key in ((bytes(most + 1), "k"), (frames.NO_PROPERTIES, "k" * 256)):
        with pytest.raises(ValueError, match="bytes"):
            frames.published(1, "", [Posting(key, raw, b"")])
    frames.published(1, "", [Posting("k", bytes(most), b"")])


# --- confirms ----------------------------------------------------------------------------------


class Sink:
    """A wire that takes everything."""

    frame_max = frames.FRAME_MAX_BYTES
    is_writable = True

    def write(self, _: bytes) -> None: ...


OK, REFUSED, UNROUTABLE, LOST = None, NotTaken, Unroutable, ChannelLost
Confirm = tuple[str, int, bool]


@st.composite
def confirmations(draw: st.DrawFn) -> tuple[list[int], list[Confirm]]:
    """Sizes of batches, and what the broker says: each tag once or more, in any order."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=1, max_size=5))
    said = st.tuples(
        st.sampled_from(["ack", "nack", "return"]), st.integers(1, sum(sizes)), st.booleans()
    )
    return sizes, draw(st.lists(said, max_size=20))


@given(confirmations())
def test_confirms_are_counted_as_a_simple_model_counts_them(
    case: tuple[list[int], list[Confirm]],
) -> None:
    sizes, said = case
    postings = [Posting("k", frames.NO_PROPERTIES, b"%d" % tag) for tag in range(sum(sizes))]
    expected: dict[int, type[Exception] | None] = {}
    back: set[int] = set()
    for kind, tag, multiple in said:
        if kind == "return":
            if tag not in expected:
                back.add(tag)
            continue
        for settled in range(1, tag + 1) if multiple else [tag]:
            answer: type[Exception] | None = OK if kind == "ack" else REFUSED
            if settled in back and kind == "ack":
                answer = UNROUTABLE
            expected.setdefault(settled, answer)

    async def play() -> list[Exception | None]:
        channel = Channel(cast(Wire, Sink()), 1)
        tasks, start = [], 0
        for size in sizes:
            tasks.append(
                asyncio.create_task(channel.publish("", postings[start : start + size], 60))
            )
            start += size
        await asyncio.sleep(0)
        for kind, tag, multiple in said:
            if kind == "return":
                posting = postings[tag - 1]
                came = Delivery(0, False, "", "k", posting.properties, posting.body)
                channel.returned(312, "NO_ROUTE", came)
            else:
                channel.confirmed(tag, multiple, kind == "ack")
        channel.lose("the end", 0)
        return [answer for answers in await asyncio.gather(*tasks) for answer in answers]

    answers = asyncio.run(play())
    for tag, came in enumerate(answers, start=1):
        wanted = expected.get(tag, UNROUTABLE if tag in back else LOST)
        assert came is None if wanted is None else isinstance(came, wanted), tag


async def test_of_messages_that_are_alike_as_many_are_unroutable_as_come_back() -> None:
    channel = Channel(cast(Wire, Sink()), 1)
    sending = asyncio.create_task(channel.publish("", [Posting("k", b"\0\0", b"x")] * 3, 60))
    await asyncio.sleep(0)
    for raw in (b"\0\0", b"\x80\0\0"):  # A broker may write the properties in another way.
        channel.returned(312, "NO_ROUTE", Delivery(0, False, "", "k", raw, b"x"))
    channel.confirmed(3, multiple=True, ack=True)
    answers = await sending
    assert [type(answer) for answer in answers] == [Unroutable, Unroutable, type(None)]


async def test_what_is_not_confirmed_in_time_is_given_up_and_does_not_disturb_the_next() -> None:
    channel = Channel(cast(Wire, Sink()), 1)
    postings = [Posting("k", b"\0\0", b"x")] * 2
    late = await channel.publish("", postings, 0)
    assert [type(answer) for answer in late] == [TimeoutError, TimeoutError]
    sending = asyncio.create_task(channel.publish("", postings, 60))
    await asyncio.sleep(0)
    channel.confirmed(1, multiple=False, ack=False)
    channel.confirmed(4, multiple=True, ack=True)
    assert await sending == [None, None]


# --- what it costs -----------------------------------------------------------------------------


def calls_of(work: Callable[[], object]) -> int:
    """How many functions are called, C's included: the same on every machine."""
    count = 0

    def see(_: FrameType, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


RAW = frames.join(
    {
        "content_type": frames.short("application/cloudevents+json"),
        "delivery_mode": b"\x02",
        "message_id": frames.short("event-1"),
        "type": frames.short("order.placed"),
    }
)
CALLS_PER_DELIVERY = 21
CALLS_PER_PUBLISH = 16


def test_what_a_delivery_costs_is_pinned() -> None:
    one = marshalled(1, commands.Basic.Deliver(CONSUMER.decode(), 7, False, "saga.events", "k"))
    one += framed(frames.HEADER, 1, struct.pack(">HHQ", 60, 0, 900) + RAW)
    one += framed(frames.BODY, 1, bytes(900))
    taken: list[Delivery] = []

    class Taker(Nobody):
        def taker(self, channel: int, consumer_tag: bytes) -> Any:
            return taken.append

    parser = Parser(Taker())
    parser.feed(one)
    assert calls_of(partial(parser.feed, one * 100)) / 100 < CALLS_PER_DELIVERY
    assert len(taken) == 101


def test_what_a_publish_costs_is_pinned() -> None:
    postings = [Posting("order.placed.normal", RAW, bytes(900))] * 100
    frames.published(1, "saga.events", postings)
    work = partial(frames.published, 1, "saga.events", postings)
    assert calls_of(work) / 100 < CALLS_PER_PUBLISH
