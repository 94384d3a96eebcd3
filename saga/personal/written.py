"""How programs write a text within another one, and what such a text says in plain letters.

`Needle` looks for one text in bytes, in each of these ways; `Plain` undoes them all in a text, so
that many values are looked for at once.
"""

from __future__ import annotations

import html
import re
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from typing import Final

PERCENT: Final = "%(?:25){0,4}"
"""Before two hexadecimal digits of a byte, in a URL, or in one within others."""
EQUALS: Final = "=(?:3[dD]){0,4}"
"""The same in quoted-printable."""
AMPERSAND: Final = "&(?:amp;){0,4}"
"""Before the name or the number of a character, in HTML, or in HTML within HTML."""
FURTHER: Final = r"\\{0,7}"
"""Further backslashes: a text may be escaped again wherever it is quoted."""
BACKSLASHES: Final = rf"\\{FURTHER}"

_HEX: Final = "[0-9a-fA-F]"
_LINE_ENDS: Final = f"{BACKSLASHES}[nrt]"
_WAYS: Final = {
    "percent": f"(?:{PERCENT}{_HEX}{{2}})+",
    "quoted": f"(?:{EQUALS}{_HEX}{{2}}){{2,}}",
    "code": rf"{BACKSLASHES}(?:U{_HEX}{{8}}|[ux]\{{{_HEX}{{1,8}}\}})",
    "units": f"(?:(?:{BACKSLASHES}[uU]|%u){_HEX}{{4}})+",
    "bytes": f"(?:{BACKSLASHES}(?:[xX]{_HEX}{{2}}|[0-3][0-7]{{2}}))+",
    "entity": f"{AMPERSAND}(?:#[0-9]{{1,8}}|#[xX]{_HEX}{{1,8}}|[A-Za-z][A-Za-z0-9]{{1,31}});?",
    "escaped": rf"{BACKSLASHES}[^\w\s\\]",
    "blank": rf"(?:{_LINE_ENDS}|[ \t\r\n_+]){{2,}}|{_LINE_ENDS}|[\t\r\n_+]",
    "doubled": "''|\"\"",
    "letters": r"[^\x00-\x7f]+",
}
"""Keyed by what is done about it: parts of a text that may say something else in plain letters."""
_BEGINS: Final = r"(?=[%=\\&+_\t\r\n\x80-\U0010ffff'\" ])"
"""How each of these begins: most places in a text are passed by quickly."""
_WRITTEN: Final = re.compile(
    f"{_BEGINS}(?:{'|'.join(f'(?P<{name}>{way})' for name, way in _WAYS.items())})"
)
_ANY: Final = re.compile(r"[%=\\&+_\t\r\n\x80-\U0010ffff]|''|\"\"|  ")
"""Without any of these, nothing in a text is `_WRITTEN`."""
_PERCENTS: Final = re.compile(f"{PERCENT}(?={_HEX}{{2}})")
_EQUALS: Final = re.compile(f"{EQUALS}(?={_HEX}{{2}})")
_AMPERSANDS: Final = re.compile(AMPERSAND)
_UNIT: Final = re.compile(f"(?<=[uU]){_HEX}{{4}}")
_BYTE: Final = re.compile(rf"(?P<octal>(?<=\\)[0-3][0-7]{{2}})|(?P<hex>(?<=[xX]){_HEX}{{2}})")
_BLANKS: Final = re.compile(r"[\s_+]+")

WORD_BEGINS: Final = r"(?<!\w)"
WORD_ENDS: Final = r"(?![\w\u0300-\u036f])"
"""Of plain letters: a mark belongs to the letter before it."""


def plain_letters(text: str) -> str:
    """A text without the difference between capitals and small letters, its letters and their
    marks apart, and one blank where there are some."""
    return _BLANKS.sub(" ", unicodedata.normalize("NFD", text.casefold()).lower())


def is_plain_ascii(text: str) -> bool:
    """Whether a text differs from its plain letters by capitals at most."""
    return _ANY.search(text) is None


class Plain:
    """What a text says in plain letters, once everything that may be an escape is undone."""

    def __init__(self, text: str) -> None:
        self._text = text
        self.letters = _WRITTEN.sub(_meant, text).lower()
        """As `plain_letters` has them; of two escapes, blanks may follow each other."""

    def place(self, start: int, end: int) -> tuple[int, int]:
        """Where in the text that part of `letters` is written. Of an escape, all of it."""
        return self._place(start)[0], self._place(end - 1)[1]

    def _place(self, at: int) -> tuple[int, int]:
        begins, written = self._pieces
        number = bisect_right(begins, at) - 1
        start, end, is_even = written[number]
        if is_even:
            start += at - begins[number]
            return start, start + 1
        return start, end

    @cached_property
    def _pieces(self) -> tuple[list[int], list[tuple[int, int, bool]]]:
        """Where each piece begins in `letters`; and in the text, where it begins and ends, and
        whether it has as many characters there."""
        begins: list[int] = []
        written: list[tuple[int, int, bool]] = []
        at = 0
        for start, end, letters in self._parts():
            begins.append(at)
            written.append((start, end, letters == end - start))
            at += letters
        return begins, written

    def _parts(self) -> Iterator[tuple[int, int, int]]:
        """Where each piece is in the text, and how many characters it has in `letters`."""
        last = 0
        for found in _WRITTEN.finditer(self._text):
            if found.start() > last:
                yield last, found.start(), found.start() - last
            if length := len(_meant(found)):
                yield found.start(), found.end(), length
            last = found.end()
        if last < len(self._text):
            yield last, len(self._text), len(self._text) - last


def _meant(found: re.Match[str]) -> str:
    """What a part of a text says in plain letters; its own, where it says nothing else."""
    part = found[0]
    match found.lastgroup:
        case "percent":
            said = _of_bytes(_PERCENTS.sub("", part))
        case "quoted":
            said = _in_utf_8(_EQUALS.sub("", part)) or part
        case "bytes":
            said = _of_bytes("".join(map(_digits_of, _BYTE.finditer(part))))
        case "units":
            said = bytes.fromhex("".join(_UNIT.findall(part))).decode("utf-16-be", "replace")
        case "code":
            code = int(part.strip("\\uUx{}"), 16)
            said = chr(code) if code <= sys.maxunicode else part
        case "entity":
            said = html.unescape(f"&{_AMPERSANDS.sub('', part)}")
        case "escaped" | "doubled":
            said = part[-1]
        case "blank":
            return " "
        case _:
            said = part
    return plain_letters(said)


def _digits_of(byte: re.Match[str]) -> str:
    return f"{int(byte['octal'], 8):02x}" if byte["octal"] else byte["hex"]


def _of_bytes(digits: str) -> str:
    """Bytes, which are UTF-8, or else Latin-1."""
    data = bytes.fromhex(digits)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _in_utf_8(digits: str) -> str:
    """Bytes with more than ASCII in UTF-8; empty where they are none: `=ad` may begin a name."""
    data = bytes.fromhex(digits)
    try:
        return "" if data.isascii() else data.decode()
    except UnicodeDecodeError:
        return ""
