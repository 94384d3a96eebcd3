"""What production has done of what the models do: by participant, what it took and published."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.choreography import Choreography
from saga.envelope import source_of
from saga.verify.proof import Transition

EVENTS_MAX: Final = 5_000
"""The newest ones, that are looked at."""


@dataclass(frozen=True, slots=True)
class TakenTransition:
    """A transition that production has taken: how often, and a subject about which it did."""

    participant: str
    taken: str | None
    published: str
    count: int
    subject: str

    @property
    def key(self) -> Transition:
        return self.participant, self.taken, self.published


@dataclass(frozen=True, slots=True)
class Production:
    """What the newest events tell, so many of them, the first of which is at a time."""

    events: int
    of: int
    transitions: Sequence[TakenTransition]


def production(connection: Connection, graph: Choreography) -> Production:
    """The transitions behind the newest events. What was published because of something that is no
    event was taken from outside, or was due."""
    last = connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    newest = sa.select(events.c.source, events.c.type, events.c.subject, events.c.causation).where(
        events.c.position > last - EVENTS_MAX
    )
    window = newest.subquery("newest")
    causes = events.alias("causes")
    query = (
        sa.select(
            window.c.source,
            causes.c.type,
            window.c.type,
            sa.func.count(),
            sa.func.min(window.c.subject),
        )
        .select_from(window.outerjoin(causes, causes.c.event_id == window.c.causation))
        .group_by(window.c.source, causes.c.type, window.c.type)
        .order_by(window.c.source, causes.c.type, window.c.type)
    )
    names = {source_of(participant.name): participant.name for participant in graph.participants}
    found = [
        TakenTransition(names[source], taken, published, count, subject)
        for source, taken, published, count, subject in connection.execute(query)
        if source in names
    ]
    return Production(sum(each.count for each in found), last, found)


def unmodelled(
    found: Sequence[TakenTransition], answered: Collection[Transition]
) -> list[TakenTransition]:
    """Those that no model has taken."""
    known = {*answered}
    return [each for each in found if each.key not in known]
