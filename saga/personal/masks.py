"""What is personal in messages as they are kept: of any version of their types, valid or not.

Events from before anything was sealed name people in clear, and are never changed. So whatever
shows the data of messages asks `Masks` what in them is marked as personal, and `Hidden` masks the
same values where others repeat them: states, the texts of errors, a line that sums them up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Final

from saga.limits import json_of
from saga.message import Command, Event, versions_of
from saga.personal.marks import EACH, Path, changed_at, changed_texts, personal_fields
from saga.personal.seal import PREFIX, masked_in, sealed, shown
from saga.text import harmless

HIDDEN_MAX: Final = 2_000
"""Values that are hidden at a time: of what is beyond them, nothing is shown at all."""

Change = Callable[[str], str]


class Masks:
    """Knows the personal fields of some types of messages, in each of their versions."""

    def __init__(self, kinds: Iterable[type[Event] | type[Command]]) -> None:
        """`kinds` are the newest versions."""
        self._paths: dict[str, tuple[Path, ...]] = {}
        for kind in kinds:
            versions = versions_of(kind).values()
            paths = (path for version in versions for path in personal_fields(version))
            # A body may say one version and be another, so that those of all are looked at.
            self._paths[kind.type] = tuple(dict.fromkeys((*self._paths.get(kind.type, ()), *paths)))

    @property
    def names(self) -> frozenset[str]:
        """What personal fields are called: a state that is folded from messages calls them the
        same."""
        return frozenset(
            next(step for step in reversed(path) if step != EACH)
            for paths in self._paths.values()
            for path in paths
        )

    def changed(self, type_: Any, data: Any, change: Change) -> Any:
        """The data of a message of this type with the texts in its personal fields changed. Of a
        type that is unknown here, any text may be one."""
        paths = self._paths.get(type_) if isinstance(type_, str) else None
        if paths is None or (paths and not isinstance(data, dict)):
            return changed_texts(data, change)
        for path in paths:
            data = changed_at(data, path, change)
        return data

    def values_in(self, type_: Any, data: Any) -> frozenset[str]:
        """The personal texts in the data of a message of this type; none, if that is unknown."""
        found: set[str] = set()

        def note(value: str) -> str:
            found.add(value)
            return value

        if isinstance(type_, str) and type_ in self._paths:
            self.changed(type_, data, note)
        return frozenset(found)

    def values_of(self, body: bytes) -> frozenset[str]:
        """The personal texts in the body of a message; none, if it is no JSON."""
        try:
            document = json_of(body)
        except ValueError:
            return frozenset()
        if not isinstance(document, dict):
            return frozenset()
        return self.values_in(document.get("type"), document.get("data"))


class Hidden:
    """Masks some values wherever they stand in texts, and sealed values besides."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = frozenset(value for value in values if value and not sealed(value))
        self._beyond = len(self._values) > HIDDEN_MAX

    @cached_property
    def _any(self) -> re.Pattern[str] | None:
        """What finds any of the values: made once it is needed, which is seldom."""
        longest_first = sorted(self._values, key=lambda value: (-len(value), value))
        return _any_of(longest_first) if self._values else None

    def and_of(self, values: Iterable[str]) -> Hidden:
        """The same, with more values."""
        more = {*values} - self._values
        return Hidden(self._values | more) if more else self

    def text(self, text: str) -> str:
        """A text for people: values stand in it as words, in clear or as JSON or Python quote
        them."""
        if self._beyond:
            return "…"
        if self._any is not None:
            text = self._any.sub(lambda found: shown(found[0]), text)
        return masked_in(text)

    def document(self, value: Any) -> Any:
        """A JSON document for programs: sealed values stay as they are, which says nothing."""
        if isinstance(value, str):
            return self._clear_in(value)
        if isinstance(value, Mapping):
            return {name: self.document(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(each) for each in value]
        return value

    def _clear_in(self, text: str) -> str:
        if self._any is None or (text.startswith(PREFIX) and sealed(text)):
            return text
        return "…" if self._beyond else self._any.sub(lambda found: shown(found[0]), text)


def _any_of(values: Iterable[str]) -> re.Pattern[str]:
    forms = dict.fromkeys(form for value in values for form in _forms(value))
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)")


def _forms(value: str) -> Iterable[str]:
    """The texts that a value may stand as in an error or a document."""
    yield value
    yield harmless(value)
    yield repr(value)[1:-1]
    yield ascii(value)[1:-1]
    yield json.dumps(value)[1:-1]
