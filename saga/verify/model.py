"""What is checked: participants, the world around them, and what must never be seen.

A model is data, made of a saga and one of its scenarios; `machine` turns it into states and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from saga.choreography import Choreography, Participant, State
from saga.declaration import Saga, Scenario, Stimulus
from saga.envelope import Envelope
from saga.errors import Explained
from saga.message import Command, Event, Priority
from saga.outside import Outside
from saga.rules import Rules
from saga.runtime.kernel.step import StateId
from saga.view import Invariant, View, Violation


class VerifyError(Explained):
    """A model that cannot be explored. Names what stands in the way, and the way out."""


Judge = Callable[[View, bool], Iterable[Violation]]
"""What is wrong with a state of the system, which is at rest or not."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """A state of a running system, for a model to begin with."""

    known: Mapping[str, Mapping[StateId, State]]
    """Keyed by participant: its states."""
    told: Sequence[tuple[Envelope[Any], Collection[str]]]
    """What was published, each with the participants to which it is still on its way."""
    books: Mapping[str, Any]
    """Keyed by outside: what it knows."""


def _blank(participant: str, state_id: StateId) -> State:
    kind, key = state_id
    return kind(key)


@dataclass(frozen=True, slots=True)
class Model:
    """A choreography and the world it is to be tried in."""

    name: str
    source: str
    """An expression that makes this model, as `module:expression`: for tests to be pasted."""
    choreography: Choreography
    starts: Mapping[str, Sequence[tuple[str, Command]]]
    sent: Sequence[tuple[str, Command | Event]]
    stimuli: Sequence[Stimulus]
    moments: Sequence[datetime]
    judge: Judge
    outside: Sequence[Outside[Any]] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    timers_last: bool = False
    priorities: Mapping[str, Priority] = field(default_factory=dict)
    """Keyed by subject: how what comes from outside about it travels."""
    begun: Mapping[str, Beginning] = field(default_factory=dict)
    """How else it may begin, by name: in the middle of things."""
    unsaid: Callable[[str, StateId], State] = _blank
    """A participant's state of which nothing is known: a blank one, or a `VerifyError` where that
    would be a guess."""


def model_of(saga: Saga, scenario: str, *, source: str = "") -> Model:
    """The model of a saga in the scenario of that name. Raises `SagaError`, and `VerifyError` where
    no outside answers a question.

    `source` is the expression that makes it, if it is not the saga of this project.
    """
    one = saga.scenario(scenario)
    choreography = _taking_part(saga, one)
    names = {participant.name for participant in choreography.participants}
    outside = tuple(_deciding(one, each) for each in saga.outside if each.asked_by in names)
    if strange := sorted(one.decisions.keys() - {each.name for each in outside}):
        raise VerifyError(
            f"{scenario}: `decisions` has {', '.join(strange)}, which is not asked here; there are "
            f"{', '.join(each.name for each in outside) or 'no outsides'}"
        )
    for participant in choreography.participants:
        for reaction in participant.reactions:
            for intent in reaction.intends:
                if not any(intent in each.intents for each in outside):
                    raise VerifyError(
                        f"{scenario}: {participant.name} asks {intent.__name__}, and no outside is "
                        f"said to take that; declare an `Outside` that does, or leave "
                        f"{participant.name} out of the scenario and say in another one what "
                        f"becomes of it"
                    )
    everywhere = replace(
        saga, always=(*saga.always, *one.always), at_rest=(*saga.at_rest, *one.at_rest)
    )
    rules = Rules(everywhere, choreography)
    return Model(
        name=one.name,
        source=source,
        choreography=choreography,
        starts=one.starts,
        sent=one.sent,
        stimuli=one.stimuli,
        moments=one.moments,
        judge=lambda view, at_rest: rules.judge(view, at_rest=at_rest),
        outside=outside,
        names=one.names,
        timers_last=one.timers_last,
        priorities=one.priorities,
    )


def _deciding(scenario: Scenario, outside: Outside[Any]) -> Outside[Any]:
    """An outside that decides only what it may in a scenario."""
    decisions = tuple(scenario.decisions.get(outside.name, outside.decisions))
    return replace(outside, decisions=decisions)


def unapplied(saga: Saga) -> Iterator[Invariant]:
    """The invariants that read what is together in no scenario: none of them is ever judged."""
    rules = [Rules(saga, _taking_part(saga, scenario)) for scenario in saga.scenarios]
    applied = {one.name for each in rules for one in (*each.always, *each.at_rest)}
    return (invariant for invariant in saga.invariants if invariant.name not in applied)


def _taking_part(saga: Saga, scenario: Scenario) -> Choreography:
    participants = tuple(
        p
        for p in saga.choreography.participants
        if p.name not in scenario.without and (scenario.only is None or p.name in scenario.only)
    )
    if scenario.influential:
        participants = influential(participants)
    return Choreography(participants, partial=True)


def influential(participants: Sequence[Participant]) -> tuple[Participant, ...]:
    """Without participants whose messages no other takes, and that take no commands of others: they
    cannot change what becomes of others."""
    found = tuple(participants)
    while True:
        taken = {message for p in found for message in (*p.consumes, *p.intake)}
        sent = {command for p in found for command in p.sends}
        kept = tuple(p for p in found if taken.intersection(p.emits) or sent.intersection(p.intake))
        if kept == found:
            return found
        found = kept
