"""What errors quote of messages, and the errors without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final


def masked(value: Any) -> Any:
    """A JSON value with what it says left out: texts and numbers are replaced by what they are and
    how long. Names within it, true, false and null stay."""
    match value:
        case Mapping():
            return {str(name): masked(each) for name, each in value.items()}
        case list() | tuple():
            return [masked(each) for each in value]
        case None | bool():
            return value
        case str():
            return f"‹text of {len(value)}›"
        case _:
            return f"‹number of {len(str(value))}›"


_QUOTED: Final = re.compile(
    r"""(?<!\w)(['"`])(?:(?P<closed>(?:\\.|(?!\1)[^\\]|(?<=\w)\1(?=\w))*)\1|(?P<cut>.*)\Z)""",
    re.DOTALL,
)
_INPUT: Final = re.compile(
    r"(?P<before>input_value=)(?P<value>.*?)(?=, input_type=|\]|\Z)", re.DOTALL
)
_PARAMETERS: Final = re.compile(
    r"(?P<before>\[parameters: )(?P<value>.*?)(?=\]\s|\]?\Z)", re.DOTALL
)


def masked_error(error: str) -> str:
    """The text of an error with what it quotes left out: between quotes, as a value that pydantic
    did not take, as a parameter of a query. Its own words, and where it was, stay."""
    for found in (_INPUT, _PARAMETERS):
        error = found.sub(lambda match: f"{match['before']}{masked(match['value'])}", error)
    return _QUOTED.sub(_masked_quotation, error)


def _masked_quotation(match: re.Match[str]) -> str:
    quote, closed, rest = match[1], match["closed"], match["cut"]
    return f"{quote}{masked(rest if closed is None else closed)}{'' if closed is None else quote}"
