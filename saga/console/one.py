"""One subject as the console shows it: at any of its moments, and what can still come of it."""

from __future__ import annotations

import asyncio
import json
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from saga.archive.timeline import Hop
from saga.console.inquiry import Inquiry, apart
from saga.console.masking import fields_of
from saga.console.watched import Watched
from saga.dlq.quotations import masked
from saga.envelope import Envelope
from saga.future.asking import computed
from saga.future.ends import Outlook, outlook
from saga.future.moment import Moment, modelled
from saga.future.present import ModelledSubject, SubjectModels
from saga.future.whatif import AskedStep, Consequences, Offer, beside_courses, course, offers_of
from saga.history.debts import Debt
from saga.history.trace import Trace, events_before, past_of
from saga.history.whereabouts import MessageLocations, look
from saga.verify import VerifyError

T = TypeVar("T")

KEPT_MAX: Final = 64
"""Outlooks that are kept, so that pages that stay open do not have them computed again."""
KEPT_SECONDS: Final = 10.0
"""For how long, as they follow from more than the subject's events: what it shares with others, and
the time."""
BODY_MAX_CHARACTERS: Final = 1_500
"""Of a body among others."""
WHOLE_BODY_MAX_CHARACTERS: Final = 50_000
LOOK_AGE_SECONDS: Final = 5.0
"""How old what was seen at the broker may be on a page that is opened."""
LOOK_AGAIN_SECONDS: Final = 60.0
"""The same on a page that brings itself up to date: what waits is in another order after a look."""
LOOK_PATIENCE_SECONDS: Final = 1.0
"""How long a page waits for a look."""


@dataclass(frozen=True, slots=True)
class StateField:
    """A field of a participant's state before and after an event."""

    participant: str
    kind: str
    name: str
    before: str
    after: str

    @property
    def changed(self) -> bool:
        return self.before != self.after


@dataclass(frozen=True, slots=True)
class Unforeseen:
    """Why it cannot be said what can still happen."""

    why: str


@dataclass(frozen=True, slots=True)
class Forecast:
    """What can still happen, and what that takes for granted."""

    outlook: Outlook
    present: ModelledSubject


@dataclass(frozen=True, slots=True)
class WhatIf:
    """What may be asked about a moment; what usually follows from it, and what would, if something
    was asked; and what that takes for granted."""

    offers: Sequence[Offer]
    usual: Consequences | Unforeseen
    asked: Consequences | Unforeseen | None
    remarks: Sequence[str]


class BrokerSight:
    """Looks through the broker's queues, once for all pages. Belongs to one event loop."""

    def __init__(self, look_there: Callable[[], Coroutine[Any, Any, MessageLocations]]) -> None:
        self._looking: Inquiry[MessageLocations] = Inquiry(look_there)

    @classmethod
    def of(cls, watched: Watched) -> BrokerSight:
        """One that looks at the broker of this system."""

        async def look_there() -> MessageLocations:
            deployment, graph = watched.deployment, watched.graph
            return await apart(lambda: look(deployment, graph, ()))

        return cls(look_there)

    @property
    def failed(self) -> str:
        """Why the last look came to nothing; empty if it did not."""
        return self._looking.failed

    @property
    def seen_at(self) -> datetime | None:
        """When the last look that came to an end was begun."""
        return self._looking.last_at

    async def seen(self, debts: Sequence[Debt], *, live: bool) -> MessageLocations | None:
        """What was seen since all of this is owed; None if that is not known, as the look takes
        long, or failed. A page that is `live` asks for itself again, and has the queues looked
        through less often than one that is opened."""
        looking = self._looking
        owed_since = max(debt.since for debt in debts)
        age_max = LOOK_AGAIN_SECONDS if live else LOOK_AGE_SECONDS
        too_early = looking.last_at is None or looking.last_at < owed_since
        looking.begin_if_older(0.0 if too_early and not live else age_max)
        await looking.soon(LOOK_PATIENCE_SECONDS)
        if looking.failed or looking.last_at is None or looking.last_at < owed_since:
            return None
        return looking.last if (looking.age_seconds or 0.0) <= age_max else None


def states_at(watched: Watched, found: Trace, moment: Moment, *, bodies: bool) -> list[StateField]:
    """What each participant had about the subject before and after the moment's event."""
    story, graph = found.story, watched.graph
    events = moment.story.events.values()
    before: list[Envelope[Any]] = []
    if moment.step is not None:
        before = events_before(story, moment.step.attributes.id)
    then = past_of(graph, story.subject, found.facts, before).states if before else {}
    now = past_of(graph, story.subject, found.facts, list(events)).states if events else {}
    rows: list[StateField] = []
    for participant in graph.in_python:
        name = participant.name
        of_before = {type(s).__name__: s for s in then.get(name, ())}
        of_now = {type(s).__name__: s for s in now.get(name, ())}
        for kind in dict.fromkeys((*of_before, *of_now)):
            old = fields_of(of_before[kind], bodies=bodies) if kind in of_before else {}
            new = fields_of(of_now[kind], bodies=bodies) if kind in of_now else {}
            rows += (
                StateField(name, kind, field, _said(old.get(field)), _said(new.get(field)))
                for field in dict.fromkeys((*old, *new))
                if field != "key"
            )
    return rows


def _said(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def body_of(step: Hop, *, bodies: bool, characters: int = BODY_MAX_CHARACTERS) -> tuple[str, int]:
    """The `data` of a message as text, cut after so many characters; and how many it has."""
    try:
        document = from_json(step.fact.body)
        data = document.get("data") if isinstance(document, dict) else None
    except ValueError:
        return "it is no JSON", 0
    text = json.dumps(data if bodies else masked(data), indent=1, ensure_ascii=False)
    return text[:characters], len(text)


class Forecaster:
    """Says what can still happen to subjects, and keeps that. Belongs to one event loop."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._foresight = SubjectModels(watched.saga)
        self._kept: OrderedDict[Hashable, tuple[float, Forecast]] = OrderedDict()
        """With the time by the monotonic clock when each was computed."""

    async def outlook(
        self, moment: Moment, whereabouts: MessageLocations | None
    ) -> Forecast | Unforeseen:
        """What can still happen from a moment on, and what was taken for granted."""
        debts = moment.open_debts(whereabouts)
        key = _key(moment, debts)
        made_at, kept = self._kept.get(key, (0.0, None))
        if kept is not None and time.monotonic() - made_at < KEPT_SECONDS:
            return kept

        def compute() -> Forecast:
            present = self._present(moment, debts, influential_only=True)
            seen = outlook(present, self._foresight.judged(present))
            return Forecast(beside_courses(present, seen), present)

        found = await _foreseen(compute)
        self._kept.pop(key, None)
        if isinstance(found, Forecast) and found.outlook.whole:
            self._kept[key] = time.monotonic(), found
            while len(self._kept) > KEPT_MAX:
                self._kept.popitem(last=False)
        return found

    def _present(
        self, moment: Moment, debts: Sequence[Debt], *, influential_only: bool
    ) -> ModelledSubject:
        watched = self._watched
        return modelled(
            watched.deployment, self._foresight, moment, debts, influential_only=influential_only
        )

    async def supposed(
        self, moment: Moment, whereabouts: MessageLocations | None, steps: Sequence[AskedStep]
    ) -> WhatIf | Unforeseen:
        """What would follow from a moment on if these steps came next. Raises `InputError` for
        steps that are not possible."""
        debts = moment.open_debts(whereabouts)

        def compute() -> WhatIf:
            present = self._present(moment, debts, influential_only=False)
            return WhatIf(
                offers_of(present, whereabouts),
                _course(present, ()),
                _course(present, steps) if steps else None,
                present.remarks,
            )

        return await _foreseen(compute)


def _course(present: ModelledSubject, steps: Sequence[AskedStep]) -> Consequences | Unforeseen:
    try:
        return computed(lambda: course(present, steps))
    except VerifyError as error:
        return Unforeseen(str(error))


async def _foreseen(compute: Callable[[], T]) -> T | Unforeseen:
    """What is computed on a thread, or why it cannot be."""

    def work() -> T | Unforeseen:
        try:
            return computed(compute)
        except VerifyError as error:
            return Unforeseen(str(error))

    return await asyncio.to_thread(work)


def _key(moment: Moment, debts: Sequence[Debt]) -> Hashable:
    owed = tuple((d.participant, d.event.id if d.event else d.firing) for d in debts)
    return moment.story.subject, tuple(moment.story.events), owed, moment.is_last


def part_of(found: Trace, first: int, limit: int) -> Trace:
    """The trace with only so many rows of its picture, from that one on."""
    rows = found.diagram.rows[first : first + limit]
    named = {name for row in rows for name in (row.participant, *row.to)}
    participants = tuple(name for name in found.diagram.participants if name in named)
    return replace(found, diagram=replace(found.diagram, participants=participants, rows=rows))
