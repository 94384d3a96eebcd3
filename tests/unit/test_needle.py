"""A text is found in whatever bytes it is written."""

from __future__ import annotations

import base64
import secrets

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saga.errors import InputError
from saga.personal import needle
from saga.personal.needle import (
    CHARACTERS_MAX,
    CHARACTERS_MIN,
    CHUNK_BYTES,
    OVERLAP_BYTES,
    Needle,
)
from tests.spellings import ENCODINGS, FORMS, spellings

NAMES = (
    "Zoë O'Neil-Ünsal",
    "ada.lovelace@example.org",
    "田中 太郎さん",
    'Smile 😀 "x" \\y',
    "Straße & Søn <a/b>",
    "\ufa48\u212b and 각하",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_is_found_in_every_encoding_of_every_form(name: str) -> None:
    looking = Needle(name)

    missed = [
        spelling
        for spelling, written in spellings(name)
        if not looking.find_in([b"before \x00\x01" + written + b"\x07 after"]).count
    ]

    assert not missed
    assert len(ENCODINGS) * len(FORMS) > 100  # There was something to find.


def test_a_text_is_found_over_the_borders_of_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needle, "CHUNK_BYTES", 2_000)
    monkeypatch.setattr(needle, "OVERLAP_BYTES", 1_000)
    looking = Needle(NAMES[0])

    for spelling, written in spellings(NAMES[0]):
        for first in (len(written) // 3, len(written) // 2):
            data = b"\xff" * (2_000 - first) + written + b"\xff" * 5_000
            assert looking.find_in([data]).count, spelling
            assert looking.find_in([data[i : i + 7] for i in range(0, len(data), 7)]).count


def test_what_is_repeated_in_the_next_piece_is_counted_once() -> None:
    looking = Needle("Ada Lovelace")
    data = bytes(1_000) + b"Ada Lovelace" + bytes(CHUNK_BYTES + 100) + b"\xffAda Lovelace\xff"

    assert looking.find_in([data]).count == 2


def test_a_name_of_others_is_not_found() -> None:
    looking = Needle("Ada Lovelace")
    others = b"Ada Lovelac, da Lovelace, Adam Lovelace, AdaLovelace, Ada, Lovelace"

    assert not looking.find_in([others, base64.b64encode(others), others.hex().encode()]).count


def test_noise_holds_no_name() -> None:
    assert not Needle("Ada Lovelace").find_in([secrets.token_bytes(1 << 18)]).count
    noise = base64.b64encode(secrets.token_bytes(1 << 18))
    assert not Needle("Ada Lovelace").find_in([noise, noise.hex().encode()]).count


def test_the_encodings_are_named() -> None:
    written = b"Ada Lovelace " + "Ada Lovelace".encode("utf-16-le") + b" "

    found = Needle("Ada Lovelace").find_in([written, base64.b64encode(b"my Ada Lovelace!!")])

    assert dict(found.encodings) == {"text": 1, "UTF-16": 1, "base64 of text": 1}


def test_white_space_is_any_white_space() -> None:
    looking = Needle("  Ada \n Lovelace ")

    for written in ("Ada\tLovelace", "Ada\r\n Lovelace", "Ada\u00a0Lovelace", r"Ada\nLovelace"):
        assert looking.find_in([written.encode()]).count == 1, written


@pytest.mark.parametrize("text", ["", "Ada", "x" * (CHARACTERS_MAX + 1)])
def test_a_text_that_would_be_found_by_chance_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=f"{CHARACTERS_MIN} to {CHARACTERS_MAX}"):
        Needle(text)


def test_the_longest_text_fits_into_what_pieces_share() -> None:
    longest = max(
        (
            len(written)
            for char in "é田😀'"
            for _, written in spellings((char + "a") * (CHARACTERS_MAX // 2))
        ),
    )

    assert longest < OVERLAP_BYTES // 4


@settings(max_examples=30)
@given(
    st.text(st.characters(exclude_categories=["C", "Z", "M"]), min_size=CHARACTERS_MIN, max_size=8),
    st.sampled_from(sorted(ENCODINGS)),
    st.binary(max_size=50),
)
def test_any_text_is_found_in_any_encoding(text: str, encoding: str, before: bytes) -> None:
    written = ENCODINGS[encoding](text)
    # What stands before an even number of digits may be one as well, or a number.
    ahead = before.rstrip(b"0123456789,") + b" "

    assert Needle(text).find_in([ahead + written]).count
