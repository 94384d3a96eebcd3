"""Which fields of messages are personal: `Annotated[str, Field(...), Personal]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from saga.personal.seal import SEALED_PATTERN, sealed

M = TypeVar("M", bound=BaseModel)

EACH: Final = "*"
"""The step of a path that stands for every element of a tuple, or every value of a mapping."""

Path = tuple[str, ...]


class Personal:
    """Marks a text that identifies a person: a name, an address.

    Stands after the type's other constraints, which say what is taken in clear:
    `Annotated[str, Field(max_length=128), Personal]`. A sealed text is taken besides, whatever
    they say; what stands after the mark is asked of both.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        clear = handler(source)

        def clear_or_sealed(value: Any, in_clear: core_schema.ValidatorFunctionWrapHandler) -> Any:
            if type(value) is str and sealed(value):
                return value
            return in_clear(value)

        return core_schema.no_info_wrap_validator_function(clear_or_sealed, clear)

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        clear = handler(schema)
        return {"anyOf": [clear, {"type": "string", "pattern": SEALED_PATTERN}]}


@cache
def personal_fields(kind: type[BaseModel]) -> tuple[Path, ...]:
    """The paths to a class's personal fields, through nested models, tuples and mappings; `EACH`
    stands for every element of one."""
    return tuple(dict.fromkeys(_in_model(kind, ())))


def _in_model(kind: type[BaseModel], open_: tuple[type, ...]) -> Iterator[Path]:
    if kind in open_:
        raise TypeError(
            f"{kind.__name__} contains itself, so its personal fields have no end of paths; "
            f"take the mark out, or the class apart"
        )
    for name, field in kind.model_fields.items():
        if any(each is Personal for each in field.metadata):
            yield (name,)
        else:
            for path in _in_type(field.annotation, (*open_, kind)):
                yield (name, *path)


def _in_type(annotation: Any, open_: tuple[type, ...]) -> Iterator[Path]:
    """The paths within a value of this type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner, *marks = arguments
        if Personal in marks:
            yield ()
        else:
            yield from _in_type(inner, open_)
    elif origin in (Union, UnionType):
        for each in arguments:
            yield from _in_type(each, open_)
    elif origin is not None:
        for each in arguments:
            for path in _in_type(each, open_):
                yield (EACH, *path)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in open_ and not _marked(annotation):
            return
        yield from _in_model(annotation, open_)


def _marked(kind: type[BaseModel]) -> bool:
    """Whether a class has a personal field of its own; one that contains itself and has none is no
    matter."""
    return any(Personal in field.metadata for field in kind.model_fields.values())


def personal_values(message: BaseModel) -> list[str]:
    """The texts in a message's personal fields, sealed or in clear; an empty one tells nothing, and
    is none of them."""
    found: list[str] = []

    def note(value: str) -> str:
        found.append(value)
        return value

    for path in personal_fields(type(message)):
        if len(path) == 1:  # As most are.
            value = getattr(message, path[0])
            if isinstance(value, str) and value:
                found.append(value)
        else:
            changed_at(message, path, note)
    return found


def personal_state_fields(kind: type) -> tuple[Path, ...]:
    """The same of a state, a dataclass: the paths to its personal fields."""
    state: Any = kind
    return _in_state(state)


@cache
def _in_state(kind: Any) -> tuple[Path, ...]:
    hints = get_type_hints(kind, include_extras=True)
    return tuple(
        (field.name, *path) for field in fields(kind) for path in _in_type(hints[field.name], ())
    )


def values_in_state(state: Any) -> list[str]:
    """The texts in a state's personal fields, sealed or in clear, but for empty ones."""
    found: list[str] = []

    def note(value: str) -> str:
        found.append(value)
        return value

    for name, *path in personal_state_fields(type(state)):
        changed_at(getattr(state, name), tuple(path), note)
    return found


def with_personal(message: M, change: Callable[[str], str]) -> M:
    """The message, with the texts in its personal fields changed; the message itself where none
    is. Nothing is validated again: a sealed text is taken wherever a clear one was."""
    whole: Any = message
    update: dict[str, str] = {}
    for path in personal_fields(type(message)):
        if len(path) == 1 and isinstance(before := getattr(message, path[0]), str):  # As most are.
            if before and (after := change(before)) is not before:
                update[path[0]] = after
        else:
            whole = changed_at(whole, path, change)
    changed: M = whole.model_copy(update=update) if update else whole
    return changed


def document_with_personal(
    kind: type[BaseModel], document: Any, change: Callable[[str], str]
) -> Any:
    """What JSON has of a message of this class, whether that is a valid one or not, with the texts
    in its personal fields changed."""
    for path in personal_fields(kind):
        document = changed_at(document, path, change)
    return document


def changed_at(value: Any, path: Path, change: Callable[[str], str]) -> Any:
    """`value` with what is at `path` in it changed; itself where nothing is. What JSON has there
    in the place of a text is no value of the field, and may hold names in any of its texts."""
    if not path:
        return changed_texts(value, change)
    step, rest = path[0], path[1:]
    if step != EACH:
        if isinstance(value, dict):  # As JSON has it.
            return value | {step: changed_at(value[step], rest, change)} if step in value else value
        if not isinstance(value, BaseModel) or step not in type(value).model_fields:
            return value  # Another one of a union.
        before = getattr(value, step)
        after = changed_at(before, rest, change)
        return value if after is before else value.model_copy(update={step: after})
    if isinstance(value, dict):
        pairs = {key: changed_at(each, rest, change) for key, each in value.items()}
        return value if all(pairs[key] is value[key] for key in pairs) else pairs
    if isinstance(value, list | tuple | set | frozenset):
        parts = [changed_at(each, rest, change) for each in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    return value


def changed_texts(value: Any, change: Callable[[str], str]) -> Any:
    """A JSON value with each text in it changed, but for the empty ones, which tell nothing, and
    the names of an object's members."""
    if isinstance(value, str):
        return change(value) if value else value
    if isinstance(value, dict):
        return {name: changed_texts(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [changed_texts(each, change) for each in value]
    return value
