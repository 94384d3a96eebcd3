"""What comes in from forms and addresses: reasons, fields that are left empty, places in lists."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, Field
from starlette.requests import Request

from saga.limits import INTEGER_MAX, Plain
from saga.runtime.dues import REASON_MAX
from saga.runtime.problem import Problem, short

FIELD_MAX: Final = 1_000
AFTER_MAX: Final = 4_000
"""Characters. A place in a list may have keys in it, in Base64."""
PAGE: Final = 50
"""Rows of a page of a list."""


def _stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


def or_none(value: Any) -> Any:
    """A form sends the fields that were left empty as well."""
    return None if value == "" else value


Given = Annotated[Annotated[str, Field(max_length=FIELD_MAX)] | None, BeforeValidator(or_none)]
"""A field that may be left empty."""
Rate = Annotated[float | None, BeforeValidator(or_none)]
After = Annotated[Annotated[str, Field(max_length=AFTER_MAX)] | None, BeforeValidator(or_none)]
Reason = Annotated[
    str,
    Field(min_length=1, max_length=REASON_MAX, title="reason"),
    Plain,
    BeforeValidator(_stripped),
]
"""Why something is changed: for an audit record."""


def asked_here(request: Request) -> bool:
    """Whether no page of another site, nor of another port, has the browser ask: only then work is
    begun for a GET. See https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header."""
    return request.headers.get("sec-fetch-site", "none") in ("same-origin", "none")


def place_of(*values: int | str | datetime) -> str:
    """A place in a list, as part of an address."""
    said = [value.isoformat() if isinstance(value, datetime) else value for value in values]
    return base64.urlsafe_b64encode(json.dumps(said, ensure_ascii=False).encode()).decode()


def read_place(text: str, *kinds: type[int] | type[str] | type[datetime]) -> tuple[Any, ...]:
    """The values that a place was made of. Raises `Problem` for what is none."""
    try:
        said = json.loads(base64.urlsafe_b64decode(text.encode("ascii")))
        if isinstance(said, list) and len(said) == len(kinds):
            return tuple(_read(each, kind) for each, kind in zip(said, kinds, strict=True))
    except (ValueError, TypeError, RecursionError, binascii.Error):
        pass
    raise Problem(422, f"after: {short(text)!r} is no place in this list; begin at its first page")


def _read(said: Any, kind: type[int] | type[str] | type[datetime]) -> Any:
    """Raises ValueError for what is not of that kind, or what no database takes."""
    if kind is int:
        if type(said) is int and abs(said) <= INTEGER_MAX:
            return said
    elif isinstance(said, str) and "\0" not in said:
        said.encode()  # There may be halves of characters in it.
        if kind is str:
            return said
        moment = datetime.fromisoformat(said)
        if moment.tzinfo is not None:
            return moment
    raise ValueError
