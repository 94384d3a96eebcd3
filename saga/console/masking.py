"""Values with what they hold left out: their structure, and the kind and the length of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from enum import Enum
from typing import Any, Final

from saga.choreography import State
from saga.history.sequence import Diagram, Kind, duration, headline
from saga.history.story import Story
from saga.history.trace import as_json
from saga.runtime.messaging.dead_letters import BROKERS, ERROR, KEPT, OURS


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


def masked_diagram(diagram: Diagram) -> Diagram:
    """A sequence with what errors quote left out of its rows' notes."""
    rows = (
        replace(row, note=masked_error(row.note)) if row.kind in (Kind.DEAD, Kind.OWED) else row
        for row in diagram.rows
    )
    return replace(diagram, rows=tuple(rows))


def masked_headers(headers: Mapping[str, Any]) -> dict[str, Any]:
    """A message's headers, as JSON values, with what publishers may have put there left out: the
    engine's own and the broker's notes stay, and of an error what `masked_error` leaves."""
    return {name: _masked_header(name, value) for name, value in headers.items()}


def _masked_header(name: str, value: Any) -> Any:
    if name == ERROR and isinstance(value, str):
        return masked_error(value)
    noted = name in OURS and name not in (ERROR, KEPT)
    return value if noted or name.encode().startswith(BROKERS) else masked(value)


def fields_of(state: State, *, bodies: bool) -> dict[str, Any]:
    """The fields of a state as JSON values; without `bodies`, only words, times, yes and no, and
    how many events it counts stay readable."""
    shown = as_json(state)
    if bodies:
        return shown
    plain = {"key", "sequence"} | {
        field.name
        for field in fields(state)
        if isinstance(getattr(state, field.name), Enum | datetime)
    }
    return {name: value if name in plain else masked(value) for name, value in shown.items()}


def headline_of(story: Story, *, bodies: bool) -> str:
    """What is to be said of a subject in a line; without `bodies`, of its saga's view only the
    words that the line has."""
    view, whole = story.view, headline(story)
    if bodies or story.declared is None or view is None:
        return whole
    there = set(re.split(r"[\s,;()]+", whole))
    values = [getattr(view, field.name) for field in fields(view)]
    said = [story.declared.name, story.subject]
    said += [str(v.value) for v in values if isinstance(v, Enum) and str(v.value) in there]
    if story.summary.duration is not None:
        said += ["after", duration(story.summary.duration)]
    return " ".join(said)
