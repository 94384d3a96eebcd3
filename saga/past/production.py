"""What production has done of what the models do: by participant, what it took and published."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.choreography import Choreography
from saga.envelope import Attributes, source_of
from saga.history.story import reaction_behind
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
    """What the newest events tell, so many of them. `lost` are those whose cause should be in the
    archive, and is not: what was taken then is not known."""

    events: int
    of: int
    transitions: Sequence[TakenTransition]
    lost: Sequence[TakenTransition] = ()


def production(connection: Connection, graph: Choreography) -> Production:
    """The transitions behind the newest events. What was published because of something that is no
    event was taken from outside, or was due; the id of an event tells whether it is one of those.
    """
    last = connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    cause = events.alias("cause")
    query = (
        sa.select(events.c.source, cause.c.type, events.c.type, events.c.subject)
        # A body is read only where the cause is not there.
        .add_columns(sa.case((cause.c.type.is_(None), events.c.body)))
        .select_from(events.outerjoin(cause, cause.c.event_id == events.c.causation))
        .where(events.c.position > last - EVENTS_MAX)
        .order_by(events.c.source, cause.c.type, events.c.type, events.c.subject)
    )
    by_source = {source_of(participant.name): participant for participant in graph.participants}
    found: dict[tuple[bool, Transition], TakenTransition] = {}
    for source, taken, published, subject, body in connection.execute(query):
        if (participant := by_source.get(source)) is None:
            continue
        lost = body is not None and reaction_behind(participant, Attributes.of(body)) is not None
        key = lost, (participant.name, taken, published)
        before = found.get(key) or TakenTransition(participant.name, taken, published, 0, subject)
        found[key] = replace(before, count=before.count + 1)
    return Production(
        sum(each.count for each in found.values()),
        last,
        [each for (lost, _), each in found.items() if not lost],
        [each for (lost, _), each in found.items() if lost],
    )


def unmodelled(
    found: Sequence[TakenTransition], answered: Collection[Transition]
) -> list[TakenTransition]:
    """Those that no model has taken."""
    known = {*answered}
    return [each for each in found if each.key not in known]
