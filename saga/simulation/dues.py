"""What a run tells of timers: each done once, not before its time, and none forgotten."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.choreography import Participant
from saga.envelope import Decoder, Envelope, derived_id, rfc3339, source_of
from saga.message import Answer
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import Firing, cause_among_commands, due_source_of
from saga.runtime.kernel.tables import Tables, due_at_of
from saga.simulation.database import SimulatedStore
from saga.simulation.rules import violation
from saga.view import Violation

LATE_MAX_SECONDS: Final = 40.0
"""How long after it was due, or after the storm if that is later, something may be done: by then
its service may still be frozen, or wait for its database."""


def violations(
    participant: Participant,
    tables: Tables,
    store: SimulatedStore,
    decoder: Decoder,
    calm_at: datetime,
) -> Iterator[Violation]:
    """What is wrong with what one participant did because it was due, in a storm that was over by
    `calm_at`; the decoder reads what it publishes."""
    if not tables.with_dues:
        return
    events = sorted(map(decoder.decode, store.committed()), key=_sequence_of)
    yield from _early(participant, events)
    yield from _late(participant, events, calm_at)
    yield from _in_vain(participant, events, store.read(partial(_inbox, tables)))
    yield from store.read(partial(_lost, tables))


def _sequence_of(event: Envelope[Any]) -> int:
    return event.sequence or 0


def _early(participant: Participant, events: Sequence[Envelope[Any]]) -> Iterator[Violation]:
    """Events that came of what was due, before it was: an event's id tells what it came of."""
    fold, name = Fold(participant), participant.name
    steps = [
        f"{name}.{participant.by_message[command].name}"
        for commands in participant.dues.values()
        for command in commands
    ]
    for event in events:
        cause = cause_among_commands(event.causationid or "", due_source_of(name))
        if any(derived_id(cause, f"{step}.{event.type}") == event.id for step in steps):
            firing = Firing.of(fold.own(event.type, event.subject))
            if firing is not None and event.time < firing.due.at:
                yield violation(
                    "due_early",
                    event.subject,
                    f"{event.type} came of what was due at {rfc3339(firing.due.at)} only, at "
                    f"{rfc3339(event.time)}",
                )
        fold.take(event)


def _late(
    participant: Participant, events: Sequence[Envelope[Any]], calm_at: datetime
) -> Iterator[Violation]:
    """Events about a state long after something was due about it, which had to come before.

    Where a question ends what is due, no event tells when: so of what came of an answer, nothing is
    said.
    """
    fold = Fold(participant)
    for event in events:
        firing = Firing.of(fold.own(event.type, event.subject))
        if firing is not None and not _came_of_an_answer(participant, event):
            late_seconds = (event.time - max(firing.due.at, calm_at)).total_seconds()
            if late_seconds > LATE_MAX_SECONDS:
                yield violation(
                    "due_late",
                    event.subject,
                    f"{event.type} came {late_seconds:.0f} s after {firing.due.command.type} was "
                    f"due, or after the storm",
                )
        fold.take(event)


def _came_of_an_answer(participant: Participant, event: Envelope[Any]) -> bool:
    """Whether the outside's answer to a question led to it, as its id tells."""
    cause = event.causationid or ""
    senders = {sender for command in participant.intake for sender in command.senders}
    causes = [cause, *(cause_among_commands(cause, source_of(sender)) for sender in senders)]
    steps = [
        f"{participant.name}.{reaction.name}.{event.type}"
        for reaction in participant.reactions
        if issubclass(reaction.consumes, Answer)
    ]
    return any(derived_id(each, step) == event.id for each in causes for step in steps)


def _in_vain(
    participant: Participant, events: Sequence[Envelope[Any]], inbox: Sequence[str]
) -> Iterator[Violation]:
    """What was done as due, and led to nothing: it was done before, or not due any more."""
    causes = {event.causationid for event in events}
    for key in inbox:
        id, _, source = key.partition("\t")
        if source == due_source_of(participant.name) and id not in causes:
            yield violation(
                "due_in_vain", id, f"{participant.name} did what was not due, or not any more"
            )


def _inbox(tables: Tables, connection: Connection) -> Sequence[str]:
    return connection.scalars(_keys_in(tables.inbox)).all()


@lru_cache(maxsize=64)
def _keys_in(inbox: sa.Table) -> sa.Select[Any]:
    return sa.select(inbox.c.message_id)


def _lost(tables: Tables, connection: Connection) -> list[Violation]:
    """States that say when something is due, in rows that do not."""
    found = []
    for table in tables.with_dues:
        rows = dict(table.due(connection))
        for states, _ in table.pages(connection):
            for key, state in states.items():
                if due_at_of(state) != rows.get(key):
                    detail = f"due at {due_at_of(state)}, and its row says {rows.get(key)}"
                    found.append(violation("due_lost", key, detail))
    return found
