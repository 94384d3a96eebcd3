"""What a message may hold at most is the same at every door."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from saga.envelope import Attributes, Undecodable, digest_of
from saga.history.story import HOLES_MAX, missing_numbers
from saga.limits import (
    ATTEMPT_MAX,
    INTEGER_MAX,
    NESTING_MAX,
    SEQUENCE_MAX,
    TEXT_MAX_BYTES,
    json_of,
    moment_of,
)
from tests.unit.test_envelope import BEGUN, DECODER, body_with, wrapped
from tests.words import Begin, Part

BEYOND: dict[str, bytes] = {
    "a time before 1970": body_with(time="1969-12-31T23:59:59Z"),
    "a time from 2200 on": body_with(time="2200-01-01T00:00:00Z"),
    "a time that UTC has no year for": body_with(time="9999-12-31T23:59:59-14:00"),
    "a time before the first in UTC": body_with(time="0001-01-01T00:00:00+14:00"),
    "a time of taking in the year 9999": body_with(takenat="9999-12-31T23:59:59-14:00"),
    "a sequence beyond 32 bits": body_with(sequence=SEQUENCE_MAX + 1),
    "a sequence beyond 64 bits": body_with(sequence=2**64),
    "an attempt of a million and one": body_with(attempt=ATTEMPT_MAX + 1),
    "an id of 200,000 characters": body_with(id="x" * 200_000),
    "a source of 200,000 characters": body_with(source="x" * 200_000),
    "a subject of 200,000 characters": body_with(subject="x" * 200_000),
    "a type of 200,000 characters": body_with(type="x" * 200_000),
    "an id of 255 characters and 510 bytes": body_with(id="é" * TEXT_MAX_BYTES),
    "a source of 255 characters and 1,020 bytes": body_with(source="😀" * TEXT_MAX_BYTES),
    "a cause with a NUL": body_with(causationid="a\0b"),
    "an id with a tab": body_with(id="a\tb"),
    "a number beyond 64 bits": body_with(more=INTEGER_MAX + 1),
    "a number beyond 64 bits, within": body_with(more=[{"x": [-(2**63)]}]),
    "a number of 20,000 digits": body_with().replace(b"300", b"3" * 20_000),
    "a number too large for a float": body_with(more=1).replace(b'"more": 1', b'"more": 1e999'),
    "no number": body_with(more=float("nan")),
    "arrays within arrays": body_with(more=1).replace(b"1}", b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "arrays that do not end": body_with(more=1).replace(b"1}", b"[" * 200_000),
    "objects within objects": body_with().replace(b"300", b'{"a":' * 40_000 + b"1" + b"}" * 40_000),
    "a body too large": body_with(more="x" * 262_144),
}


@pytest.mark.parametrize("body", BEYOND.values(), ids=BEYOND.keys())
def test_a_message_beyond_a_limit_is_undecodable_for_whoever_reads_it(body: bytes) -> None:
    for read in (DECODER.decode, Attributes.of):
        with pytest.raises(Undecodable) as error:
            read(body)
        assert len(str(error.value)) < 1_000


def test_a_deadline_beyond_the_limit_is_undecodable() -> None:
    with pytest.raises(Undecodable, match="deadline"):
        DECODER.decode(body_with(data={"deadline": "9999-12-31T23:59:59-14:00"}))


WITHIN: dict[str, dict[str, Any]] = {
    "the first time": {"time": "1970-01-01T00:00:00Z"},
    "the last time": {"time": "2199-12-31T23:59:59.999999Z"},
    "the highest sequence": {"sequence": SEQUENCE_MAX},
    "the longest id": {"id": "x" * TEXT_MAX_BYTES},
    "the longest id beyond ASCII": {"id": "é" * 127 + "x"},
    "the largest number": {"more": INTEGER_MAX},
    "the deepest nesting": {"more": eval("[" * (NESTING_MAX - 2) + "]" * (NESTING_MAX - 2))},  # noqa: S307 - brackets
}


@pytest.mark.parametrize("fields", WITHIN.values(), ids=WITHIN.keys())
def test_a_message_at_a_limit_is_read(fields: dict[str, Any]) -> None:
    assert DECODER.decode(body_with(**fields)).data == BEGUN
    assert Attributes.of(body_with(**fields)).type == BEGUN.type


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "1969-12-31T23:59:59+00:00",
        "9999-12-31T23:59:59-14:00",
        "0001-01-01T00:00+14",
    ],
)
def test_what_is_no_time_within_the_limits_is_none(text: str) -> None:
    assert moment_of(text) is None


def test_a_time_is_read_in_utc() -> None:
    assert moment_of("2030-01-01T01:00:00+01:00") == datetime(2030, 1, 1, tzinfo=UTC)
    assert moment_of("2030-01-01T00:00:00") == datetime(2030, 1, 1, tzinfo=UTC)


def test_json_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recursion limit|nested"):
        json_of(b"[" * 100_000)


def test_missing_numbers_are_told_without_counting_to_the_highest() -> None:
    assert list(missing_numbers([], 0)) == []
    assert list(missing_numbers([1, 2, 3], 3)) == []
    assert list(missing_numbers([2], 4)) == ["event 1", "event 3", "event 4"]
    told = list(missing_numbers([1, SEQUENCE_MAX], SEQUENCE_MAX))
    assert len(told) == HOLES_MAX + 1
    assert told[0] == "event 2"
    assert told[-1] == f"events {HOLES_MAX + 2} to {SEQUENCE_MAX - 1}"
    assert list(missing_numbers([HOLES_MAX + 2], HOLES_MAX + 2))[-1] == f"event {HOLES_MAX + 1}"


PART = Part(name="pen", count=1, size=5)


def begin(who: str = "ada", **more: Any) -> Begin:
    return Begin(thing=UUID(int=1), who=who, parts=(PART,), **more)


def test_a_command_that_is_wrapped_again_is_a_repetition_and_another_one_is_not() -> None:
    first = wrapped(begin())
    later = wrapped(begin(limit_seconds=300), time=datetime(2031, 1, 1, tzinfo=UTC))
    other = wrapped(begin("eve"))

    digests = [digest_of(envelope, envelope.to_bytes()) for envelope in (first, later, other)]

    assert digests[0] == digests[1] != digests[2]


def test_an_event_is_a_repetition_byte_for_byte() -> None:
    envelope = wrapped(BEGUN)
    body = envelope.to_bytes()

    assert digest_of(envelope, body) == digest_of(envelope, bytes(bytearray(body)))
    assert digest_of(envelope, body) != digest_of(envelope, body + b" ")


_LENGTHS = {"min_length", "max_length", "pattern"}
_CHECKS = {"Plain", "AfterValidator", "BeforeValidator", "WrapValidator"}
_ROOT = Path(__file__).parents[2]


def _name_of(node: ast.AST) -> str:
    """What is called, or named."""
    node = node.func if isinstance(node, ast.Call) else node
    return getattr(node, "id", getattr(node, "attr", ""))


def _too_late(tree: ast.AST, checked: set[str]) -> Iterator[str]:
    """The annotations in which a length stands after a check of our own, whose errors then speak of
    items. Adds the names that are given to checked ones to `checked`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and _checks(node.value, checked):
            checked |= {_name_of(target) for target in node.targets}
        if not (isinstance(node, ast.Subscript) and _name_of(node.value) == "Annotated"):
            continue
        parts = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        for place, part in enumerate(parts):
            if not isinstance(part, ast.Call):
                continue
            limits = _LENGTHS & {keyword.arg for keyword in part.keywords}
            if limits and any(_checks(earlier, checked) for earlier in parts[:place]):
                yield ast.unparse(node)


def _checks(node: ast.AST, checked: set[str]) -> bool:
    """Whether an annotation, or a part of one, has a check of our own."""
    return any(
        _name_of(each) in _CHECKS | checked
        for each in ast.walk(node)
        if isinstance(each, ast.Name | ast.Attribute)
    )


def test_a_text_that_is_too_long_is_told_about_characters_everywhere() -> None:
    found = {}
    annotated = 0
    for folder in ("saga", "common", "order_saga", "examples", "tests/errands", "tests/moving"):
        for file in sorted((_ROOT / folder).rglob("*.py")):
            tree = ast.parse(file.read_text())
            annotated += "Annotated[" in file.read_text()
            if late := [*_too_late(tree, set())]:
                found[file.name] = late
    for file in sorted(_ROOT.glob("*_service/*.py")):
        if late := [*_too_late(ast.parse(file.read_text()), set())]:
            found[file.name] = late

    assert annotated > 20
    assert found == {}


@pytest.mark.parametrize(
    "annotation",
    [
        "Key = Annotated[Annotated[str, Plain] | None, Header(max_length=128)]",
        "Key = Annotated[str, AfterValidator(plain), Field(min_length=1)]",
        "Mine = Annotated[str, Plain]\nKey = Annotated[Mine, Path(max_length=128)]",
    ],
)
def test_a_length_after_a_check_is_found(annotation: str) -> None:
    assert [*_too_late(ast.parse(annotation), set())]
