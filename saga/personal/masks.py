"""What is personal in messages as they are kept: of any version of their types, valid or not.

Events from before anything was sealed name people in clear, and are never changed. So whatever
shows the data of messages asks `Masks` what in them is marked as personal, and `Hidden` masks the
same values where others repeat them: states, the texts of errors, a line that sums them up.
"""

from __future__ import annotations

import json
import re
from binascii import a2b_base64
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cached_property
from itertools import chain
from typing import Any, Final

from saga.limits import json_of
from saga.message import Command, Event, versions_of
from saga.personal.marks import EACH, Path, changed_at, changed_texts, personal_fields
from saga.personal.seal import PREFIX, masked_in, sealed, shown
from saga.personal.written import WORD_BEGINS, WORD_ENDS, Plain, is_plain_ascii, plain_letters
from saga.text import harmless

HIDDEN_MAX: Final = 2_000
"""Values that are hidden at a time: of what is beyond them, nothing is shown at all."""

BASE64_MIN_CHARACTERS: Final = 8
"""A shorter run is a word."""
LAYERS_MAX: Final = 2
"""How often base64 is decoded, one around the other."""

Change = Callable[[str], str]
_Place = tuple[int, int, str]
"""Where in a text something begins and ends that is masked, and what is shown instead."""


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

    @cached_property
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

    def changed_anywhere(self, document: Any, change: Change) -> Any:
        """A JSON value of no known type, with the texts changed that stand, at any depth, under a
        name that any of the types gives a personal field."""
        if isinstance(document, list):
            return [self.changed_anywhere(each, change) for each in document]
        if not isinstance(document, dict):
            return document
        return {
            name: changed_texts(each, change)
            if name in self.names
            else self.changed_anywhere(each, change)
            for name, each in document.items()
        }

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
    """Masks some values wherever they stand in texts, however they are written there, and sealed
    values besides."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        self._values = frozenset(value for value in values if value and not sealed(value))
        self._beyond = len(self._values) > HIDDEN_MAX

    @cached_property
    def _sought(self) -> _Sought:
        """What finds any of the values: made once it is needed, which is seldom."""
        return _Sought(self._values)

    def __bool__(self) -> bool:
        """Whether there is anything to hide, but for sealed values."""
        return bool(self._values)

    def and_of(self, values: Iterable[str]) -> Hidden:
        """The same, with more values."""
        more = {*values} - self._values
        return Hidden(self._values | more) if more else self

    def text(self, text: str) -> str:
        """A text for people: values stand in it as words, in capitals or not, and in clear or as
        JSON, Python, HTML, URLs and base64 write them."""
        if self._beyond:
            return "…"
        if self._values:
            text = self._sought.masked(text)
        return masked_in(text)

    def document(self, value: Any) -> Any:
        """A JSON document for programs: sealed values stay as they are, which says nothing."""
        if not self._values:
            return value
        if isinstance(value, str):
            return self._clear_in(value)
        if isinstance(value, Mapping):
            return {name: self.document(each) for name, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.document(each) for each in value]
        return value

    def _clear_in(self, text: str) -> str:
        if text.startswith(PREFIX) and sealed(text):
            return text
        return "…" if self._beyond else self._sought.masked(text)


def without_names(text: str, names: Collection[str]) -> str:
    """A text without these values of the message that it is about."""
    return Hidden(names).text(text) if names else text


class _Sought:
    """Finds any of some values in a text, as a word."""

    def __init__(self, values: Iterable[str]) -> None:
        longest_first = sorted(values, key=lambda value: (-len(value), value))
        forms = dict.fromkeys(form.lower() for value in longest_first for form in _forms(value))
        self._forms = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, forms))})(?!\w)")
        """In small letters, as programs quote a value without changing its letters."""
        self._by_letters = {plain_letters(value): value for value in reversed(longest_first)}
        letters = sorted(self._by_letters, key=len, reverse=True)
        some = "|".join(re.escape(each).replace(r"\ ", " +") for each in letters)
        self._letters = re.compile(f"{WORD_BEGINS}(?:{some}){WORD_ENDS}")
        digits = max(BASE64_MIN_CHARACTERS, min(map(len, forms)) * 4 // 3)
        self._base64 = re.compile(rf"(?<![\w+/-])[\w+/-]{{{digits},}}={{0,2}}(?![\w+/=-])", re.A)

    def masked(self, text: str) -> str:
        """The text with all values in it masked."""
        found = [*self._in_small_letters(text), *self._in_plain_letters(text)]
        found += self._in_base64(text)
        if not found:
            return text
        parts: list[str] = []
        last = 0
        for start, end, instead in sorted(found):
            if start >= last:
                parts += text[last:start], instead
            last = max(last, end)
        return "".join(parts) + text[last:]

    def _is_in(self, text: str, layers: int) -> bool:
        """Whether any of the values is in a text, within so many layers of base64."""
        found = chain(self._in_small_letters(text), self._in_plain_letters(text))
        return any(found) or (layers > 0 and any(self._in_base64(text, layers)))

    def _in_small_letters(self, text: str) -> Iterator[_Place]:
        small = text.lower()
        if len(small) != len(text):
            return  # Some letters are two then; in plain letters, these are known.
        for found in self._forms.finditer(small):
            start, end = found.span()
            yield start, end, shown(text[start:end])

    def _in_plain_letters(self, text: str) -> Iterator[_Place]:
        if is_plain_ascii(text):
            return
        plain = Plain(text)
        for found in self._letters.finditer(plain.letters):
            value = self._by_letters.get(plain_letters(found[0]), "")
            yield *plain.place(*found.span()), shown(value) or "…"

    def _in_base64(self, text: str, layers: int = LAYERS_MAX) -> Iterator[_Place]:
        """What stands alone as base64, if a value is in it."""
        runs = [(found, _decoded(found[0])) for found in self._base64.finditer(text)]
        # Together, since most of what looks like base64 is an id.
        if runs and self._is_in("\n".join(said for _, said in runs), layers - 1):
            for found, said in runs:
                if self._is_in(said, layers - 1):
                    yield *found.span(), "…"


def _decoded(run: str) -> str:
    """What a run of base64 says; empty, where it is none, or no text."""
    digits = run.rstrip("=").replace("-", "+").replace("_", "/")
    try:
        return a2b_base64(digits + "=" * (-len(digits) % 4)).decode()
    except ValueError:
        return ""


def _forms(value: str) -> Iterable[str]:
    """The texts that a value may stand as in an error or a document, its letters as they are."""
    yield value
    yield value.casefold()
    yield harmless(value)
    yield repr(value)[1:-1]
    yield ascii(value)[1:-1]
    yield json.dumps(value)[1:-1]
