"""Who waits for an operator's decision: read from the participant's own database, a part at a time;
and what about one subject was asked of outsides that cannot be asked twice."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy.engine import Connection

from saga.choreography import Participant, State
from saga.console.watched import Watched
from saga.declaration import Saga
from saga.discovery import tables_in
from saga.history.story import Story
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.step import StateId
from saga.runtime.kernel.tables import StateTable
from saga.view import Broken, EventsInMemory, Invariant, View

LOOKED_AT_MAX: Final = 20_000
"""States that are read for one page; the next page goes on behind them."""
_JUDGED_TOGETHER: Final = 50


@dataclass(frozen=True, slots=True)
class Undecided:
    """Who waits, as far as it was looked: `next` is the key behind which there is more to look at.
    `why_not` says why it could not be read."""

    found: Sequence[Broken] = ()
    looked_at: int = 0
    unreadable: int = 0
    next: str | None = None
    why_not: str = ""


async def undecided_in(
    watched: Watched, rule: Invariant, limit: int, after: str | None = None
) -> Undecided:
    """At least `limit` subjects that a rule leaves to people, in the order of their keys, or all
    there are among the next `LOOKED_AT_MAX`. Raises `DeploymentError`."""
    kept = _kept(watched.saga, rule)
    if kept is None:
        return Undecided(
            why_not="the rule reads more than the states of one kind: a reconciliation tells"
        )
    participant, table = kept
    url = watched.deployment.database_urls.get(participant)
    if url is None:
        return Undecided(why_not=f"the deployment names no database of {participant}; add its URL")

    def look(connection: Connection) -> Undecided:
        return _look(connection, participant, table, rule, limit, after)

    try:
        return await asyncio.to_thread(read_database, url, look)
    except DatabaseError as error:
        return Undecided(why_not=str(error))


def _kept(saga: Saga, rule: Invariant) -> tuple[str, StateTable[Any]] | None:
    """Whose states a rule reads, and their table; None where it reads anything else."""
    if len(rule.states) != 1 or len(rule.reads) != 1:
        return None
    (kind,) = rule.states
    for participant in saga.choreography.in_python:
        if (table := tables_in(participant.package).states.get(kind)) is not None:
            return participant.name, table
    return None


def _look(
    connection: Connection,
    participant: str,
    table: StateTable[State],
    rule: Invariant,
    limit: int,
    after: str | None,
) -> Undecided:
    found: list[Broken] = []
    looked_at = unreadable = 0
    for states, not_read in table.pages(connection, after):
        unreadable += len(not_read)
        rest = iter(states.items())
        while some := dict(islice(rest, _JUDGED_TOGETHER)):
            known = {participant: {(table.kind, key): state for key, state in some.items()}}
            view = View(known, EventsInMemory(()), rests=lambda _: True)
            found += rule.broken(view)
            looked_at += len(some)
            if len(found) >= limit or looked_at >= LOOKED_AT_MAX:
                return Undecided(found, looked_at, unreadable, list(some)[-1])
    return Undecided(found, looked_at, unreadable)


# --- about one subject --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LeftToPeople:
    """What about a subject waits for an operator. `can_be_decided` where the saga says how."""

    rule: str
    detail: str
    can_be_decided: bool


@dataclass(frozen=True, slots=True)
class AskedOnce:
    """A participant's state about a question that must not be put twice, or that a rule leaves to
    people: `outsides` are whom it is put to. `why_not` says why it is only as its events leave it,
    and not as the participant has it now."""

    participant: str
    outsides: Sequence[str]
    state: State
    why_not: str = ""


async def asked_once(watched: Watched, story: Story) -> tuple[list[AskedOnce], list[LeftToPeople]]:
    """What about a subject was asked of outsides that are not idempotent, or is of a kind that
    people decide about, and what of it waits for an operator: as the participants have it now,
    since not every step of a question is an event. Raises `DeploymentError`."""
    known = {name: dict(fold.states) for name, fold in story.folds.items()}
    found: list[AskedOnce] = []
    for participant in watched.graph.in_python:
        kinds = _kinds_asked_once(watched.saga, participant)
        if not kinds:
            continue
        now, why_not = await _as_it_is(watched, participant, kinds, story.subject)
        states = known[participant.name]
        states |= now
        found += (
            AskedOnce(participant.name, kinds[kind], state, why_not)
            for (kind, key), state in states.items()
            if kind in kinds and key == story.subject
        )
    return found, list(_left_to_people(watched.saga, story, known))


def _kinds_asked_once(saga: Saga, participant: Participant) -> Mapping[type[State], Sequence[str]]:
    """Keyed by kind of state that says what became of such a question: the outsides."""
    found: dict[type[State], set[str]] = {}
    decided = {kind for rule in saga.left_to_people for kind in rule.states}
    for reaction in participant.reactions:
        if reaction.own in decided:
            found.setdefault(reaction.own, set())
        for outside in saga.asked_by(participant.name):
            if outside.intents & {*reaction.intends} and (
                not outside.idempotent or reaction.own in decided
            ):
                found.setdefault(reaction.own, set()).add(outside.name)
    return {kind: sorted(names) for kind, names in found.items()}


def _left_to_people(
    saga: Saga, story: Story, known: Mapping[str, Mapping[StateId, State]]
) -> Iterator[LeftToPeople]:
    choices = {choice.rule for choice in saga.choices}
    view = View(known, EventsInMemory(list(story.events.values())), rests=lambda _: True)
    for rule in saga.left_to_people:
        for subject, detail in rule.broken(view):
            if subject == story.subject:
                yield LeftToPeople(rule.name, detail, rule.name in choices)


async def _as_it_is(
    watched: Watched,
    participant: Participant,
    kinds: Mapping[type[State], object],
    subject: str,
) -> tuple[dict[StateId, State], str]:
    """A participant's states about a subject as it has them; or why they could not be read."""
    url = watched.deployment.database_urls.get(participant.name)
    if url is None:
        return {}, f"the deployment names no database of {participant.name}"
    tables = tables_in(participant.package).states

    def look(connection: Connection) -> tuple[dict[StateId, State], str]:
        found: dict[StateId, State] = {}
        unreadable = ""
        for kind in kinds:
            if (table := tables.get(kind)) is None:
                continue
            states, not_read = table.load_readable(connection, [subject])
            found |= {(kind, key): state for key, state in states.items()}
            unreadable = unreadable or "; ".join(map(str, not_read))
        return found, unreadable

    try:
        return await asyncio.to_thread(read_database, url, look)
    except DatabaseError as error:
        return {}, str(error)
