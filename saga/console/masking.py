"""Values with what they hold left out: their structure, and the kind and the length of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from datetime import datetime
from enum import Enum
from typing import Any

from saga.choreography import State
from saga.dlq.quotations import masked, masked_error
from saga.history.sequence import Diagram, Kind, duration, headline
from saga.history.story import Story
from saga.history.trace import as_json
from saga.runtime.messaging.dead_letters import BROKERS, ERROR, KEPT, OURS


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
