"""Which fields of messages are personal: `Annotated[str, Field(...), Personal]`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from types import UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

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
            _changed(message, path, note)
    return found


def with_personal(message: M, change: Callable[[str], str]) -> M:
    """The message, with the texts in its personal fields changed; the message itself where none
    is. Nothing is validated again: a sealed text is taken wherever a clear one was."""
    whole: Any = message
    for path in personal_fields(type(message)):
        whole = _changed(whole, path, change)
    changed: M = whole
    return changed


def document_with_personal(
    kind: type[BaseModel], document: Any, change: Callable[[str], str]
) -> Any:
    """What JSON has of a message of this class, whether that is a valid one or not, with the texts
    in its personal fields changed."""
    for path in personal_fields(kind):
        document = _changed(document, path, change)
    return document


def _changed(value: Any, path: Path, change: Callable[[str], str]) -> Any:
    """`value` with what is at `path` in it changed; itself where nothing is."""
    if not path:
        return change(value) if isinstance(value, str) and value else value
    step, rest = path[0], path[1:]
    if step != EACH:
        if isinstance(value, dict):  # As JSON has it.
            return value | {step: _changed(value[step], rest, change)} if step in value else value
        if not isinstance(value, BaseModel) or step not in type(value).model_fields:
            return value  # Another one of a union.
        before = getattr(value, step)
        after = _changed(before, rest, change)
        return value if after is before else value.model_copy(update={step: after})
    if isinstance(value, dict):
        pairs = {key: _changed(each, rest, change) for key, each in value.items()}
        return value if all(pairs[key] is value[key] for key in pairs) else pairs
    if isinstance(value, list | tuple | set | frozenset):
        parts = [_changed(each, rest, change) for each in value]
        same = all(a is b for a, b in zip(parts, value, strict=True))
        return value if same else type(value)(parts)
    return value
