"""A subject right after one of its events, and the model that begins there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from saga.archive.timeline import Hop
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.future.present import ModelledSubject, SubjectModels, shared_keys
from saga.future.reading import read_shared
from saga.history.debts import Coming, Debt, coming_of, debts_of
from saga.history.story import Story, tell
from saga.history.trace import Trace, events_before, facts_of
from saga.history.whereabouts import MessageLocations, Place


@dataclass(frozen=True, slots=True)
class Moment:
    """A subject right after one of its events, the one of that number from 1; 0 is before all."""

    number: int
    last: int
    step: Hop | None
    story: Story
    debts: Sequence[Debt]
    coming: Sequence[Coming]
    now: datetime

    @property
    def is_last(self) -> bool:
        return self.number == self.last

    def open_debts(self, whereabouts: MessageLocations | None) -> list[Debt]:
        """What may still be met: not what an operator has settled."""
        if whereabouts is None or not self.is_last:
            return list(self.debts)
        return [
            debt
            for debt in self.debts
            if debt.event is None
            or whereabouts.of(debt.participant, debt.event.id).place is not Place.SETTLED
        ]


def moment_after(graph: Choreography, found: Trace, number: int | None) -> Moment:
    """The moment after the event of that number; by default the present."""
    story = found.story
    steps = [step for step in story.steps if step.attributes.key in story.events]
    last = len(steps)
    if number is None or number >= last:
        step = steps[-1] if steps else None
        return Moment(last, last, step, story, found.debts, found.coming, found.now)
    if number <= 0:
        number, events = 0, []
    else:
        event = story.events[steps[number - 1].attributes.key]
        events = [*events_before(story, event.id), event]
    told = tell(graph, story.subject, facts_of(found.facts, events))
    now = events[-1].time if events else steps[0].attributes.time
    return Moment(
        number,
        last,
        steps[number - 1] if number else None,
        told,
        debts_of(graph, told, now),
        coming_of(graph, told, now),
        now,
    )


def modelled(
    deployment: Deployment,
    foresight: SubjectModels,
    moment: Moment,
    debts: Sequence[Debt],
    *,
    influential_only: bool,
) -> ModelledSubject:
    """The model that begins at a moment; blocks. Raises `VerifyError` and `DatabaseError`."""
    graph = foresight.saga.choreography
    present = foresight.present(
        moment.story,
        debts,
        moment.coming,
        read_shared(deployment, graph, shared_keys(graph, moment.story)),
        moment.now,
        influential_only=influential_only,
    )
    if present.shared and not moment.is_last:
        then = f"{', '.join(present.shared)}: not as it was then, which was not kept"
        present = replace(present, remarks=(*present.remarks, then))
    return present
