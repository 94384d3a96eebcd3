"""What is taken of a text that others wrote, and how it is shown."""

from __future__ import annotations

import unicodedata
from datetime import UTC, datetime
from uuid import UUID
from xml.etree import ElementTree

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from saga.envelope import Decoder, Undecodable, wrap
from saga.message import Command, Event, Priority
from saga.text import harmless, in_xml, is_plain, is_utf_8, plain
from tests.words import Begin, Begun, Part

PARTS = (Part(name="tea", count=1, size=250),)

NAMES = ("ada", "O'Brien", "Zoë", "山田　太郎", "علی\u200cرضا", "👩\u200d👧", "José 3", "a\u00a0b")
"""Names that people have, or write."""
OBEYED = ("\x1b", "\x9b", "\x00", "\n", "\u202e", "\u2066", "\u200b", "\u2028", "\ud800", "\ufeff")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_and_shown_as_it_is(name: str) -> None:
    assert plain(name) == name
    assert harmless(name) == name


@pytest.mark.parametrize("char", OBEYED)
def test_what_a_terminal_obeys_is_not_taken_and_the_refusal_says_where_it_is(char: str) -> None:
    with pytest.raises(ValueError, match=rf"character 3 is U\+{ord(char):04X}") as refused:
        plain(f"ad{char}a")
    assert str(refused.value).isprintable()


def test_a_joiner_that_joins_nothing_is_not_taken_and_is_shown() -> None:
    assert not is_plain("thing\u200d-1")
    assert harmless("thing\u200d-1") == "thing\\u200d-1"


@for_all(st.text())
def test_nothing_but_what_is_printed_is_shown(text: str) -> None:
    shown = harmless(text)

    odd = {char for char in shown if not char.isprintable() and char not in "\u200c\u200d"}
    assert {unicodedata.category(char) for char in odd} <= {"Zs"}
    assert harmless(shown) == shown
    assert is_plain(shown)


def test_a_joiner_after_what_is_spelt_out_is_spelt_out_as_well() -> None:
    shown = harmless("\x80\u200c")

    assert shown == "\\x80\\u200c"
    assert harmless(shown) == shown


@for_all(st.text())
def test_any_text_fits_into_xml(text: str) -> None:
    found = ElementTree.fromstring(f'<a b="{in_xml(text)}">{in_xml(text)}</a>')  # noqa: S314

    assert found.text is None or harmless(found.text, lines=True) == found.text


def test_an_argument_of_another_encoding_is_told_from_a_text() -> None:
    assert is_utf_8("Zoë 👩")
    assert not is_utf_8(b"Zo\xeb".decode(errors="surrogateescape"))


NOW = datetime(2030, 1, 1, tzinfo=UTC)


def body(message: Event | Command, id: str = "m") -> bytes:
    return wrap(message, id=id, source="/shop", time=NOW, priority=Priority.NORMAL).to_bytes()


def test_an_event_from_before_is_read_whatever_its_names_have() -> None:
    begun = Begun(
        thing=UUID(int=7),
        who="ad\u202ea",
        parts=PARTS,
        total=250,
        priority=Priority.NORMAL,
        deadline=NOW,
    )

    assert Decoder([Begun]).decode(body(begun, id="\u202e")).data == begun


@pytest.mark.parametrize(
    ("who", "id", "named"), [("ad\u202ea", "m", "who"), ("ada", "\u202e", "id")]
)
def test_a_command_with_a_name_that_a_terminal_obeys_is_refused(
    who: str, id: str, named: str
) -> None:
    begin = Begin(thing=UUID(int=7), who="ada", parts=PARTS)

    with pytest.raises(Undecodable, match=named) as refused:
        Decoder([Begin]).decode(body(begin.model_copy(update={"who": who}), id))
    assert refused.value.reason == "invalid"
    assert str(refused.value).isprintable()
