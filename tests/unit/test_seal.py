"""Sealed texts: what goes in comes out, under its own key only, and says nothing besides."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime, timedelta
from typing import Annotated

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, ValidationError

from saga.personal import Personal, Unsealable, personal_fields, sealed, shown
from saga.personal.keystore import made_at, new_person_id
from saga.personal.marks import document_with_personal, personal_values, with_personal
from saga.personal.seal import (
    CLEAR_MAX_BYTES,
    SEALED_MAX_CHARACTERS,
    SEALED_PATTERN,
    masked_in,
    open_under,
    person_id_in,
    seal_under,
)
from saga.schemas.compare import unreadable

KEY = AESSIV(bytes(range(64)))
ANNA = "A" * 21 + "A"
values = st.text(max_size=128).filter(lambda text: max(text, default="a") < "\ud800")

Name = Annotated[str, Field(min_length=1, max_length=8), Personal]


class Address(BaseModel):
    """A nested part."""

    street: Name
    city: str


class Parcel(BaseModel):
    """Personal here and there."""

    to: Name
    sender: Name | None = None
    address: Address
    seen_by: tuple[Name, ...] = ()
    stops: tuple[Address, ...] = ()


def parcel(name: str) -> Parcel:
    address = Address(street=name, city="Bern")
    return Parcel(to=name, address=address, seen_by=(name, "bob"), stops=(address,))


@given(values)
def test_what_was_sealed_is_opened(value: str) -> None:
    assert open_under(KEY, seal_under(KEY, ANNA, value)) == value


@given(values)
def test_a_sealed_text_is_short_printable_and_known_by_its_form(value: str) -> None:
    text = seal_under(KEY, ANNA, value)

    assert sealed(text)
    assert text.isascii()
    assert text.isprintable()
    assert len(text) <= SEALED_MAX_CHARACTERS
    assert person_id_in(text) == ANNA


@given(values, values)
def test_equal_values_and_no_others_are_equal_under_a_key(one: str, other: str) -> None:
    assert (seal_under(KEY, ANNA, one) == seal_under(KEY, ANNA, other)) == (one == other)


@given(values)
def test_another_persons_key_opens_nothing(value: str) -> None:
    with pytest.raises(Unsealable, match="cannot be opened"):
        open_under(AESSIV(os.urandom(64)), seal_under(KEY, ANNA, value))


@given(values, st.data())
def test_a_changed_text_is_refused(value: str, data: st.DataObject) -> None:
    text = seal_under(KEY, ANNA, value)
    place = data.draw(st.integers(3, len(text) - 1))
    other = data.draw(st.sampled_from("ABCabc012-_").filter(lambda char: char != text[place]))
    changed = text[:place] + other + text[place + 1 :]

    with pytest.raises(Unsealable):
        open_under(KEY, changed)


@given(values)
def test_a_text_in_clear_is_taken_for_no_sealed_one(value: str) -> None:
    assert not sealed(value)


def test_the_longest_value_fits_and_a_longer_one_is_named() -> None:
    assert len(seal_under(KEY, ANNA, "x" * CLEAR_MAX_BYTES)) == SEALED_MAX_CHARACTERS
    with pytest.raises(ValueError, match="513 bytes"):
        seal_under(KEY, ANNA, "x" * (CLEAR_MAX_BYTES + 1))


def test_ids_of_persons_are_of_one_length_and_all_different() -> None:
    now = datetime.now(UTC)
    ids = {new_person_id(now) for _ in range(1_000)}

    assert len(ids) == 1_000
    assert {len(id) for id in ids} == {22}


def test_ids_of_persons_are_in_the_order_in_which_they_were_made() -> None:
    start = datetime(2026, 1, 1, tzinfo=UTC)
    moments = [start + timedelta(seconds=number * number / 50) for number in range(1_000)]
    ids = [new_person_id(moment) for moment in moments]

    assert [id[:10] for id in ids] == sorted(id[:10] for id in ids)
    for id, moment in zip(ids, moments, strict=True):
        assert made_at(id) == pytest.approx(moment.timestamp(), abs=0.01)
        assert sealed(seal_under(KEY, id, "anna"))


def test_an_older_id_which_is_all_random_tells_no_time() -> None:
    assert made_at("7hGk_-Xy0123456789abcd") == 0.0


def test_personal_fields_are_found_wherever_they_are() -> None:
    assert set(personal_fields(Parcel)) == {
        ("to",),
        ("sender",),
        ("address", "street"),
        ("seen_by", "*"),
        ("stops", "*", "street"),
    }


def test_every_personal_text_is_changed_and_nothing_else() -> None:
    changed = with_personal(parcel("anna"), str.upper)

    assert personal_values(parcel("anna")) == ["anna", "anna", "anna", "bob", "anna"]
    assert changed == parcel("ANNA").model_copy(update={"seen_by": ("ANNA", "BOB")})
    assert changed.address.city == "Bern"


def test_what_json_has_of_a_message_is_changed_in_the_same_places() -> None:
    document = json.loads(parcel("anna").model_dump_json()) | {"more": "anna"}

    changed = document_with_personal(Parcel, document, str.upper)

    assert changed["to"] == changed["stops"][0]["street"] == "ANNA"
    assert changed["more"] == "anna"
    assert document_with_personal(Parcel, {"to": 7}, str.upper) == {"to": 7}
    assert document_with_personal(Parcel, "no object", str.upper) == "no object"


def test_a_message_that_nothing_changes_is_the_same_one() -> None:
    message = parcel("anna")

    assert with_personal(message, lambda value: value) is message


def test_a_field_takes_clear_texts_within_its_limits_and_sealed_ones_beyond() -> None:
    text = seal_under(KEY, ANNA, "anna")

    assert Address(street=text, city="").street == text
    for wrong in ("", "x" * 9, f"{text}\n", "~1.too short"):
        with pytest.raises(ValidationError):
            Address(street=wrong, city="")


def test_its_schema_says_both() -> None:
    schema = Address.model_json_schema()["properties"]["street"]

    assert [choice.get("pattern") for choice in schema["anyOf"]] == [None, SEALED_PATTERN]
    assert schema["anyOf"][0]["maxLength"] == 8


class Before(BaseModel):
    """As it was, before it was marked."""

    street: Annotated[str, Field(min_length=1, max_length=8)]
    city: str


def test_a_reader_from_before_is_compared_with_what_is_written_in_clear() -> None:
    now, before = Address.model_json_schema(), Before.model_json_schema()

    assert unreadable(now, before, defaults_written=True) == []
    assert unreadable(before, now, defaults_written=True) == []
    before["properties"]["street"]["maxLength"] = 7
    assert unreadable(now, before, defaults_written=True) == [
        "street: maxLength is 8, where 7 is read"
    ]


@given(values, values.filter(lambda text: not text[:1].isalnum() and text[:1] not in "-_"))
def test_sealed_values_within_a_text_are_masked_and_nothing_else(before: str, after: str) -> None:
    text = seal_under(KEY, ANNA, "Anna Muster")

    assert masked_in(f"{before}{text}{after}") == f"{before}person …AAAA{after}"
    assert masked_in(before) == before


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("anna@example.com", "a…@e…"),
        ("Anna Muster", "A…"),
        ("", ""),
        (seal_under(KEY, ANNA, "Anna Muster"), "person …AAAA"),
    ],
)
def test_a_masked_value_tells_little(value: str, expected: str) -> None:
    assert shown(value) == expected
