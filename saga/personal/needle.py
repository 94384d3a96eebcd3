"""A clear text, and how it may be written in bytes: one search for all of it.

A text is looked for character by character, each in any of the forms that programs write it in, so
that mixtures are found as well: upper or lower case, composed or decomposed (NFC, NFD), in UTF-8,
Latin-1, or UTF-16 of either byte order, escaped as JSON, Python, C, PostgreSQL, SQL, URLs, HTML,
MIME or Erlang do. What may be base64 or hexadecimal is decoded and looked through in the same way.
"""

from __future__ import annotations

import binascii
import html.entities
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from saga.errors import InputError
from saga.personal.written import AMPERSAND, BACKSLASHES, EQUALS, PERCENT

CHARACTERS_MIN: Final = 4
"""A shorter text is found by chance in what is compressed or encoded."""
CHARACTERS_MAX: Final = 320
"""As many as the longest address has, `name@host`."""
CHUNK_BYTES: Final = 1 << 22
"""Looked through at once."""
OVERLAP_BYTES: Final = 1 << 18
"""Looked through again with the next chunk: more than the longest form of the longest text has."""
LAYERS_MAX: Final = 2
"""How many encodings, one around the other, are decoded."""

_PERCENT, _EQUALS, _AMPERSAND, _BACKSLASHES = (
    way.encode() for way in (PERCENT, EQUALS, AMPERSAND, BACKSLASHES)
)
_BROKEN: Final = rb"(?:=\r?\n|=\\r\\n|=\\n)?"
"""Where a line of quoted-printable was cut."""
_SPACE: Final = (
    rb"(?:[ \t\r\n_+\xa0]|\xc2\xa0|%(?:25){0,4}(?:20|A0|C2%(?:25){0,4}A0|a0|c2%(?:25){0,4}a0)"
    rb"|=20|=A0|=C2=A0|&nbsp;|&#(?:0*(?:32|160)|[xX]0*(?:20|[aA]0));?|"
    + _BACKSLASHES
    + rb"(?:[rnt]|u00[2aA]0|x20|xa0|xA0|040))"
    rb"{1,16}"
)
_RUNS: Final = frozenset(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/_-=?\\\r\n\t "
)
"""What may be in a run of base64 or hexadecimal, over several lines too."""
_WORD: Final = re.compile(
    rb"=\?[A-Za-z0-9*_-]{1,40}\?(?P<how>[bBqQ])\?(?P<what>[^?\s]{0,1000})\?="
    rb"(?:(?:\s|\\[rnt]){1,8}(?==\?[A-Za-z0-9*_-]{1,40}\?[bBqQ]\?))?"
)
"""An encoded word of a MIME header (RFC 2047); what is between two of them is nothing."""
_AROUND_WORDS_BYTES: Final = 4_000
"""What is looked through with an encoded word: the rest of a text may be beside it."""
_BREAKS: Final = re.compile(rb"\\[rn]|[\r\n\t ]")
_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_ENTITIES: Final[dict[str, list[str]]] = defaultdict(list)
for _name, _meaning in html.entities.html5.items():
    _ENTITIES[_meaning].append(_name)


@dataclass
class Found:
    """How often a text was found, and in which encodings."""

    count: int = 0
    encodings: Counter[str] = field(default_factory=Counter)
    """Keyed by encoding."""

    def add(self, encoding: str) -> None:
        self.count += 1
        self.encodings[encoding] += 1

    def __add__(self, other: Found) -> Found:
        return Found(self.count + other.count, self.encodings + other.encodings)


def can_be_sought(text: str) -> bool:
    """Whether a `Needle` can be made of a text."""
    return CHARACTERS_MIN <= len(" ".join(text.split())) <= CHARACTERS_MAX


class Needle:
    """A text to be looked for. Raises `InputError` for one that cannot be."""

    def __init__(self, text: str) -> None:
        given = " ".join(text.split())
        if not can_be_sought(given):
            raise InputError(
                f"the text to look for has {len(given)} characters; give one of {CHARACTERS_MIN} "
                f"to {CHARACTERS_MAX}: a shorter one is found by chance everywhere"
            )
        words = unicodedata.normalize("NFC", given)
        # Some characters are another one by NFC, and are looked for as they are, too.
        both = [_units(words)] + ([[_cases(char) for char in given]] if given != words else [])
        self._patterns = {
            "text": _one_of(map(_in_text, both)),
            "UTF-16": _one_of(
                _in_utf_16(units, order) for units in both for order in ("utf-16-le", "utf-16-be")
            ),
            "numbers": _one_of(map(_in_numbers, both)),
        }
        if (other := _in_punycode(words)) is not None:
            self._patterns["domain"] = re.compile(re.escape(other), re.IGNORECASE)
        # As many bits as the text has, in six at a time.
        digits = max(6, len(words) * 4 // 3)
        self._base64 = re.compile(
            rb"[A-Za-z0-9+/_-]{%d,}(?:(?:\\[rn]|[\r\n])+[\t ]?[A-Za-z0-9+/_-]+)*" % min(digits, 12)
        )
        self._digits = digits
        self._hex = re.compile(rb"[0-9a-fA-F]{%d,}" % (2 * len(words)))

    def find_in(self, chunks: Iterable[bytes]) -> Found:
        """Look through bytes that come in pieces. What is where two pieces meet may be counted
        twice, and is never missed."""
        found = Found()
        for window, seen in _windows(chunks):
            for encoding in self._in_window(window, seen):
                found.add(encoding)
        return found

    def _in_window(self, window: bytes, seen: int) -> Iterator[str]:
        """The encodings of what is found; of what ends among the first `seen` bytes, nothing."""
        for encoding, end in self._plainly(window):
            if end > seen:
                yield encoding
        yield from self._encoded(window, seen, LAYERS_MAX, "")

    def _plainly(self, window: bytes) -> Iterator[tuple[str, int]]:
        for encoding, pattern in self._patterns.items():
            for match in pattern.finditer(window):
                yield encoding, match.end()

    def _encoded(self, window: bytes, seen: int, layers: int, within: str) -> Iterator[str]:
        """What is found once what may be base64 or hexadecimal is decoded."""
        for name, decoded in (
            ("words", self._from_words(window, seen)),
            ("base64", self._from_base64(window, seen)),
            ("hexadecimal", self._from_hex(window, seen)),
        ):
            # Nothing is found across two of them: no form of a text has so many zeros.
            joined = bytes(16).join(decoded)
            if not joined:
                continue
            for encoding, _ in self._plainly(joined):
                yield f"{within}{name} of {encoding}"
            if layers > 1:
                yield from self._encoded(joined, 0, layers - 1, f"{within}{name} of ")

    def _from_base64(self, window: bytes, seen: int) -> Iterator[bytes]:
        """All runs together, as they read from each of their first four places on."""
        whole: list[bytes] = []
        for run in self._base64.findall(window, _begin_of_run(window, seen)):
            if _BREAKS.search(run) is None:
                if len(run) >= self._digits:
                    whole.append(run)
                continue
            run = _BREAKS.sub(b"", run)
            for place in range(4):
                yield _decoded(run[place:])
        if whole:
            # After each run, zeros: twelve bytes and more, which no form of a text has in it.
            ends = [b"A" * (16 + -length % 4) for length in range(4)]
            for place in range(4):
                padded = [run[place:] + ends[(len(run) - place) & 3] for run in whole]
                yield binascii.a2b_base64(b"".join(padded).translate(_TO_STANDARD))

    def _from_words(self, window: bytes, seen: int) -> Iterator[bytes]:
        """MIME headers whose words are encoded, if the text is only in what they say."""
        end = 0
        for match in _WORD.finditer(window) if b"=?" in window else ():
            if match.end() <= max(seen, end):
                continue
            begin = max(end, match.start() - _AROUND_WORDS_BYTES)
            end = min(match.end() + _AROUND_WORDS_BYTES, len(window))
            header = window[begin:end]
            said = _WORD.sub(_word, header)
            if len([*self._plainly(said)]) > len([*self._plainly(header)]):
                yield said

    def _from_hex(self, window: bytes, seen: int) -> Iterator[bytes]:
        for run in self._hex.findall(window, _begin_of_run(window, seen)):
            for place in range(2):
                half = run[place:]
                yield binascii.unhexlify(half[: len(half) & ~1])


def _begin_of_run(window: bytes, seen: int) -> int:
    """Where what goes on beyond the bytes that were `seen` may have begun."""
    while seen and window[seen - 1] in _RUNS:
        seen -= 1
    return seen


def _windows(chunks: Iterable[bytes]) -> Iterator[tuple[bytes, int]]:
    """Pieces that overlap, and how many bytes of each were in the one before. Of what is all zeros,
    as a file that was made before it is used, nothing."""
    tail = b""
    for piece in _of_one_size(chunks):
        if tail.strip(b"\0") or piece.strip(b"\0"):
            yield tail + piece, len(tail)
        tail = (tail + piece[-OVERLAP_BYTES:])[-OVERLAP_BYTES:]


def _of_one_size(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of `CHUNK_BYTES`, but for the last."""
    waiting: list[bytes] = []
    size = 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk)
        if size >= CHUNK_BYTES:
            whole = b"".join(waiting)
            end = size - size % CHUNK_BYTES
            for start in range(0, end, CHUNK_BYTES):
                yield whole[start : start + CHUNK_BYTES]
            waiting, size = [whole[end:]], size - end
    if size:
        yield b"".join(waiting)


def _word(match: re.Match[bytes]) -> bytes:
    """What an encoded word says."""
    if match["how"] in b"bB":
        return _decoded(match["what"].rstrip(b"="))
    return binascii.a2b_qp(match["what"], header=True)


def _decoded(run: bytes) -> bytes:
    run = _BREAKS.sub(b"", run).translate(_TO_STANDARD)
    # The last digit of a run of 4n + 1 holds six bits of a byte that is not there.
    length = len(run) - (len(run) % 4 == 1)
    return binascii.a2b_base64(run[:length] + b"=" * (-length % 4))


# --- the forms of a text ------------------------------------------------------------------------


def _units(text: str) -> list[list[str]]:
    """Keyed by character with its marks: in how many ways it is written."""
    units: list[str] = []
    for char in text:
        if units and unicodedata.combining(char):
            units[-1] += char
        else:
            units.append(char)
    return [_variants(unit) for unit in units]


def _variants(unit: str) -> list[str]:
    return list(
        dict.fromkeys(
            unicodedata.normalize(form, case) for case in _cases(unit) for form in ("NFC", "NFD")
        )
    )


def _cases(unit: str) -> list[str]:
    return list(dict.fromkeys((unit, unit.lower(), unit.upper(), unit.title(), unit.casefold())))


def _in_text(units: list[list[str]]) -> bytes:
    return _BROKEN.join(
        _SPACE if unit == [" "] else _any_of(way for form in unit for way in _ways(form))
        for unit in units
    )


def _in_utf_16(units: list[list[str]], order: str) -> bytes:
    return b"".join(_any_of(re.escape(form.encode(order)) for form in unit) for unit in units)


def _in_numbers(units: list[list[str]]) -> bytes:
    """As Erlang, Python and others print bytes that they take for no text: `65,100,97`."""
    between = rb",\s{0,80}"
    return (
        rb"(?<!\d)"
        + between.join(
            _any_of(
                between.join(b"%d" % byte for byte in form.encode(encoding, "ignore"))
                for form in unit
                for encoding in (("utf-8",) if form.isascii() else ("utf-8", "latin-1"))
                if form.encode(encoding, "ignore").decode(encoding) == form
            )
            for unit in units
        )
        + rb"(?!\d)"
    )


def _in_punycode(text: str) -> bytes | None:
    """An address whose domain has letters beyond ASCII, as DNS has it."""
    name, at, domain = text.rpartition("@")
    if not at or domain.isascii():
        return None
    try:
        return name.encode("utf-8") + b"@" + domain.encode("idna")
    except UnicodeError:
        return None


def _one_of(patterns: Iterable[bytes]) -> re.Pattern[bytes]:
    return re.compile(b"|".join(patterns))


def _any_of(ways: Iterable[bytes]) -> bytes:
    return b"(?:" + b"|".join(dict.fromkeys(ways)) + b")"


def _ways(form: str) -> Iterator[bytes]:
    """Patterns for a character with its marks. Each begins with a byte that says which it is: the
    search skips all others quickly."""
    first, marks = form[0], form[1:]
    others = b"".join(_BROKEN + _any_of(_ways_of_one(mark)) for mark in marks)
    for way in _ways_of_one(first):
        yield way + others


def _ways_of_one(char: str) -> list[bytes]:
    ways = [*_bytewise(char.encode("utf-8"))]
    if not char.isascii():
        for encoding in ("latin-1", "cp1252"):
            if one := char.encode(encoding, "ignore"):
                ways += _bytewise(one)
    code = ord(char)
    units = char.encode("utf-16-be")
    pairs = [units[i : i + 2].hex() for i in range(0, len(units), 2)]
    escaped = _BACKSLASHES
    ways.append(b"".join(escaped + b"[uU]" + _digits(pair) for pair in pairs))
    ways.append(escaped + b"(?:U0{0,4}|[ux]\\{0{0,6})" + _digits(f"{code:x}") + rb"\}?")
    ways.append(b"".join(b"%u" + _digits(pair) for pair in pairs))
    ways.append(_AMPERSAND + rb"#(?:0{0,6}%d|[xX]0{0,6}%b);?" % (code, _digits(f"{code:x}")))
    for name in _ENTITIES.get(char, ()):
        ways.append(_AMPERSAND + re.escape(name.encode()))
    if char.isascii() and not char.isalnum():
        ways.append(escaped + re.escape(char.encode()))  # before what is special, in many languages
        if char in "'\"":
            ways.append(char.encode() * 2)
    return ways


def _bytewise(encoded: bytes) -> Iterator[bytes]:
    """Bytes as they are, or each escaped."""
    yield re.escape(encoded)
    first, *rest = ([*_escaped(byte)] for byte in encoded)
    others = b"".join(
        _BROKEN + _any_of([re.escape(bytes([byte])), *ways])
        for byte, ways in zip(encoded[1:], rest, strict=True)
    )
    for way in first:
        yield way + others


def _escaped(byte: int) -> Iterator[bytes]:
    digits = _digits(f"{byte:02x}")
    yield _PERCENT + digits
    yield _EQUALS + digits
    yield _BACKSLASHES + b"(?:[xX]%b|%03o)" % (digits, byte)


def _digits(text: str) -> bytes:
    """Hexadecimal digits of either case."""
    return b"".join(
        f"[{digit.lower()}{digit.upper()}]".encode() if digit.isalpha() else digit.encode()
        for digit in text
    )
