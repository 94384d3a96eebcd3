"""What a message may hold at most, wherever it comes in: from the broker, over HTTP, from a file or
from an operator's editor.

A text's limit is in bytes of UTF-8, since an AMQP short string holds 255 of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from math import isfinite
from typing import Annotated, Any, Final

from pydantic import AfterValidator, AwareDatetime, Field
from pydantic_core import from_json

from saga.text import plain

BODY_MAX_BYTES: Final = 262_144
TEXT_MAX_BYTES: Final = 255
"""Ids, sources, types, subjects."""
TEXT_PATTERN: Final = r"^[^\x00-\x1f\x7f]+$"
"""No control characters: no database has to store them, and they may separate texts."""
NESTING_MAX: Final = 200
"""Arrays and objects within each other. The JSON parser's own limit; it names no other."""
TIME_MIN: Final = datetime(1970, 1, 1, tzinfo=UTC)
TIME_END: Final = datetime(2200, 1, 1, tzinfo=UTC)
"""Every time is from the first of these on and before the second, in any time zone."""
SEQUENCE_MAX: Final = 2**31 - 1
"""The highest number of an event. The states' tables have 32 bits for it."""
ATTEMPT_MAX: Final = 1_000_000
INTEGER_MAX: Final = 2**63 - 1
"""The largest number in JSON, and with a minus the smallest: a database's widest integer."""


def json_of(body: bytes | str) -> Any:
    """The JSON document in a body. Raises ValueError, which says why it is none, or what in it is
    beyond the limits."""
    try:
        document = from_json(body, allow_inf_nan=False)
    except RecursionError:
        raise ValueError(f"it is nested more than {NESTING_MAX} deep") from None
    _check_numbers((document,))
    return document


def _check_numbers(values: Iterable[Any]) -> None:
    for value in values:
        kind = type(value)
        if kind is dict:
            _check_numbers(value.values())
        elif kind is list:
            _check_numbers(value)
        elif kind is int:
            if not -INTEGER_MAX <= value <= INTEGER_MAX:
                raise ValueError("a number has more than 64 bits")
        elif kind is float and not isfinite(value):
            raise ValueError("a number is too large")


def within_bytes(text: str) -> str:
    """The text, if it is short enough in UTF-8. Raises ValueError."""
    if not text.isascii() and (size := len(text.encode())) > TEXT_MAX_BYTES:
        raise ValueError(f"it has {size} bytes in UTF-8; the limit is {TEXT_MAX_BYTES}")
    return text


Text = Annotated[
    str,
    Field(min_length=1, max_length=TEXT_MAX_BYTES, pattern=TEXT_PATTERN),
    AfterValidator(within_bytes),
]
"""An attribute of an envelope, such as an id."""
Plain: Final = AfterValidator(plain)
"""Marks a text as it is taken from people: without control and format characters. Stands after the
text's other constraints: one that comes later takes it for a list, and tells people about items."""
Moment = Annotated[AwareDatetime, Field(ge=TIME_MIN, lt=TIME_END)]
"""A time, with its offset from UTC."""
SequenceNumber = Annotated[int, Field(ge=1, le=SEQUENCE_MAX)]
Attempt = Annotated[int, Field(ge=2, le=ATTEMPT_MAX)]


def moment_of(text: str) -> datetime | None:
    """A time in ISO 8601, in UTC where it names no zone; None if it is none, or out of bounds."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC) if TIME_MIN <= moment < TIME_END else None
