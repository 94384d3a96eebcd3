"""The events of one order, each after what caused it, with the time that each hop took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.clock import elapsed
from common.envelope import Attributes
from history_service.store import Fact


@dataclass(frozen=True, slots=True)
class Step:
    """One event, and how it came about.

    `waited` is how long its cause was on its way to the participant, `worked` how long that had it
    in its hands; None where the cause is no event that is known, a command for instance.
    """

    fact: Fact
    cause: Fact | None
    waited: timedelta | None
    worked: timedelta | None

    @property
    def attributes(self) -> Attributes:
        return self.fact.attributes


def steps_of(facts: Sequence[Fact]) -> list[Step]:
    """The steps that these events were, by time; but no event comes before its cause, whatever
    the participants' clocks say."""
    by_id = {fact.attributes.id: fact for fact in facts}
    placed: dict[str, Step] = {}

    def place(fact: Fact) -> None:
        waiting = {fact.attributes.id: fact}
        last = fact
        while (cause := by_id.get(last.attributes.causationid or "")) is not None:
            if cause.attributes.id in placed or cause.attributes.id in waiting:
                break
            waiting[cause.attributes.id] = last = cause
        for next_fact in reversed(waiting.values()):
            step = _step(next_fact, by_id.get(next_fact.attributes.causationid or ""))
            placed.setdefault(next_fact.attributes.id, step)

    for fact in sorted(facts, key=_moment):
        if fact.attributes.id not in placed:
            place(fact)
    return list(placed.values())


def _moment(fact: Fact) -> tuple[datetime, str, int, int]:
    # Of one participant, events of the same moment come in its own order.
    attributes = fact.attributes
    return attributes.time, attributes.source, attributes.sequence or 0, fact.position


def _step(fact: Fact, cause: Fact | None) -> Step:
    taken_at = fact.attributes.takenat
    waited = elapsed(cause.attributes.time, taken_at) if cause and taken_at else None
    worked = elapsed(taken_at, fact.attributes.time) if taken_at else None
    return Step(fact, cause, waited, worked)
