"""The envelope: what is written is read again, by us and by others, and nothing else is."""

from __future__ import annotations

import contextlib
import json
from datetime import datetime, timedelta, timezone
from typing import Any, ClassVar
from uuid import UUID

import pytest
from cloudevents.core.bindings.rabbitmq import (
    RabbitMQMessage,
    from_rabbitmq_event,
    to_structured_event,
)
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given as for_all
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from saga.envelope import (
    CONTENT_TYPE,
    Attributes,
    Decoder,
    Envelope,
    Undecodable,
    derived_id,
    schema_uri,
    source_of,
    trace_of,
    w3c_trace,
    wrap,
)
from saga.limits import BODY_MAX_BYTES, SEQUENCE_MAX, TEXT_MAX_BYTES
from saga.message import Command, Event, Priority
from saga.testing import NOW
from saga.text import is_plain
from tests.utterances import EVENTS, begins, events, moments
from tests.words import Begin, Begun, Cancelled, Part, Voided

THING = UUID("0b9f8f0e-5d3c-4c59-9a53-0d5b5d2f7a11")
DECODER = Decoder([*EVENTS, Begin])

BEGUN = Begun(
    thing=THING,
    who="ada",
    parts=(Part(name="pen", count=2, size=150),),
    total=300,
    priority=Priority.HIGH,
    deadline=NOW,
)


def wrapped(message: Event | Command, **others: Any) -> Envelope[Any]:
    return wrap(
        message,
        **{
            "id": "id-1",
            "source": source_of("starter"),
            "time": NOW,
            "priority": Priority.HIGH,
            **others,
        },
    )


def body_with(*, without: str = "", data: dict[str, Any] | None = None, **fields: Any) -> bytes:
    """A good body with something changed."""
    document: dict[str, Any] = json.loads(wrapped(BEGUN).to_bytes())
    document["data"].update(data or {})
    document.update(fields)
    document.pop(without, None)
    return json.dumps(document).encode()


def part(**fields: Any) -> dict[str, Any]:
    """Data whose one part has something changed."""
    return {"parts": [{"name": "pen", "count": 2, "size": 150, **fields}]}


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=255).filter(
    lambda text: len(text.encode()) <= TEXT_MAX_BYTES
)


def envelopes_of(
    messages: SearchStrategy[Event] | SearchStrategy[Begin], ids: SearchStrategy[str]
) -> SearchStrategy[Envelope[Any]]:
    return st.builds(
        wrapped,
        messages,
        id=ids,
        time=moments,
        priority=st.sampled_from(Priority),
        causation=st.none() | ids,
        sequence=st.none() | st.integers(1, SEQUENCE_MAX),
        taken_at=st.none() | moments,
        attempt=st.integers(1, 100),
    )


envelopes = envelopes_of(events, texts) | envelopes_of(begins, texts.filter(is_plain))


def test_no_two_events_have_the_same_name() -> None:
    assert len({kind.type for kind in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.type)
@for_all(data=st.data())
def test_every_event_is_read_as_it_was_written(kind: type[Event], data: st.DataObject) -> None:
    envelope = wrapped(data.draw(EVENTS[kind]))

    assert DECODER.decode(envelope.to_bytes()) == envelope


@for_all(envelope=envelopes)
def test_every_envelope_is_read_as_it_was_written(envelope: Envelope[Any]) -> None:
    assert DECODER.decode(envelope.to_bytes()) == envelope


def test_a_command_that_leaves_out_what_has_a_default_is_read() -> None:
    command = Begin(thing=THING, who="ada", parts=BEGUN.parts)
    document = json.loads(wrapped(command).to_bytes())
    for field in ("priority", "limit_seconds"):
        del document["data"][field]

    assert DECODER.decode(json.dumps(document).encode()).data == command


def test_the_envelope_says_what_it_is_about_and_why() -> None:
    envelope = wrapped(BEGUN, causation="id-0", sequence=7)

    document = json.loads(envelope.to_bytes())
    del document["data"]
    assert document == {
        "specversion": "1.0",
        "id": "id-1",
        "source": "/services/starter",
        "type": "thing.begun",
        "subject": str(THING),
        "time": "2030-01-01T00:00:00.000000Z",
        "datacontenttype": "application/json",
        "dataschema": "urn:order-saga:thing.begun:1",
        "correlationid": str(THING),
        "causationid": "id-0",
        "priority": "high",
        "sequence": 7,
        "traceparent": trace_of(str(THING), "id-1"),
    }
    assert envelope.routing_key == "thing.begun.high"


def test_what_is_not_known_is_left_out() -> None:
    document = json.loads(wrapped(Voided(thing=THING)).to_bytes())

    assert "causationid" not in document
    assert "sequence" not in document


def test_times_travel_in_utc() -> None:
    summer = timezone(timedelta(hours=2))
    envelope = wrapped(BEGUN, time=datetime(2030, 6, 1, 12, 30, tzinfo=summer))

    assert json.loads(envelope.to_bytes())["time"] == "2030-06-01T10:30:00.000000Z"


@for_all(envelope=envelopes)
def test_the_official_sdk_reads_what_we_write(envelope: Envelope[Any]) -> None:
    body = envelope.to_bytes()

    theirs = from_rabbitmq_event(RabbitMQMessage({}, CONTENT_TYPE, body))

    attributes = theirs.get_attributes()
    assert theirs.get_time() == envelope.time
    written = json.loads(body)
    assert theirs.get_data() == written.pop("data")
    assert {**attributes, "time": None} == {**written, "time": None}


@for_all(envelope=envelopes)
def test_we_read_what_the_official_sdk_writes(envelope: Envelope[Any]) -> None:
    attributes = json.loads(envelope.to_bytes())
    data = attributes.pop("data")
    theirs = to_structured_event(CloudEvent({**attributes, "time": envelope.time}, data))

    assert theirs.content_type == CONTENT_TYPE
    assert DECODER.decode(theirs.body) == envelope


UNDECODABLE: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "malformed", "not JSON"),
    "not UTF-8": (b'{"id": "\xff"}', "malformed", "not JSON"),
    "cut short": (wrapped(BEGUN).to_bytes()[:-1], "malformed", "not JSON"),
    "a lone surrogate": (body_with(id="\ud800"), "malformed", "not JSON"),
    "too deep": (b"[" * 10_000, "malformed", "not JSON"),
    "a list": (b"[]", "malformed", "not an object"),
    "a string": (b'"thing.begun"', "malformed", "not an object"),
    "null": (b"null", "malformed", "not an object"),
    "an object, but no CloudEvent": (b"{}", "malformed", "not a CloudEvents 1.0"),
    "a CloudEvent of the future": (body_with(specversion="2.0"), "malformed", "CloudEvents 1.0"),
    "too large": (body_with(more="x" * BODY_MAX_BYTES), "too_large", str(BODY_MAX_BYTES)),
    "unknown type": (body_with(type="thing.lost"), "unknown_type", "'thing.lost'"),
    "no type": (body_with(without="type"), "unknown_type", "None"),
    "a list for a type": (body_with(type=["thing.begun"]), "unknown_type", "thing.begun"),
    "an object for a type": (body_with(type={"thing": "begun"}), "unknown_type", "thing"),
    "newer version": (
        body_with(dataschema="urn:order-saga:thing.begun:99"),
        "unknown_version",
        "thing.begun:99.*upgrade",
    ),
    "no version": (body_with(without="dataschema"), "unknown_version", "None"),
    "a list for a version": (body_with(dataschema=[1]), "unknown_version", r"\[1\]"),
    "another type's version": (
        body_with(dataschema=schema_uri(Cancelled)),
        "unknown_version",
        "thing.cancelled:1",
    ),
    "no data": (body_with(without="data"), "invalid", "data: Field required"),
    "data that is no object": (
        json.dumps({**json.loads(body_with()), "data": [1]}).encode(),
        "invalid",
        "data: Input should be an object",
    ),
    "no id": (body_with(without="id"), "invalid", "id: Field required"),
    "an empty id": (body_with(id=""), "invalid", "id: "),
    "a long id": (body_with(id="x" * 256), "invalid", "id: "),
    "a number for an id": (body_with(id=5), "invalid", "id: "),
    "a time without a zone": (body_with(time="2030-01-01T00:00:00"), "invalid", "time: "),
    "a number for a time": (body_with(time=1893456000), "invalid", "time: "),
    "unknown priority": (body_with(priority="urgent"), "invalid", "priority: "),
    "sequence 0": (body_with(sequence=0), "invalid", "sequence: "),
    "binary data": (body_with(datacontenttype="image/png"), "invalid", "datacontenttype: "),
    "null for a name": (
        body_with(data={"who": None}),
        "invalid",
        "data.who: Input should be a valid string",
    ),
    "count as text": (body_with(data=part(count="3")), "invalid", "data.parts.0.count: "),
    "count as a fraction": (body_with(data=part(count=2.5)), "invalid", "count: "),
    "count as a float": (body_with(data=part(count=2.0)), "invalid", "count: "),
    "count as a truth": (body_with(data=part(count=True)), "invalid", "count: "),
    "negative count": (body_with(data=part(count=-2)), "invalid", "greater than or equal"),
    "no count": (body_with(data=part(count=0)), "invalid", "greater than or equal"),
    "huge count": (body_with(data=part(count=10_001)), "invalid", "less than or equal"),
    "endless count": (body_with(data=part(count=float("inf"))), "malformed", "not JSON"),
    "negative size": (body_with(data=part(size=-1)), "invalid", "size: "),
    "bad name": (body_with(data=part(name="../pen")), "invalid", "data.parts.0.name: "),
    "a name with a line break": (
        body_with(data=part(name="pen\n")),
        "invalid",
        "data.parts.0.name: ",
    ),
    "no parts": (body_with(data={"parts": []}), "invalid", "data.parts: "),
    "too many parts": (
        body_with(data={"parts": part()["parts"] * 101}),
        "invalid",
        "data.parts: .*at most 100",
    ),
    "empty name": (body_with(data={"who": ""}), "invalid", "data.who: "),
    "a wrong total": (
        body_with(data={"total": 299}),
        "invalid",
        "total is 299, but the parts add up to 300",
    ),
    "a deadline without a zone": (
        body_with(data={"deadline": "2030-01-01T00:00:00"}),
        "invalid",
        "data.deadline: ",
    ),
    "an id of a thing that is none": (body_with(data={"thing": "17"}), "invalid", "data.thing: "),
    "another thing's subject": (
        body_with(subject=str(UUID(int=1))),
        "invalid",
        f"subject .* does not match the data's '{THING}'",
    ),
}


@pytest.mark.parametrize(("body", "reason", "detail"), UNDECODABLE.values(), ids=UNDECODABLE.keys())
def test_anything_else_is_undecodable_for_a_stated_reason(
    body: bytes, reason: str, detail: str
) -> None:
    with pytest.raises(Undecodable, match=detail) as error:
        DECODER.decode(body)
    assert error.value.reason == reason


@for_all(body=st.binary(max_size=200))
def test_no_body_makes_the_decoder_fail_in_another_way(body: bytes) -> None:
    with pytest.raises(Undecodable):
        DECODER.decode(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@for_all(
    field=st.sampled_from([*json.loads(wrapped(BEGUN, sequence=1).to_bytes()), "causationid"]),
    value=json_values,
)
def test_no_field_makes_the_decoder_fail_in_another_way(field: str, value: object) -> None:
    document = {**json.loads(wrapped(BEGUN).to_bytes()), field: value}
    with contextlib.suppress(Undecodable):
        DECODER.decode(json.dumps(document).encode())


def test_the_attributes_are_read_whatever_the_data_are() -> None:
    attributes = Attributes.of(body_with(type="parcel.lost", dataschema="x", data={"a": 1}))

    assert (attributes.type, attributes.subject) == ("parcel.lost", str(THING))
    assert attributes.routing_key == "parcel.lost.high"


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"\xff", body_with(without="source")])
def test_attributes_that_are_none_are_undecodable(body: bytes) -> None:
    with pytest.raises(Undecodable) as error:
        Attributes.of(body)
    assert error.value.reason == "malformed"


def test_a_rejected_value_is_not_repeated() -> None:
    with pytest.raises(Undecodable) as error:
        DECODER.decode(body_with(data={"who": "very private " * 20}))
    assert "private" not in str(error.value)


def test_the_largest_body_is_read_and_one_byte_more_is_not() -> None:
    room = BODY_MAX_BYTES - len(body_with(more=""))

    assert DECODER.decode(body_with(more="x" * room)).data == BEGUN
    with pytest.raises(Undecodable, match="limit"):
        DECODER.decode(body_with(more="x" * (room + 1)))


def test_a_type_nobody_here_reacts_to_is_unknown_here() -> None:
    with pytest.raises(Undecodable) as error:
        Decoder([Cancelled]).decode(wrapped(BEGUN).to_bytes())
    assert error.value.reason == "unknown_type"


@pytest.mark.parametrize(
    "body",
    [
        body_with(tenant="blue", knativearrivaltime="2030-01-01T00:00:00Z"),
        body_with(data={"gift_wrap": True, **part(colour="green")}),
    ],
    ids=["in the envelope", "in the data"],
)
def test_fields_a_newer_writer_learned_are_ignored(body: bytes) -> None:
    assert DECODER.decode(body) == wrapped(BEGUN)


class ParcelSent(Event):
    """The newest version."""

    type: ClassVar[str] = "parcel.sent"
    version: ClassVar[int] = 3

    parcel: str
    weight_grams: int
    fragile: bool

    @property
    def subject(self) -> str:
        return self.parcel


class ParcelSentV2(Event):
    type: ClassVar[str] = "parcel.sent"
    version: ClassVar[int] = 2

    parcel: str
    weight_grams: int

    @property
    def subject(self) -> str:
        return self.parcel

    def upcast(self) -> Event:
        return ParcelSent(parcel=self.parcel, weight_grams=self.weight_grams, fragile=False)


class ParcelSentV1(Event):
    type: ClassVar[str] = "parcel.sent"
    version: ClassVar[int] = 1

    parcel: str
    weight_kilograms: int

    @property
    def subject(self) -> str:
        return self.parcel

    def upcast(self) -> Event:
        return ParcelSentV2(parcel=self.parcel, weight_grams=self.weight_kilograms * 1_000)


NEWEST = ParcelSent(parcel="p-1", weight_grams=2_000, fragile=False)


@pytest.mark.parametrize(
    "written",
    [
        ParcelSentV1(parcel="p-1", weight_kilograms=2),
        ParcelSentV2(parcel="p-1", weight_grams=2_000),
        NEWEST,
    ],
    ids=lambda event: f"version {event.version}",
)
def test_an_event_of_any_version_is_read_as_the_newest(written: Event) -> None:
    envelope = wrapped(written, causation="id-0", sequence=4)

    read = Decoder([ParcelSent]).decode(envelope.to_bytes())

    assert read.data == NEWEST
    assert read.dataschema == "urn:order-saga:parcel.sent:3"
    assert read.model_copy(update={"data": written, "dataschema": envelope.dataschema}) == envelope


class Fetch(Command):
    type: ClassVar[str] = "parcel.fetch"
    version: ClassVar[int] = 2
    senders: ClassVar[tuple[str, ...]] = ("desk",)

    parcel: str
    floors: int

    @property
    def subject(self) -> str:
        return self.parcel


class FetchV1(Command):
    type: ClassVar[str] = "parcel.fetch"
    senders: ClassVar[tuple[str, ...]] = ("desk",)

    parcel: str

    @property
    def subject(self) -> str:
        return self.parcel

    def upcast(self) -> Command:
        return Fetch(parcel=self.parcel, floors=0)


def test_a_command_that_participants_send_is_upcast_like_an_event() -> None:
    read = Decoder([Fetch]).decode(wrapped(FetchV1(parcel="a")).to_bytes())

    assert read.data == Fetch(parcel="a", floors=0)
    assert read.dataschema == schema_uri(Fetch)


def test_an_upcast_event_can_be_written_again() -> None:
    old = wrapped(ParcelSentV1(parcel="p-1", weight_kilograms=2))
    decoder = Decoder([ParcelSent])

    read = decoder.decode(old.to_bytes())

    assert decoder.decode(read.to_bytes()) == read


def test_a_step_done_again_gives_the_same_id_on_any_machine() -> None:
    assert derived_id("cause", "step") == "447b4667-84b6-52bd-a2d3-4e2f1de357c1"


@for_all(cause=st.text(), step=st.text())
def test_ids_differ_by_cause_and_step(cause: str, step: str) -> None:
    ids = {derived_id(cause, step), derived_id(cause + "x", step), derived_id(cause, step + "x")}

    assert len(ids) == 3
    assert all(UUID(id_).version == 5 for id_ in ids)


def test_all_messages_about_one_subject_share_a_trace_and_each_is_a_span() -> None:
    first, second = trace_of("thing-1", "id-1"), trace_of("thing-1", "id-2")

    assert first.split("-")[1] == second.split("-")[1]
    assert first.split("-")[2] != second.split("-")[2]
    assert first.split("-")[1] != trace_of("thing-2", "id-1").split("-")[1]


@for_all(subject=st.text(), span=st.text())
def test_a_trace_is_a_valid_w3c_traceparent(subject: str, span: str) -> None:
    trace = trace_of(subject, span)
    assert w3c_trace(trace) == trace


def test_a_given_trace_is_kept() -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    assert DECODER.decode(wrapped(BEGUN, traceparent=traceparent).to_bytes()).traceparent == (
        traceparent
    )


def test_a_traceparent_that_is_none_is_left_out() -> None:
    assert DECODER.decode(body_with(traceparent="00-0-0-0")).traceparent is None
