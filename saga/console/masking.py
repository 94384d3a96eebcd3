"""Values with what they hold left out: their structure, and the kind and the length of each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import fields
from datetime import datetime
from enum import Enum
from typing import Any

from saga.choreography import State
from saga.history.sequence import duration, headline
from saga.history.story import Story
from saga.history.trace import as_json


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
