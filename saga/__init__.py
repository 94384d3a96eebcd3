"""Choreography sagas over RabbitMQ: the engine, and the operator's command `saga`.

What stands in `__all__` is public: it keeps its meaning within a major version. So are the command
line, the wire, the names of metrics and files, and the fixtures and functions of `saga.testing`.
Everything else may change with any version. Names are imported when they are first asked for, so
that a domain, which needs a few of them, loads neither a database nor a web framework.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from saga.archive import OBSERVER as ARCHIVE
    from saga.asking import Phase, ask, record, record_undone, take_back
    from saga.auth.caller import Caller
    from saga.auth.scopes import needs, theirs
    from saga.choreography import ChoreographyError, Observer, Participant, State
    from saga.declaration import EarlyEnd, Saga, SagaError, Scenario, Stimulus
    from saga.due import Due
    from saga.envelope import derived_id
    from saga.foreign import Foreign
    from saga.limits import Moment
    from saga.load.plan import Given, Plan
    from saga.message import (
        Answer,
        Ask,
        Command,
        Decided,
        Event,
        EventTypes,
        Intent,
        Message,
        Priority,
        Role,
    )
    from saga.outside import Desk, ErasureRequest, Memory, Outside, OutsideError
    from saga.personal.marks import Personal
    from saga.retry import Retry, TransientError
    from saga.runtime.kernel.tables import Flag, Json, StateTable, Tables, Utc, Word, due_columns
    from saga.runtime.problem import Problem
    from saga.runtime.service import Running, Service, TakingPart, taking_part
    from saga.runtime.service import main as serve
    from saga.runtime.settings import Settings
    from saga.runtime.settings import load as settings_of
    from saga.sandbox import Bookkeeper, DeskBookkeeper, FileBookkeeper, KeyedBooks
    from saga.view import Broken, Events, Invariant, States, View

_HOMES: Final = {
    "saga.archive": ("ARCHIVE=OBSERVER",),
    "saga.asking": ("Phase", "ask", "record", "record_undone", "take_back"),
    "saga.auth.caller": ("Caller",),
    "saga.auth.scopes": ("needs", "theirs"),
    "saga.choreography": ("ChoreographyError", "Observer", "Participant", "State"),
    "saga.declaration": ("EarlyEnd", "Saga", "SagaError", "Scenario", "Stimulus"),
    "saga.due": ("Due",),
    "saga.envelope": ("derived_id",),
    "saga.foreign": ("Foreign",),
    "saga.limits": ("Moment",),
    "saga.load.plan": ("Given", "Plan"),
    "saga.message": (
        *("Answer", "Ask", "Command", "Decided", "Event", "EventTypes", "Intent", "Message"),
        *("Priority", "Role"),
    ),
    "saga.outside": ("ErasureRequest", "Desk", "Memory", "Outside", "OutsideError"),
    "saga.personal.marks": ("Personal",),
    "saga.retry": ("Retry", "TransientError"),
    "saga.runtime.kernel.tables": (
        *("Flag", "Json", "StateTable", "Tables", "Utc", "Word", "due_columns"),
    ),
    "saga.runtime.problem": ("Problem",),
    "saga.runtime.service": ("Running", "Service", "TakingPart", "serve=main", "taking_part"),
    "saga.runtime.settings": ("Settings", "settings_of=load"),
    "saga.sandbox": ("DeskBookkeeper", "FileBookkeeper", "Bookkeeper", "KeyedBooks"),
    "saga.view": ("Broken", "Events", "Invariant", "States", "View"),
}
"""Where each public name is; `public=private` where it is called otherwise there."""

_PLACES: Final = {
    public: (module, name or public)
    for module, names in _HOMES.items()
    for public, _, name in (each.partition("=") for each in names)
}

__all__ = [
    "ARCHIVE",
    "Answer",
    "Ask",
    "Bookkeeper",
    "Broken",
    "Caller",
    "ChoreographyError",
    "Command",
    "Decided",
    "Desk",
    "DeskBookkeeper",
    "Due",
    "EarlyEnd",
    "ErasureRequest",
    "Event",
    "EventTypes",
    "Events",
    "FileBookkeeper",
    "Flag",
    "Foreign",
    "Given",
    "Intent",
    "Invariant",
    "Json",
    "KeyedBooks",
    "Memory",
    "Message",
    "Moment",
    "Observer",
    "Outside",
    "OutsideError",
    "Participant",
    "Personal",
    "Phase",
    "Plan",
    "Priority",
    "Problem",
    "Retry",
    "Role",
    "Running",
    "Saga",
    "SagaError",
    "Scenario",
    "Service",
    "Settings",
    "State",
    "StateTable",
    "States",
    "Stimulus",
    "Tables",
    "TakingPart",
    "TransientError",
    "Utc",
    "View",
    "Word",
    "ask",
    "derived_id",
    "due_columns",
    "needs",
    "record",
    "record_undone",
    "serve",
    "settings_of",
    "take_back",
    "taking_part",
    "theirs",
]


def __getattr__(name: str) -> Any:
    if (place := _PLACES.get(name)) is None:
        raise AttributeError(f"module 'saga' has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(place[0]), place[1])
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
