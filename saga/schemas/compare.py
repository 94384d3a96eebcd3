"""Whether everything one schema allows to be written can be read by another.

Understands the JSON Schema that pydantic makes of messages. What it cannot compare it calls a
problem, never fine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from saga.personal.seal import SEALED_PATTERN

Schema = Mapping[str, Any]

_LOWER: Final = ("minimum", "exclusiveMinimum", "minLength", "minItems")
_UPPER: Final = ("maximum", "exclusiveMaximum", "maxLength", "maxItems")
_SAME: Final = ("pattern", "format", "multipleOf", "uniqueItems")
_ANNOTATIONS: Final = {
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "default",
    "deprecated",
    "description",
    "examples",
    "title",
}
_COMPARED: Final = {
    *_LOWER,
    *_UPPER,
    *_SAME,
    "$ref",
    "additionalProperties",
    "anyOf",
    "const",
    "enum",
    "items",
    "properties",
    "required",
    "type",
}


def _may_be_sealed(part: Schema) -> bool:
    """Whether a part takes a sealed text beside one in clear; see `saga.personal.marks`."""
    return any(choice.get("pattern") == SEALED_PATTERN for choice in part.get("anyOf", ()))


def unreadable(writer: Schema, reader: Schema, *, defaults_written: bool) -> list[str]:
    """What the writer's schema allows and the reader's refuses, by field; nothing if all can be
    read.

    `defaults_written` says that the writer leaves out no field that has a default, unless that is
    null. A field that the reader does not know is none of its concern.
    """
    comparison = _SchemaComparison(writer, reader, defaults_written)
    return list(dict.fromkeys(comparison.problems(writer, reader, "")))


class _SchemaComparison:
    def __init__(self, writer: Schema, reader: Schema, defaults_written: bool) -> None:
        self._writer = writer
        self._reader = reader
        self._defaults_written = defaults_written
        self._open: list[tuple[Any, Any]] = []

    def problems(self, writer: Schema, reader: Schema, at: str) -> Iterator[str]:
        """Everything between these two parts of the schemas; `at` is the field they are about."""
        names = writer.get("$ref"), reader.get("$ref")
        if names in self._open:  # A part that contains itself.
            return
        if all(names):
            self._open.append(names)
        yield from self._resolved_problems(
            _resolved(writer, self._writer), _resolved(reader, self._reader), at
        )
        if all(names):
            self._open.remove(names)

    def _resolved_problems(self, writer: Schema, reader: Schema, at: str) -> Iterator[str]:
        here = at or "the message"
        if strange := _strange(writer, reader):
            yield f"{here}: {', '.join(sorted(strange))} cannot be compared"
        elif "anyOf" in writer:
            # Nothing is sealed before the release that reads it is out: `PERSONAL` is off.
            in_clear = _may_be_sealed(writer) and not _may_be_sealed(reader)
            for choice in writer["anyOf"]:
                if not (in_clear and choice.get("pattern") == SEALED_PATTERN):
                    yield from self.problems(choice, reader, at)
        elif "anyOf" in reader:
            tried = [list(self.problems(writer, choice, at)) for choice in reader["anyOf"]]
            if all(tried):
                yield from min(tried, key=len)
        elif _values(reader) is not None:
            yield from _value_problems(writer, reader, here)
        elif "type" in reader:
            yield from self._typed(writer, reader, at)

    def _typed(self, writer: Schema, reader: Schema, at: str) -> Iterator[str]:
        here = at or "the message"
        kinds = writer.get("type"), reader["type"]
        if kinds[0] != kinds[1] and kinds != ("integer", "number"):
            yield f"{here}: is {kinds[0] or 'anything'}, where {kinds[1]} is read"
            return
        yield from _limit_problems(writer, reader, here)
        if kinds[1] == "array" and "items" in reader:
            yield from self.problems(writer.get("items", {}), reader["items"], f"{at}[]")
        if kinds[1] == "object":
            yield from self._fields(writer, reader, at)

    def _fields(self, writer: Schema, reader: Schema, at: str) -> Iterator[str]:
        written, read = writer.get("properties", {}), reader.get("properties", {})
        always = {*writer.get("required", ())}
        if self._defaults_written:
            always |= {name for name, part in written.items() if part.get("default") is not None}
        for name in (name for name in read if name in written):
            yield from self.problems(written[name], read[name], _field(at, name))
        for name in reader.get("required", ()):
            if name not in always:
                left_out = "may be left out" if name in written else "is not there"
                yield f"{_field(at, name)}: {left_out}, where it is required"
        others = reader.get("additionalProperties", True)
        if others is False and (unknown := written.keys() - read.keys()):
            yield f"{at or 'the message'}: {', '.join(sorted(unknown))} not allowed"
        elif isinstance(others, Mapping):
            for name in (name for name in written if name not in read):
                yield from self.problems(written[name], others, _field(at, name))
            more = writer.get("additionalProperties", True)
            more = more if isinstance(more, Mapping) else {}
            yield from self.problems(more, others, _field(at, "*"))


def _field(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _strange(writer: Schema, reader: Schema) -> set[str]:
    """The keywords that cannot be compared, and are not the same."""
    return {
        name
        for name in (writer.keys() | reader.keys()) - _COMPARED - _ANNOTATIONS
        if writer.get(name) != reader.get(name) or "$ref" in str(reader[name])
    }


def _resolved(part: Schema, root: Schema) -> Schema:
    while "$ref" in part:
        part = root["$defs"][part["$ref"].removeprefix("#/$defs/")]
    return part


def _values(part: Schema) -> list[Any] | None:
    """The values a part is limited to."""
    if "const" in part:
        return [part["const"]]
    values: list[Any] | None = part.get("enum")
    return values


def _value_problems(writer: Schema, reader: Schema, here: str) -> Iterator[str]:
    read = _values(reader) or []
    written = _values(writer)
    if written is None:
        yield f"{here}: may be anything, where one of {_listed(read)} is read"
    elif unknown := [value for value in written if value not in read]:
        yield f"{here}: may be {_listed(unknown)}, which is not known"


def _limit_problems(writer: Schema, reader: Schema, here: str) -> Iterator[str]:
    if _values(writer) is not None and (limits := reader.keys() & {*_LOWER, *_UPPER, *_SAME}):
        yield f"{here}: a list of values cannot be compared with {', '.join(sorted(limits))}"
        return
    for names, wider in ((_LOWER, float.__lt__), (_UPPER, float.__gt__)):
        for name in names:
            if name in reader and (
                name not in writer or wider(float(writer[name]), float(reader[name]))
            ):
                said = f"is {writer[name]}" if name in writer else "is not set"
                yield f"{here}: {name} {said}, where {reader[name]} is read"
    for name in _SAME:
        if name in reader and writer.get(name) != reader[name]:
            said = f"is {writer[name]}" if name in writer else "is not set"
            yield f"{here}: {name} {said}, where {reader[name]} is read"


def _listed(values: list[Any]) -> str:
    return ", ".join(map(repr, values))
