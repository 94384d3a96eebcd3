"""Whom messages name, in any version, is masked where it is not to be shown."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import queue
import traceback
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Final
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.message import Event
from saga.personal import Personal, shown
from saga.personal.masks import HIDDEN_MAX, Hidden, Masks
from saga.personal.needle import Needle
from saga.personal.written import Plain
from saga.runtime.telemetry import JsonFormatter, TextFormatter, name_nobody, naming
from saga.text import harmless
from tests.spellings import ENCODINGS, FORMS

NAME = 'Anna "Änni" O\'Hara'
SEALED = f"~1.{'a' * 22}.{'b' * 24}"


class Place(Event):
    """Where a guest lives."""

    type: ClassVar[str] = "masked.place"
    street: Annotated[str, Personal]
    town: str = ""


class GuestCameOnce(Event):
    """As it was first: another field named the guest."""

    type: ClassVar[str] = "masked.guest_came"
    visitor: Annotated[str, Personal]

    def upcast(self) -> GuestCame:
        return GuestCame(name=self.visitor)


class GuestCame(Event):
    """As it is now."""

    type: ClassVar[str] = "masked.guest_came"
    version: ClassVar[int] = 2
    name: Annotated[str, Personal]
    note: str = ""
    places: tuple[Place, ...] = ()


MASKS = Masks((GuestCame, Place))


@pytest.mark.parametrize(
    ("data", "masked"),
    [
        ({"name": NAME, "note": "late"}, {"name": "A…", "note": "late"}),
        ({"visitor": NAME}, {"visitor": "A…"}),
        ({"name": SEALED}, {"name": "person …aaaa"}),
        (
            {"places": [{"street": NAME, "town": "Bern"}]},
            {"places": [{"street": "A…", "town": "Bern"}]},
        ),
        ({"name": {"first": NAME}}, {"name": {"first": "A…"}}),
        ({"name": 7}, {"name": 7}),
        (NAME, "A…"),
    ],
)
def test_marked_fields_of_every_version_are_masked(data: Any, masked: Any) -> None:
    assert MASKS.changed("masked.guest_came", data, shown) == masked


def test_of_a_type_that_nobody_knows_every_text_is_masked() -> None:
    data = {"who": NAME, "since": 7, "others": [NAME, None]}

    masked = MASKS.changed("a.foreign_one", data, shown)

    assert masked == {"who": "A…", "since": 7, "others": ["A…", None]}
    assert MASKS.values_in("a.foreign_one", data) == frozenset()


def test_what_is_called_like_a_personal_field_is_known() -> None:
    assert MASKS.names == {"name", "visitor", "street"}


@given(st.from_regex(r"[A-Z][a-zé'\"\\\n\x9b]{4,20}[a-z]", fullmatch=True))
def test_a_hidden_value_is_found_however_it_is_quoted(value: str) -> None:
    hidden = Hidden([value])
    for quoted in (value, repr(value), ascii(value), json.dumps(value), harmless(value)):
        text = hidden.text(f"it was {quoted}, at 7")
        assert quoted.strip("'\"")[1:] not in text
        assert text.startswith("it was ")
        assert text.endswith(", at 7")


WRITTEN: Final = (
    "UTF-8",
    "JSON",
    "JSON within JSON",
    "JSON, all escaped",
    "JSON, all escaped in capitals",
    "a URL",
    "a URL's form",
    "a URL within a URL",
    "a URL, all escaped",
    "HTML",
    "HTML, all escaped",
    "base64",
    "base64 of base64",
    "Python's bytes",
    "Python's ASCII",
    "SQL",
    "octal escapes",
)
"""Of the encodings that the search for a name knows, those in which texts for people have one."""


@pytest.mark.parametrize("encoding", WRITTEN)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", [NAME, "Zoë O'Neil-Ünsal", "ada.müller+x@example.org", "Straße 7"])
def test_a_hidden_value_is_masked_as_the_search_for_it_would_find_it(
    encoding: str, form: str, name: str
) -> None:
    written = ENCODINGS[encoding](FORMS[form](name)).decode()
    needle = Needle(name)
    text = f"(before) {written} (after)"
    assert needle.find_in([text.encode()]).count

    for masked in (Hidden([name]).text(text), Hidden(["Bea", name]).document({"a": text})["a"]):
        assert not needle.find_in([masked.encode()]).count, masked
        assert masked.startswith("(before) ")
        assert masked.endswith(" (after)")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("customer=ada&page=2", "customer=a…&page=2"),
        ("a=100%&customer=ADA", "a=100%&customer=A…"),
        ("?q=hello%20Ada%20there&x=1", "?q=hello%20a…%20there&x=1"),
        ("/sagas?customer=Ada+Lovelace", "/sagas?customer=A…"),
        ("R&D of ada, &amp; AT&T", "R&D of a…, &amp; AT&T"),
        ("token=QWRhIExvdmVsYWNl;", "token=…;"),
        ("adam, Adalbert, c0ada", "adam, Adalbert, c0ada"),
        ("C:\\new\\table and \\u0041dam", "C:\\new\\table and \\u0041dam"),
        ("5f2c1e9a77d04d0b8f4d2c1b9a77d04d", "5f2c1e9a77d04d0b8f4d2c1b9a77d04d"),
        ("", ""),
    ],
)
def test_what_is_around_a_hidden_value_stays(text: str, masked: str) -> None:
    assert Hidden(["ada", "Ada Lovelace"]).text(text) == masked


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_no_text_is_more_than_can_be_masked(text: str, values: list[str]) -> None:
    hidden = Hidden(values)

    assert isinstance(hidden.text(text), str)
    for value in values:
        if (value.isalnum() and not value.isascii()) or value.isalpha():
            assert value not in hidden.text(f"{text} {value} {text}").split(" ")


@given(st.text(alphabet="abAB é\u0301ß%=&;+_\\\\x41u0'\"\n", max_size=40))
def test_plain_letters_are_where_they_are_written(text: str) -> None:
    plain = Plain(text)
    last = 0
    for at in range(len(plain.letters)):
        start, end = plain.place(at, at + 1)
        assert last <= end <= len(text)
        assert start < end
        last = start


def test_a_value_within_a_word_is_another_word() -> None:
    hidden = Hidden(["an", "Anna"])

    assert hidden.text("an answer to Anna, Annabel and sand") == (
        "a… answer to A…, Annabel and sand"
    )


def test_documents_keep_sealed_values_and_texts_for_people_do_not() -> None:
    hidden = Hidden([NAME])

    assert hidden.document({"a": [NAME, SEALED, 1]}) == {"a": ["A…", SEALED, 1]}
    assert hidden.text(f"{NAME} and {SEALED}") == "A… and person …aaaa"


def test_beyond_its_limit_nothing_is_shown() -> None:
    hidden = Hidden(f"guest {number}" for number in range(HIDDEN_MAX + 1))

    assert hidden.text("anything") == hidden.document("anything") == "…"


class WithFrames(logging.Formatter):
    """As programs of others do that show what every frame of an exception holds."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.exc_info and record.exc_info[2]:
            frames = traceback.walk_tb(record.exc_info[2])
            text += "".join(str(frame.f_locals) for frame, _ in frames)
        return text


class ByPlace(logging.Formatter):
    """As the access log of a server does: takes the arguments apart."""

    def format(self, record: logging.LogRecord) -> str:
        assert isinstance(record.args, tuple)
        who, error, count = record.args
        return f"{who} {error} {count}"


@pytest.fixture
def discreet() -> Iterator[None]:
    before = logging.getLogRecordFactory()
    name_nobody()
    try:
        yield
    finally:
        logging.setLogRecordFactory(before)


@pytest.mark.parametrize("formatter", [logging.Formatter(), WithFrames(), ByPlace()])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.usefixtures("discreet")
def test_the_logs_of_another_application_name_nobody_while_a_message_that_names_them_is_at_hand(
    formatter: logging.Formatter, named: bool
) -> None:
    foreign, later = logging.Logger("of the application"), queue.SimpleQueue[logging.LogRecord]()
    foreign.addHandler(logging.handlers.QueueHandler(later))
    foreign.handlers[0].setFormatter(formatter)
    own = logging.Logger("another")
    written = io.StringIO()
    own.addHandler(logging.StreamHandler(written))
    own.handlers[0].setFormatter(formatter)

    def fail(guest: str) -> None:
        raise ValueError(f"{guest} has no room; {quote(guest)} neither")

    with naming(Hidden([NAME] if named else [])):
        try:
            fail(NAME)
        except ValueError as error:
            for log in (own, foreign):
                log.exception("no room for %s: %s, in %d", NAME, error, 17)

    for text in (written.getvalue(), later.get().getMessage()):
        assert ("Hara" in text) != named
        assert "has no room" in text
        assert "17" in text


def test_records_are_made_by_the_factory_of_the_application_and_masked_once() -> None:
    before = logging.getLogRecordFactory()
    made: list[str] = []

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        made.append(str(args[0]))
        return before(*args, **kwargs)

    try:
        logging.setLogRecordFactory(factory)
        name_nobody()
        name_nobody()
        logging.Logger("theirs").warning("hello")
    finally:
        logging.setLogRecordFactory(before)

    assert made == ["theirs"]


@pytest.mark.parametrize("formatter", [JsonFormatter("room"), TextFormatter("room")])
def test_a_log_names_nobody_whom_its_message_names(formatter: logging.Formatter) -> None:
    try:
        raise ValueError(f"{NAME} has no room; {SEALED} neither")
    except ValueError as error:
        info = (type(error), error, error.__traceback__)
    record = logging.LogRecord("a", logging.ERROR, "a.py", 1, "failed: %s", (info[1],), info)

    with naming(Hidden([NAME])):
        text = formatter.format(record)

    assert "Hara" not in text
    assert SEALED not in text
    assert "has no room" in text
