"""Values that may have been, where no event has recorded them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import product
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ValidationError

from saga.message import Command
from saga.past.part import RecordedPart

COMMANDS_MAX: Final = 32
"""Contents of one command from outside that are tried."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_ONES: Final[Mapping[Any, Any]] = {
    str: "x",
    int: 1,
    float: 1.0,
    Decimal: Decimal(1),
    bytes: b"x",
    datetime: _EPOCH,
    date: _EPOCH.date(),
    time: time(tzinfo=UTC),
    timedelta: timedelta(seconds=1),
    UUID: UUID(int=1),
}
"""A value of each plain type."""


def samples(annotation: Any) -> tuple[Any, ...]:
    """A few values of a type: all of what it lists, or any one. None if it is no plain type, nor
    one made of plain ones."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return _models(annotation)
    if annotation is bool:
        return False, True
    if annotation in (None, NoneType):
        return (None,)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return arguments
    if origin is Annotated:
        return samples(arguments[0])
    if origin in (Union, UnionType):
        return tuple(value for argument in arguments for value in samples(argument))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return ({},)
    if origin is tuple:
        if arguments[-1:] == (...,):
            return ((), *((value,) for value in samples(arguments[0])[:1]))
        ones = [samples(argument) for argument in arguments]
        return (tuple(one[0] for one in ones),) if all(ones) else ()
    if isinstance(origin, type) and issubclass(origin, frozenset | set | list | Sequence):
        made: Any = origin if origin in (frozenset, set, list) else tuple
        return (made(), *(made([value]) for value in samples(arguments[0])[:1]))
    return (_ONES[annotation],) if annotation in _ONES else ()


def _models(kind: type[BaseModel]) -> tuple[BaseModel, ...]:
    values = {n: samples(f.annotation) for n, f in kind.model_fields.items() if f.is_required()}
    if not all(values.values()):
        return ()
    try:
        return (kind(**{name: few[0] for name, few in values.items()}),)
    except (ValidationError, TypeError, ValueError):
        return ()


def another(value: Any) -> Any:
    """A value of the same type, if it is of a plain one; None if there is none."""
    match value:
        case bool() | Enum():
            return None
        case str():
            return f"{value}x"
        case int() | float() | Decimal():
            return value + 1
        case datetime() | date():
            return value + timedelta(days=1)
        case timedelta():
            return value + timedelta(seconds=1)
        case time():
            return value.replace(hour=(value.hour + 1) % 24)
        case UUID():
            return UUID(int=value.int ^ 1)
        case bytes():
            return value + b"x"
        case _:
            return None


def commands(
    part: RecordedPart, at: int, kind: type[Any]
) -> Iterator[tuple[Command, frozenset[str]]]:
    """Commands of that kind which may have led to a participant's own event of that number: with
    what the event has under the same names, and in what else they hold, each with the names of
    that, whatever there is."""
    events = part.own[at : at + part.together(at)]
    given: dict[str, Any] = {}
    choices: dict[str, Sequence[Any]] = {}
    for name, info in kind.model_fields.items():
        told = (e.envelope.data for e in events if hasattr(e.envelope.data, name))
        if (data := next(told, None)) is not None:
            given[name] = getattr(data, name)
            continue
        first: tuple[Any, ...] = ()
        if not info.is_required():
            first = (info.get_default(call_default_factory=True),)
        elif (value := _of_subject(info.annotation, part.subject)) is not None:
            first = (value,)
        choices[name] = tuple({repr(v): v for v in (*first, *samples(info.annotation))}.values())
    hidden = frozenset(choices)
    for number, values in enumerate(product(*choices.values())):
        if number == COMMANDS_MAX:
            return
        try:
            command = kind(**given, **dict(zip(choices, values, strict=True)))
            if command.subject == part.subject:
                yield command, hidden
        except (ValidationError, TypeError, ValueError):
            continue


def _of_subject(annotation: Any, subject: str) -> Any:
    """The subject as a value of that type; None if it is none."""
    try:
        return UUID(subject) if annotation is UUID else subject if annotation is str else None
    except ValueError:
        return None
