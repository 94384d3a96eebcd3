"""Whether what one schema allows can be read by another: each kind of change, in each direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel, ConfigDict, Field, create_model

from saga.schemas.compare import unreadable

Schema = dict[str, Any]


class Line(BaseModel):
    sku: str


class FinerLine(BaseModel):
    sku: Annotated[str, Field(max_length=8)]


class Node(BaseModel):
    name: str
    children: list[Node]


class WiderNode(BaseModel):
    name: str | int
    children: list[WiderNode]


class Cat(BaseModel):
    kind: Literal["cat"]


class Dog(BaseModel):
    kind: Literal["dog"]


def schema(**fields: Any) -> Schema:
    model: type[BaseModel] = create_model("M", **fields)
    return model.model_json_schema()


Pet = Annotated[Cat | Dog, Field(discriminator="kind")]
NEEDED, LEFT_OUT = ..., None

# What is released, what it is now, whether the release reads what is published now, whether what
# the release published is read now.
CHANGES: dict[str, tuple[Schema, Schema, bool, bool]] = {
    "nothing": (schema(a=(int, ...)), schema(a=(int, ...)), True, True),
    "a field is new": (schema(), schema(a=(int, ...)), True, False),
    "a field with a default is new": (schema(), schema(a=(int, 0)), True, True),
    "a field that may be null is new": (schema(), schema(a=(int | None, None)), True, True),
    "a field is gone": (schema(a=(int, ...)), schema(), False, True),
    "a field with a default is gone": (schema(a=(int, 0)), schema(), True, True),
    "a field has another name": (schema(a=(int, ...)), schema(b=(int, ...)), False, False),
    "a field is needed now": (schema(a=(int | None, None)), schema(a=(int, ...)), True, False),
    "a field may be null now": (schema(a=(int, ...)), schema(a=(int | None, None)), False, True),
    "a default is gone": (schema(a=(int, 0)), schema(a=(int, ...)), True, True),
    "another type": (schema(a=(int, ...)), schema(a=(str, ...)), False, False),
    "a wider type": (schema(a=(int, ...)), schema(a=(float, ...)), False, True),
    "a narrower type": (schema(a=(float, ...)), schema(a=(int, ...)), True, False),
    "one more choice of types": (schema(a=(int, ...)), schema(a=(int | str, ...)), False, True),
    "a value is new": (
        schema(a=(Literal["x", "y"], ...)),
        schema(a=(Literal["x", "y", "z"], ...)),
        False,
        True,
    ),
    "a value is gone": (
        schema(a=(Literal["x", "y"], ...)),
        schema(a=(Literal["x"], ...)),
        True,
        False,
    ),
    "any text instead of a value": (
        schema(a=(Literal["x"], ...)),
        schema(a=(str, ...)),
        False,
        True,
    ),
    "a higher maximum": (
        schema(a=(int, Field(le=5))),
        schema(a=(int, Field(le=9))),
        False,
        True,
    ),
    "a higher minimum": (
        schema(a=(int, Field(ge=5))),
        schema(a=(int, Field(ge=9))),
        True,
        False,
    ),
    "no maximum": (schema(a=(int, Field(le=5))), schema(a=(int, ...)), False, True),
    "another pattern": (
        schema(a=(str, Field(pattern="^a$"))),
        schema(a=(str, Field(pattern="^b$"))),
        False,
        False,
    ),
    "more items": (
        schema(a=(list[int], Field(max_length=5))),
        schema(a=(list[int], Field(max_length=9))),
        False,
        True,
    ),
    "items of another kind": (
        schema(a=(list[Line], ...)),
        schema(a=(list[FinerLine], ...)),
        True,
        False,
    ),
    "entries of another kind": (
        schema(a=(dict[str, int], ...)),
        schema(a=(dict[str, float], ...)),
        False,
        True,
    ),
    "further fields are forbidden": (
        schema(a=(int, ...)),
        create_model("M", __config__=ConfigDict(extra="forbid"), a=(int, ...)).model_json_schema(),
        True,
        True,
    ),
    "a part of itself is wider": (
        Node.model_json_schema(),
        WiderNode.model_json_schema(),
        False,
        True,
    ),
    "other words": (
        schema(a=(int, Field(description="one"))),
        schema(a=(int, Field(description="two"))),
        True,
        True,
    ),
    "the same, of a kind that cannot be compared": (
        schema(a=(Annotated[int, Field(json_schema_extra={"odd": 1})], ...)),
        schema(a=(Annotated[int, Field(json_schema_extra={"odd": 1})], ...)),
        True,
        True,
    ),
    "of a kind that cannot be compared": (
        schema(a=(Annotated[int, Field(json_schema_extra={"odd": 1})], ...)),
        schema(a=(Annotated[int, Field(json_schema_extra={"odd": 2})], ...)),
        False,
        False,
    ),
    "choices that cannot be compared": (
        schema(a=(Pet, ...)),
        schema(a=(Pet, ...)),
        False,
        False,
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_judged_for_old_readers_and_for_old_messages(change: str) -> None:
    released, now, new_is_read, old_is_read = CHANGES[change]

    forward = unreadable(now, released, defaults_written=True)
    backward = unreadable(released, now, defaults_written=True)

    assert (forward == [], backward == []) == (new_is_read, old_is_read), (forward, backward)


def test_a_field_that_others_may_leave_out_is_not_required_later() -> None:
    released, now = schema(a=(int, 0)), schema(a=(int, ...))

    assert unreadable(released, now, defaults_written=True) == []
    assert unreadable(released, now, defaults_written=False) == [
        "a: may be left out, where it is required"
    ]


def test_a_problem_names_the_field_wherever_it_lies() -> None:
    class Order(BaseModel):
        first: Line
        lines: list[Line]

    class FinerOrder(BaseModel):
        first: FinerLine
        lines: list[FinerLine]

    problems = unreadable(
        Order.model_json_schema(), FinerOrder.model_json_schema(), defaults_written=True
    )

    assert problems == [
        "first.sku: maxLength is not set, where 8 is read",
        "lines[].sku: maxLength is not set, where 8 is read",
    ]


# Against a validator that was written by others.

NAMES = ("a", "b", "c")
WORDS = ("x", "yy", "zzz")


def limited(kind: str, lower: str, upper: str) -> st.SearchStrategy[Schema]:
    return st.fixed_dictionaries(
        {"type": st.just(kind)},
        optional={lower: st.integers(0, 2), upper: st.integers(2, 4)},
    )


FAMILIES: dict[str, st.SearchStrategy[Schema]] = {
    "integer": limited("integer", "minimum", "maximum"),
    "number": limited("number", "exclusiveMinimum", "exclusiveMaximum"),
    "string": st.one_of(
        limited("string", "minLength", "maxLength"),
        st.builds(
            lambda values: {"type": "string", "enum": values},
            st.lists(st.sampled_from(WORDS), min_size=1, unique=True),
        ),
        st.builds(lambda word: {"type": "string", "const": word}, st.sampled_from(WORDS)),
    ),
    "null": st.just({"type": "null"}),
}
leaves = st.one_of(*FAMILIES.values())


def objects(parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    return st.builds(
        lambda properties, required: {
            "type": "object",
            "properties": properties,
            "required": [name for name in properties if name in required],
        },
        st.dictionaries(st.sampled_from(NAMES), parts, max_size=3),
        st.sets(st.sampled_from(NAMES)),
    )


def compound(parts: st.SearchStrategy[Schema]) -> st.SearchStrategy[Schema]:
    arrays = st.builds(
        lambda items, limits: {"type": "array", "items": items, **limits},
        parts,
        st.fixed_dictionaries(
            {}, optional={"minItems": st.integers(0, 1), "maxItems": st.integers(1, 2)}
        ),
    )
    choices = st.builds(lambda options: {"anyOf": options}, st.lists(parts, min_size=2, max_size=2))
    return st.one_of(arrays, choices, objects(parts))


schemas = objects(st.recursive(leaves, compound, max_leaves=4))


@st.composite
def document(draw: st.DrawFn, of: Mapping[str, Any]) -> Any:
    """Something the schema allows."""
    if "anyOf" in of:
        return draw(document(draw(st.sampled_from(of["anyOf"]))))
    if "const" in of:
        return of["const"]
    if "enum" in of:
        return draw(st.sampled_from(of["enum"]))
    match of["type"]:
        case "null":
            return None
        case "integer":
            return draw(st.integers(of.get("minimum", -9), of.get("maximum", 9)))
        case "number":
            low, high = of.get("exclusiveMinimum", -9), of.get("exclusiveMaximum", 9)
            return high - 0.5 if high - 0.5 > low else None
        case "string":
            least = of.get("minLength", 0)
            return draw(st.text("xyz", min_size=least, max_size=of.get("maxLength", 9)))
        case "array":
            items = document(of["items"])
            least = of.get("minItems", 0)
            return draw(st.lists(items, min_size=least, max_size=of.get("maxItems", 3)))
        case _:
            return {
                name: draw(document(part))
                for name, part in of["properties"].items()
                if name in of["required"] or draw(st.booleans())
            }


@settings(max_examples=250)
@for_all(data=st.data(), writer=schemas)
def test_what_is_found_readable_is_accepted_by_a_validator(
    data: st.DataObject, writer: Schema
) -> None:
    written = data.draw(document(writer))
    if not Draft202012Validator(writer).is_valid(written):
        return  # Limits that leave nothing between them.
    reader = data.draw(akin(writer))

    if not unreadable(writer, reader, defaults_written=False):
        assert Draft202012Validator(reader).is_valid(written)
    assert unreadable(writer, writer, defaults_written=False) == []


@st.composite
def akin(draw: st.DrawFn, schema: Schema) -> Schema:
    """A schema much like another: a few limits, values, fields or choices differ."""
    if draw(st.integers(0, 9)) == 0:
        return draw(leaves)
    if "anyOf" in schema:
        return {"anyOf": draw(st.permutations([draw(akin(part)) for part in schema["anyOf"]]))}
    match schema["type"]:
        case "object":
            return {
                "type": "object",
                "properties": {n: draw(akin(part)) for n, part in schema["properties"].items()},
                "required": draw(st.sampled_from([[], schema["required"], list(NAMES)])),
            }
        case "array":
            return {**schema, "items": draw(akin(schema["items"]))}
        case kind:
            return draw(st.one_of(st.just(schema), FAMILIES[kind]))
