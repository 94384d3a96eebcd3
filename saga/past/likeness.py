"""When two recorded sagas are in the same state but for names, and when a state is of a kind.

Ids, texts and times are renamed, in the order in which they come up; of times only their order is
kept. Numbers stay what they are, and so do the words that a type lists, as an enum does, and those
that the saga's code names: reactions decide by these. One that decides by what a text begins with,
how long it is, or how much time has passed may yet tell apart what is alike here.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from enum import Enum
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from saga.choreography import State
from saga.course import words_in
from saga.declaration import Saga

Shape = tuple[str, ...]
"""What a state is, without values that tell one subject from another: `field=value` each."""


def words_of(saga: Saga) -> frozenset[str]:
    """The texts that the types of messages list, and those that the saga's code names."""
    participants = saga.choreography.participants
    kinds = {kind for p in participants for kind in (*p.messages, *p.by_message)}
    annotations = (f.annotation for kind in kinds for f in kind.model_fields.values())
    listed = frozenset().union(*map(words_in, annotations))
    functions = [reaction.function for p in participants for reaction in p.reactions]
    functions += [invariant.function for invariant in saga.invariants]
    functions += [outside.ask for outside in saga.outside]
    states = (kind for p in participants for kind in p.states)
    modules = {sys.modules.get(each.__module__) for each in (*functions, *kinds, *states)}
    named = (_texts_in(each) for each in (*functions, *filter(None, modules)))
    return listed.union(*named)


def _texts_in(value: Any, module: str = "") -> Iterator[str]:
    """The texts that are named in code: in a function, a class or a module."""
    match value:
        case str():
            yield value
        case tuple() | frozenset():
            for each in value:
                yield from _texts_in(each, module)
        case CodeType():
            yield from _texts_in(value.co_consts)
        case FunctionType():
            yield from _texts_in(value.__code__)
        case property() if isinstance(value.fget, FunctionType):
            yield from _texts_in(value.fget)
        case ModuleType():
            for each in vars(value).values():
                if not isinstance(each, ModuleType):
                    yield from _texts_in(each, value.__name__)
        case type() if value.__module__ == module:
            for each in vars(value).values():
                inner = getattr(each, "__func__", each)
                if not isinstance(inner, type):
                    yield from _texts_in(inner, module)


class Renaming:
    """Renames what is in values, the same in the same way. One for each saga that is compared."""

    def __init__(self, words: Collection[str], now: datetime) -> None:
        self._words = words
        self._texts: dict[str, int] = {}
        self._times: dict[datetime, int] = {now: 0}

    def of(self, value: Any) -> Hashable:
        """The value with other names."""
        match value:
            case None | bool() | Enum():
                return value
            case str():
                return value if value in self._words else ("text", self._number(value))
            case UUID():
                return "text", self._number(str(value))
            case datetime():
                return "time", self._times.setdefault(value, len(self._times))
            case BaseModel():
                read = (self.of(getattr(value, name)) for name in type(value).model_fields)
                return type(value), tuple(read)
            case State():
                read = (self.of(getattr(value, field.name)) for field in fields(value))
                return type(value), tuple(read)
            case Mapping():
                return tuple((self.of(key), self.of(each)) for key, each in value.items())
            case list() | tuple():
                return tuple(map(self.of, value))
            case set() | frozenset():
                return tuple(self.of(each) for each in sorted(value, key=repr))
            case _:
                return repr(value)

    def order(self) -> tuple[int, ...]:
        """The order of all times that came up, now among them."""
        return tuple(number for _, number in sorted(self._times.items()))

    def _number(self, text: str) -> int:
        return self._texts.setdefault(text, len(self._texts))


_NAMES: Final[dict[type[State], Sequence[str]]] = {}
"""Keyed by kind: the fields that tell what a state is."""


def shape_of(state: State) -> Shape:
    """What a state is, apart from its values."""
    kind = type(state)
    names = _NAMES.get(kind)
    if names is None:
        own = (field.name for field in fields(kind) if field.name not in ("key", "sequence"))
        names = _NAMES[kind] = tuple(own)
    found = ((name, _said(getattr(state, name))) for name in names)
    return tuple(f"{name}={said}" for name, said in found if said is not None)


def _said(value: Any) -> str | None:
    match value:
        case None:
            return "nothing"
        case Enum():
            return str(value.value)
        case bool():
            return str(value).lower()
        case tuple() | frozenset() | list():
            return "some" if value else "none"
        case _:
            return None
