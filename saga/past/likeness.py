"""When two recorded sagas are in the same state but for names, and when a state is of a kind.

Ids, texts and times are renamed, in the order in which they come up; of times only their order is
kept. Numbers stay what they are, and so do the words that a type lists, as an enum does: reactions
decide by these.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from enum import Enum
from typing import Any, Final
from uuid import UUID

from pydantic import BaseModel

from saga.choreography import Choreography, State
from saga.course import words_in

Shape = tuple[str, ...]
"""What a state is, without values that tell one subject from another: `field=value` each."""


def words_of(graph: Choreography) -> frozenset[str]:
    """The texts that the types of messages list."""
    kinds = {kind for p in graph.participants for kind in (*p.messages, *p.by_message)}
    annotations = (f.annotation for kind in kinds for f in kind.model_fields.values())
    return frozenset().union(*map(words_in, annotations))


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
