"""Text that others wrote: what is taken of it, and how it is shown.

A terminal obeys escape sequences, changes of direction turn a line round, and XML has no way to
write most control characters. New names and ids may hold none of these. But older events do, and so
does whatever others publish, so everything that shows a text shows what `harmless` makes of it.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from html import escape  # noqa: TID251  # in_xml
from typing import Any, Final

_OBEYED: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Unicode's categories of control and format characters, lone surrogates, and line ends."""
_JOINERS: Final = "\u200c\u200d"
"""Words of Persian and of languages of India are written with them, and emoji are."""


def is_plain(text: str) -> bool:
    """Whether nothing in the text is obeyed by what shows it, or hides in it."""
    return text.isprintable() or all(
        unicodedata.category(char) not in _OBEYED or _joins(text, place)
        for place, char in enumerate(text)
    )


def plain(text: str) -> str:
    """The text, if it is plain. Raises ValueError, which names the first character that is not."""
    if is_plain(text):
        return text
    odd = next(
        place
        for place, char in enumerate(text)
        if unicodedata.category(char) in _OBEYED and not _joins(text, place)
    )
    name = unicodedata.name(text[odd], "a control character")
    raise ValueError(
        f"character {odd + 1} is U+{ord(text[odd]):04X} ({name}); leave control and format "
        f"characters out"
    )


def is_utf_8(text: str) -> bool:
    """Whether the text can be written in UTF-8. One that came in another encoding, as an argument
    or a variable, has lone surrogates for the bytes that Python could not read."""
    return text.isascii() or not any("\ud800" <= char <= "\udfff" for char in text)


def harmless(text: str, *, lines: bool = False) -> str:
    """A text with what is not printed in it spelt out: control characters, escape sequences,
    changes of direction. `lines` leaves line ends as they are."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable()
        or unicodedata.category(char) == "Zs"
        or (lines and char == "\n")
        or _joins(text, place)
        else char.encode("unicode_escape").decode()
        for place, char in enumerate(text)
    )


def in_xml(text: str) -> str:
    """A text as SVG and HTML can hold it, in an element or an attribute."""
    return escape(harmless(text, lines=True))


def first_line(function: Callable[..., Any]) -> str:
    """What a function says of itself first; its name, if it says nothing."""
    said = (function.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(said.split()) or function.__name__.replace("_", " ")


def _joins(text: str, place: int) -> bool:
    """Whether that is a joiner in its place, after a letter that is shown as it is; in an id, one
    would only hide."""
    if text[place] not in _JOINERS or place == 0:
        return False
    before = text[place - 1]
    return before.isprintable() and not before.isascii()
