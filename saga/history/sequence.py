"""One subject's story as a sequence: what happened, row by row, to be drawn in whatever way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from saga.archive.timeline import Hop
from saga.choreography import Choreography
from saga.dlq.letters import Copy, document_of
from saga.dlq.states import SETTLED
from saga.envelope import MessageKey, source_of
from saga.graph.flow import Flow, Path
from saga.history.debts import Coming, Debt
from saga.history.letters import Life
from saga.history.story import Story
from saga.history.whereabouts import MessageLocations
from saga.message import Command, Event
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.wording import counted

ELSEWHERE: Final = "elsewhere"
"""A publisher that is no participant of this version."""
ERROR_MAX_CHARACTERS: Final = 80


class Kind(StrEnum):
    """What a row tells of."""

    EVENT = "event"
    PRIVATE = "private"
    """An event that is its participant's own."""
    COMMAND = "command"
    """What a participant has told another one to do."""
    END = "end"
    """An event that ends the saga."""
    DEAD = "dead_letter"
    REPLAY = "replay"
    SETTLED = "settled"
    NOTE = "note"
    OWED = "owed"
    DUE = "due"
    """What will happen when its time comes."""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that happened at a participant, `after` the first event.

    An event goes `to` those who react to it. `note` is what else is to be said of it.
    """

    kind: Kind
    participant: str
    label: str
    after: timedelta
    to: tuple[str, ...] = ()
    note: str = ""
    path: Path = Path.HAPPY
    id: str = ""


@dataclass(frozen=True)
class Diagram:
    """The rows in the order of time; and the participants in that of the flow, left to right."""

    participants: tuple[str, ...]
    rows: tuple[Row, ...]


def sequence_of(
    graph: Choreography,
    story: Story,
    *,
    lives: Sequence[Life] = (),
    dead: Sequence[Copy] = (),
    debts: Sequence[Debt] = (),
    coming: Sequence[Coming] = (),
    whereabouts: MessageLocations | None = None,
    now: datetime,
) -> Diagram:
    """The sequence of what is known of a subject; `dead` are letters that are in no store yet."""
    flow = Flow(graph)
    timed = sorted(
        [
            *_events(flow, story),
            *_lives(lives),
            *(
                _death(copy.participant, copy.type, copy.last_failed_at, _said(copy), copy.attempts)
                for copy in dead
                if copy.subject == story.subject
            ),
        ],
        key=lambda one: one[0],
    )
    began = timed[0][0] if timed else now
    rows = [replace(row, after=at - began) for at, row in timed]
    rows += (
        Row(Kind.NOTE, hole.publishers[0], f"{hole.detail} is missing", timedelta(0))
        for hole in story.holes
    )
    rows += (_owed(debt, whereabouts, now, began) for debt in debts)
    rows += (_due(one, now, began) for one in coming)
    named = {name for row in rows for name in (row.participant, *row.to)}
    order = [*flow.participants, *sorted(named - set(flow.participants))]
    return Diagram(tuple(name for name in order if name in named), tuple(rows))


_Timed = tuple[datetime, Row]


def _events(flow: Flow, story: Story) -> Iterator[_Timed]:
    names = {source_of(p.name): p.name for p in flow.choreography.participants}
    newest = {message.type: message for message in flow.choreography.recorded}
    at = story.steps[0].attributes.time if story.steps else None
    for step in story.steps:
        attributes = step.attributes
        # Never before its cause, whatever the clocks say.
        at = max(at or attributes.time, attributes.time)
        kind = newest.get(attributes.type)
        name = names.get(attributes.source, ELSEWHERE)
        if attributes.source == EDITOR_SOURCE:
            yield at, _corrected(step)
        elif attributes.key not in story.events or kind is None:
            label = f"{attributes.type}, which this version cannot read"
            yield at, Row(Kind.NOTE, name, label, timedelta(0), id=attributes.id)
        else:
            yield (
                at,
                Row(
                    kind=_kind_of(kind),
                    participant=name,
                    label=attributes.type + _told(story, attributes.key),
                    after=timedelta(0),
                    to=tuple(p.name for p in flow.choreography.reacting_to(attributes.type)),
                    note=_hop(step),
                    path=flow.path(kind),
                    id=attributes.id,
                ),
            )


def _kind_of(message: type[Event | Command]) -> Kind:
    if issubclass(message, Command):
        return Kind.COMMAND
    if message.private:
        return Kind.PRIVATE
    return Kind.END if message.role.terminal else Kind.EVENT


def _told(story: Story, event: MessageKey) -> str:
    """Why, for events that say so."""
    reason = getattr(story.events[event].data, "reason", None)
    return f" ({reason})" if reason else ""


def _corrected(step: Hop) -> Row:
    addressee = (document_of(step.fact.body) or {}).get(ADDRESSEE)
    return Row(
        Kind.REPLAY,
        addressee if isinstance(addressee, str) else ELSEWHERE,
        f"{step.attributes.type} again, corrected by an operator",
        timedelta(0),
        id=step.attributes.id,
    )


def _hop(step: Hop) -> str:
    said = []
    if step.waited is not None:
        said.append(f"waited {duration(step.waited)}")
    if step.worked is not None:
        said.append(f"worked {duration(step.worked)}")
    if step.attributes.attempt:
        said.append(f"try {step.attributes.attempt}")
    return ", ".join(said)


def _lives(lives: Sequence[Life]) -> Iterator[_Timed]:
    for life in lives:
        letter = life.letter
        for death in life.deaths:
            yield _death(
                letter.participant,
                letter.type,
                death.at,
                death.error,
                death.attempts,
                f" {letter.number}",
            )
        for number, started_at, state in life.replays:
            label = f"{letter.type} replayed (replay {number}, {state})"
            yield started_at, Row(Kind.REPLAY, letter.participant, label, timedelta(0))
        if letter.state in SETTLED:
            label = f"dead letter {letter.number} {letter.state}"
            note = letter.note
            yield (
                max(death.at for death in life.deaths) if life.deaths else letter.last_failed_at,
                Row(Kind.SETTLED, letter.participant, label, timedelta(0), note=note),
            )


def _death(
    participant: str, type_: str, at: datetime, error: str, attempts: int, number: str = ""
) -> _Timed:
    short = error if len(error) <= ERROR_MAX_CHARACTERS else f"{error[:ERROR_MAX_CHARACTERS]}…"
    tries = f" after {counted(attempts, 'try')}" if attempts > 1 else ""
    label = f"{type_} is dead letter{number}{tries}"
    return at, Row(Kind.DEAD, participant, label, timedelta(0), note=short, path=Path.FAILURE)


def _said(copy: Copy) -> str:
    return f"{copy.error_type or copy.reason}: {copy.error}"


def _owed(debt: Debt, whereabouts: MessageLocations | None, now: datetime, began: datetime) -> Row:
    return Row(
        Kind.OWED,
        debt.participant,
        f"owes {either(debt.answers)}",
        debt.since - began,
        note=owed_since(debt, whereabouts, now),
        path=Path.FAILURE if debt.late(now) else Path.HAPPY,
        id=debt.event.id if debt.event else "",
    )


def _due(coming: Coming, now: datetime, began: datetime) -> Row:
    return Row(
        Kind.DUE,
        coming.participant,
        f"{coming.firing.due.command.type} is due",
        coming.at - began,
        note=f"in {duration(coming.at - now)}, at {coming.at:%Y-%m-%d %H:%M:%S}, unless something "
        f"happens before",
    )


def owed_since(debt: Debt, whereabouts: MessageLocations | None, now: datetime) -> str:
    """Since when something is owed, whether that is late, and where the message is."""
    said = [f"for {duration(now - debt.since)}"]
    over = now - debt.by
    said.append(f"late by {duration(over)}" if debt.late(now) else f"due in {duration(-over)}")
    if debt.firing is not None:
        said.append(f"{debt.firing.due.command.type} is due")
    if debt.event is not None and whereabouts is not None:
        said.append(
            f"{debt.event.type} is {whereabouts.of(debt.participant, debt.event.id).detail}"
        )
    return "; ".join(said)


def either(types: Sequence[str]) -> str:
    """`a, b or c`."""
    *first, last = types
    return f"{', '.join(first)} or {last}" if first else last


def headline(story: Story) -> str:
    """What is to be said of a subject in a line: its kind, and how it stands."""
    summary = story.summary
    took = "" if summary.duration is None else duration(summary.duration)
    if story.declared is not None:
        return f"{story.declared.name} {story.subject} {story.declared.headline(story.view, took)}"
    said = f"{summary.kind or 'subject'} {story.subject}"
    if took:
        return f"{said} ended by {summary.ended_by} after {took}"
    return f"{said} has not ended" if summary.open else f"{said} is at rest, and need not end"


_UNITS: Final = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s"), (0.001, "ms"))


def duration(time: timedelta) -> str:
    """A time in its largest unit, to three digits; less than a second in milliseconds."""
    seconds = max(0.0, time.total_seconds())
    size, unit = next((u for u in _UNITS if seconds >= u[0]), _UNITS[-1])
    number = seconds / size
    return f"{number:.0f} {unit}" if number >= 100 else f"{number:.3g} {unit}"
