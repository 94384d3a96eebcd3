"""Who waits for a person's decision: read from the participant's own database, a part at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from sqlalchemy.engine import Connection

from saga.choreography import State
from saga.console.watched import Watched
from saga.declaration import Saga
from saga.discovery import tables_in
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import StateTable
from saga.view import Broken, EventsInMemory, Invariant, View

LOOKED_AT_MAX: Final = 20_000
"""States that are read for one page; the next page goes on behind them."""
_JUDGED_TOGETHER: Final = 50


@dataclass(frozen=True, slots=True)
class Undecided:
    """Who waits, as far as it was looked: `next` is the key behind which there is more to look at.
    `why_not` says why nobody could look."""

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
