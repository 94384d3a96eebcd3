"""The events of one subject, each after what caused it, with the time that each hop took."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from saga.archive.store import Fact
from saga.clock import elapsed
from saga.envelope import Attributes, MessageKey


@dataclass(frozen=True, slots=True)
class Hop:
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


def steps_of(facts: Sequence[Fact]) -> list[Hop]:
    """The steps that these events were, by time; but no event comes before its cause, whatever
    the participants' clocks say."""
    in_time = sorted(facts, key=_moment)
    causes: dict[str, Fact] = {}
    for fact in in_time:
        # An event names its cause by its id only; of several sources' it is taken for the first.
        causes.setdefault(fact.attributes.id, fact)
    placed: dict[MessageKey, Hop] = {}

    def place(fact: Fact) -> None:
        waiting = {fact.attributes.key: fact}
        last = fact
        while (cause := causes.get(last.attributes.causationid or "")) is not None:
            if cause.attributes.key in placed or cause.attributes.key in waiting:
                break
            waiting[cause.attributes.key] = last = cause
        for next_fact in reversed(waiting.values()):
            step = _step(next_fact, causes.get(next_fact.attributes.causationid or ""))
            placed.setdefault(next_fact.attributes.key, step)

    for fact in in_time:
        if fact.attributes.key not in placed:
            place(fact)
    return list(placed.values())


def milliseconds(time: timedelta | None) -> float | None:
    """How many they are; None of nothing."""
    return None if time is None else time / timedelta(milliseconds=1)


def _moment(fact: Fact) -> tuple[datetime, str, int, int]:
    # Of one participant, events of the same moment come in its own order.
    attributes = fact.attributes
    return attributes.time, attributes.source, attributes.sequence or 0, fact.position


def _step(fact: Fact, cause: Fact | None) -> Hop:
    taken_at = fact.attributes.takenat
    waited = elapsed(cause.attributes.time, taken_at) if cause and taken_at else None
    worked = elapsed(taken_at, fact.attributes.time) if taken_at else None
    return Hop(fact, cause, waited, worked)
