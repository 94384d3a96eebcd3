"""Who owes the next event: nobody orchestrates, but the graph and the participants tell.

A participant owes an answer to an event if it reacts to such events, has published nothing because
of this one, and would decide on something: its own reaction is run, on its state as its events tell
it. What it would decide is not asked, so states of other kinds are blank.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from common.choreography import Choreography, Participant
from common.envelope import Envelope, source_of
from common.kernel.fold import Fold
from common.kernel.step import react
from common.message import Role
from saga.history.story import Story

log = logging.getLogger(__name__)

LATE_SECONDS: Final = 10.0
"""How long an answer may take, besides what its participant waits between its tries."""
OVERDUE_SECONDS: Final = 5.0
"""How long after its deadline an order may end."""


@dataclass(frozen=True, slots=True)
class Debt:
    """What a participant owes: one of `answers`, to `event`; without one, at the deadline.

    It may take until `by`: that is when the last of the participant's tries is over, or the order's
    deadline.
    """

    participant: str
    event: Envelope[Any] | None
    answers: tuple[str, ...]
    since: datetime
    by: datetime

    def late(self, now: datetime) -> bool:
        return now > self.by


def debts_of(graph: Choreography, story: Story, now: datetime) -> list[Debt]:
    """What is owed by now about an order, the oldest first."""
    found = [*_unanswered(graph, story, now), *_overdue(graph, story, now)]
    return sorted(found, key=lambda debt: debt.since)


def _unanswered(graph: Choreography, story: Story, now: datetime) -> Iterator[Debt]:
    begun = {(event.source, event.causationid) for event in story.events.values()}
    for event in story.events.values():
        for participant in graph.reacting_to(event.type):
            has_begun = (source_of(participant.name), event.id) in begun
            fold = story.folds[participant.name]
            if answers := answers_to(participant, event, fold, now, has_begun=has_begun):
                retry = participant.retry_of(type(event.data))
                tries = timedelta(milliseconds=sum(retry.waits_ms))
                by = event.time + tries + timedelta(seconds=LATE_SECONDS)
                yield Debt(participant.name, event, answers, event.time, by)


def _overdue(graph: Choreography, story: Story, now: datetime) -> Iterator[Debt]:
    """Whoever may cancel an order owes that once its deadline has passed."""
    deadline = story.view.deadline
    if story.view.terminal or deadline is None or now < deadline:
        return
    for participant in graph.participants:
        ends = [kind.type for kind in participant.publishes if kind.role is Role.CANCELLATION]
        if ends:
            by = deadline + timedelta(seconds=OVERDUE_SECONDS)
            yield Debt(participant.name, None, tuple(ends), deadline, by)


def answers_to(
    participant: Participant,
    event: Envelope[Any],
    fold: Fold,
    now: datetime,
    *,
    has_begun: bool = False,
) -> tuple[str, ...]:
    """The types of the events that a participant's reaction to an event may come to publish; none
    if it would decide on nothing. One that raises leads to a dead letter, and that is not nothing.

    Of one that `has_begun` to answer, only what is left to ask the outside.
    """
    reaction = participant.by_message[type(event.data)]
    try:
        decision = react(participant, event, event.data, fold.find, now)
    except Exception as error:
        log.debug("%s would fail on %s: %s", participant.name, event.id, error)
        if has_begun:
            return ()
        publishers = [reaction, *(participant.by_message[i.answer] for i in reaction.intends)]
    else:
        if decision.intent is not None:
            publishers = [participant.by_message[type(decision.intent).answer]]
        elif decision.events and not has_begun:
            publishers = [reaction]
        else:
            return ()
    return tuple(dict.fromkeys(kind.type for one in publishers for kind in one.publishes))
