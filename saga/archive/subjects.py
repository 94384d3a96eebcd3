"""The table of subjects: what the archive tells of each, whatever saga it belongs to.

What is kept follows from the types and the times of a subject's events alone: so it does not depend
on the order in which they come, and no body has to be read for it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol, Self

import sqlalchemy as sa

from saga.choreography import Choreography, Participant, Reaction, State
from saga.clock import elapsed
from saga.graph.flow import Flow
from saga.graph.sagas import extents_of
from saga.message import Command, Event, Intent, Message, Role
from saga.runtime.kernel.tables import Flag, StateTable, Utc
from saga.runtime.messaging.trust import EDITOR_SOURCE

NEVER: Final = datetime.max.replace(tzinfo=UTC)
LONG_AGO: Final = datetime.min.replace(tzinfo=UTC)
_BETWEEN: Final = "\n"
"""Stands around each type in the column; no type has it."""


class _Types(sa.types.TypeDecorator[tuple[str, ...]]):
    """Types of events, stored as text, with a line feed before and after each."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: tuple[str, ...] | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else "".join(f"{_BETWEEN}{t}" for t in (*value, ""))

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> tuple[str, ...]:
        return tuple(filter(None, value.split(_BETWEEN)))


METADATA: Final = sa.MetaData()
"""All tables of an archive; those of a view are apart."""

subjects = sa.Table(
    "subjects",
    METADATA,
    sa.Column("subject", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    # How many events there are about it.
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(255), nullable=False),
    sa.Column("types", _Types, nullable=False),
    sa.Column("first_event_at", Utc, nullable=False),
    sa.Column("last_event_at", Utc, nullable=False),
    sa.Column("ended_by", sa.String(255)),
    sa.Column("ended_at", Utc),
    sa.Column("settled", Flag, nullable=False),
    sa.Column("open", Flag, nullable=False),
    sa.Index("subjects_by_time", "first_event_at", "subject"),
    # Few are open at a time, so that to find them is to read few rows.
    sa.Index(
        "subjects_open",
        "first_event_at",
        "subject",
        sqlite_where=sa.text("open = 1"),
        postgresql_where=sa.text("open = 1"),
    ),
)


folded = sa.Table(
    "folded",
    METADATA,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("position", sa.BigInteger, nullable=False),
)
"""Up to which event a table is folded. A process of an older version records events and knows no
such table: the next one of this version folds them first."""


class EventLike(Protocol):
    """As much of an event as is looked at here."""

    @property
    def type(self) -> str: ...
    @property
    def source(self) -> str: ...
    @property
    def time(self) -> datetime: ...


def around(type_: str) -> str:
    """A type as it stands in the column."""
    return f"{_BETWEEN}{type_}{_BETWEEN}"


@dataclass(frozen=True, slots=True)
class Subject(State):
    """What a saga's events tell of their subject; `sequence` counts them.

    `kind` names the kind of state whose life the saga is, and is empty where the signatures lead to
    no such event. `types` are those of its events, in alphabetical order, that the choreography
    knows. `ended_by` is the type of the event that ended it.
    """

    kind: str = ""
    types: tuple[str, ...] = ()
    first_event_at: datetime = NEVER
    last_event_at: datetime = LONG_AGO
    ended_by: str | None = None
    ended_at: datetime | None = None
    settled: bool = False
    """It has ended; and where it was cancelled, every effect was undone, and each participant that
    may have had one has said that there is none any more."""
    open: bool = True
    """A participant may owe an event, by the types of the saga's. Whether it does, its state tells.
    Where events of a type have come again, types do not tell which of them were answered."""

    @property
    def duration(self) -> timedelta | None:
        """From its first event to its end."""
        return None if self.ended_at is None else elapsed(self.first_event_at, self.ended_at)

    def after(self, told: Iterable[EventLike], rules: SubjectRules) -> Self:
        """What is told of it after these events as well, which come in any order."""
        count, types = self.sequence, set(self.types)
        first, last = self.first_event_at, self.last_event_at
        end = None if self.ended_at is None else (self.ended_at, self.ended_by or "")
        for attributes in told:
            if attributes.source == EDITOR_SOURCE:
                continue  # A copy that went to one participant only: not a fact.
            count += 1
            type_, at = attributes.type, attributes.time
            first, last = min(first, at), max(last, at)
            if type_ in rules.types:
                types.add(type_)
            if type_ in rules.terminal and (end is None or (at, type_) < end):
                end = at, type_  # It ends once; should it be said twice, the first one counts.
        if count == self.sequence:
            return self
        standing = rules.standing(frozenset(types), repeated=count > len(types))
        return replace(
            self,
            sequence=count,
            kind=standing.kind,
            types=tuple(sorted(types)),
            first_event_at=first,
            last_event_at=last,
            ended_by=end[1] if end else None,
            ended_at=end[0] if end else None,
            settled=standing.settled,
            open=standing.open,
        )


SUBJECTS: Final = StateTable(Subject, subjects)


class Standing(NamedTuple):
    """What the types of a subject's events tell by the signatures; see `Subject`."""

    kind: str
    settled: bool
    open: bool


class SubjectRules:
    """What a choreography's signatures and roles tell of a subject by the types of its events."""

    def __init__(self, choreography: Choreography) -> None:
        self._choreography = choreography
        self._events = {event.type: event for event in choreography.events}
        self.types = frozenset(kind.type for kind in choreography.recorded)
        self.terminal = frozenset(t for t, event in self._events.items() if event.role.terminal)
        self._cancellations = self._with(Role.CANCELLATION)
        self._completions = self._with(Role.COMPLETION)
        self._effects = self._with(Role.EFFECT)
        self._sagas: list[tuple[str, frozenset[str]]] = []
        """What each saga's subject is called, and the types of its events; the widest first."""
        for extent in extents_of(Flow(choreography)):
            kinds = (node for node in extent.nodes if isinstance(node, type))
            types = {kind.type for kind in kinds if issubclass(kind, Event | Command)}
            self._sagas.append((extent.subject.__name__, self.types & types))
        self._sagas.sort(key=lambda saga: -len(saga[1]))
        self._taken = frozenset(
            kind.type
            for participant in choreography.participants
            for kind in participant.by_message
            if issubclass(kind, Event | Command)
        )
        recorded = choreography.recorded
        self._repeating = frozenset(kind.type for kind in recorded if kind.repeats)
        self._known: dict[tuple[frozenset[str], bool], Standing] = {}

    def _with(self, role: Role) -> frozenset[str]:
        return frozenset(t for t, event in self._events.items() if event.role is role)

    def standing(self, types: frozenset[str], *, repeated: bool = False) -> Standing:
        """Where a subject stands about which there are events of just these types, of some type
        `repeated` ones."""
        found = self._known.get((types, repeated))
        if found is None:  # There are few: a saga comes along some ways only.
            found = self._find(types)
            # What has come again is of the types that may, unless it is something unforeseen.
            if repeated and (types & self._repeating or types) & self._taken:
                found = found._replace(open=True)
            self._known[types, repeated] = found
        return found

    def _find(self, types: frozenset[str]) -> Standing:
        kind, whole = next((saga for saga in self._sagas if types & saga[1]), ("", types))
        ended = bool(types & self.terminal)
        settled = ended and self._undone(types)
        if not ended and whole & self._completions:
            return Standing(kind, settled=False, open=True)
        at_rest = all(self._is_at_rest(p, types) for p in self._choreography.participants)
        return Standing(kind, settled, open=not at_rest or (ended and not settled))

    def _undone(self, types: frozenset[str]) -> bool:
        """Whether nothing stands any more that a cancellation has to undo, and nothing will."""
        cancelled = types & self._cancellations
        if not cancelled:
            return True
        events = [self._events[type_] for type_ in types if type_ in self._events]
        if (types & self._effects) - {kind.type for event in events for kind in event.undoes}:
            return False
        return all(
            self._has_answered(participant, type_, types)
            for participant in self._choreography.participants
            if any(kind.role is Role.EFFECT for kind in participant.publishes)
            for type_ in cancelled
        )

    def _is_at_rest(self, participant: Participant, types: frozenset[str]) -> bool:
        """Whether a participant has published what answers the saga's end, as far as it takes
        that; otherwise, what answers each event that it takes."""
        kinds = (kind for kind in participant.by_message if issubclass(kind, Event | Command))
        taken = types & {kind.type for kind in kinds}
        last = taken & self.terminal
        return all(self._has_answered(participant, type_, types) for type_ in last or taken)

    def _has_answered(self, participant: Participant, type_: str, types: frozenset[str]) -> bool:
        """Whether a participant has published what may follow from its reaction to such an event.
        One that has said no to its part need not say anything to a cancellation, and what might
        have ended the saga need not be said once it has ended."""
        refused = (kind.type for kind in participant.publishes if kind.role is Role.FAILURE)
        if type_ in self._cancellations and not types.isdisjoint(refused):
            return True
        return all(
            self._is_done(participant, reaction, types)
            for kind, reaction in participant.by_message.items()
            if issubclass(kind, Event | Command) and kind.type == type_
        )

    def _is_done(self, participant: Participant, reaction: Reaction, types: frozenset[str]) -> bool:
        ended = not types.isdisjoint(self.terminal)
        moot = ended and any(result.role.terminal for result in reaction.publishes)
        return moot or _is_done(participant, reaction, types, frozenset())


def _is_done(
    participant: Participant, reaction: Reaction, types: frozenset[str], within: frozenset[str]
) -> bool:
    """Whether all is there that the reaction may return together, whichever way it went; of a
    question, what the answer led to."""
    if not reaction.returns:  # It only listens.
        return True
    if reaction.name in within:  # An answer that only leads to the same question.
        return False

    def is_there(kind: type[Message]) -> bool:
        if issubclass(kind, Intent):
            follows = participant.by_message[kind.answer]
            return _is_done(participant, follows, types, within | {reaction.name})
        return getattr(kind, "type", None) in types

    return any(map(is_there, reaction.repeats)) or any(
        all(map(is_there, shape)) for shape in reaction.shapes if shape
    )
