"""Who owes the next event: there is no orchestrator, but the graph and the participants tell.

A participant owes an answer to an event if it reacts to such events, has published nothing because
of this one, and would decide on something: its own reaction is run, on its state as its events tell
it. What it would decide is not asked, so states of other kinds are blank. It owes what is due about
its state as well, once the time has come; until then, that is what will happen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from saga.choreography import Choreography, Participant
from saga.due import OVERDUE_SECONDS
from saga.envelope import Envelope, source_of
from saga.history.story import Story
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import Firing, react

log = logging.getLogger(__name__)

LATE_SECONDS: Final = 10.0
"""How long an answer may take, besides what its participant waits between its tries."""


@dataclass(frozen=True, slots=True)
class Debt:
    """What a participant owes: one of `answers`, to `event`, or to what is due, the `firing`.

    It may take until `by`: that is when the last of the participant's tries is over, or what is due
    was to be done.
    """

    participant: str
    event: Envelope[Any] | None
    answers: tuple[str, ...]
    since: datetime
    by: datetime
    firing: Firing | None = None

    def late(self, now: datetime) -> bool:
        return now > self.by


@dataclass(frozen=True, slots=True)
class Coming:
    """What a participant will do when it is due, unless something happens before; it may come to
    publish one of `answers`."""

    participant: str
    firing: Firing
    answers: tuple[str, ...]

    @property
    def at(self) -> datetime:
        return self.firing.due.at


def debts_of(graph: Choreography, story: Story, now: datetime) -> list[Debt]:
    """What is owed by now about a subject, the oldest first."""
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


def coming_of(graph: Choreography, story: Story, now: datetime) -> list[Coming]:
    """What will happen to a subject when its time comes, the first in front."""
    return [coming for coming in _dues(graph, story) if coming.at > now]


def _overdue(graph: Choreography, story: Story, now: datetime) -> Iterator[Debt]:
    """What is due is owed once its time has come."""
    for coming in _dues(graph, story):
        if coming.at <= now:
            by = coming.at + timedelta(seconds=OVERDUE_SECONDS)
            answers = coming.answers
            yield Debt(coming.participant, None, answers, coming.at, by, coming.firing)


def _dues(graph: Choreography, story: Story) -> list[Coming]:
    """What is due about a subject, now or later, by what the participants' events tell."""
    found = []
    for participant in graph.participants:
        for (kind, key), state in story.folds[participant.name].states.items():
            if key != story.subject or kind not in participant.dues:
                continue
            if (firing := Firing.of(state)) is not None:
                reaction = participant.by_message[type(firing.due.command)]
                answers = tuple(kind.type for kind in reaction.emits)
                found.append(Coming(participant.name, firing, answers))
    return sorted(found, key=lambda coming: coming.at)


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

    Of one that `has_begun` to answer, only what is left to ask the outside. One in another language
    owes an answer where its signature leaves it none but that.
    """
    reaction = participant.by_message[type(event.data)]
    if participant.foreign:
        owes = not (has_begun or reaction.may_do_nothing)
        return tuple(kind.type for kind in reaction.emits) if owes else ()
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
    return tuple(dict.fromkeys(kind.type for one in publishers for kind in one.emits))
