"""How far one participant can follow its saga, by the roles and signatures of what it publishes.

A saga begins with the first event that the owner of its subject publishes about it, whatever that
is, and ends with the first terminal one. So nothing has to be declared for it to be measured.
"""

from __future__ import annotations

import enum
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING

from saga.choreography import Participant, State, has_due
from saga.message import Event, Role

if TYPE_CHECKING:
    from saga.declaration import Saga


@dataclass(frozen=True, slots=True)
class Course:
    """What one participant sees of a saga's course."""

    saga: str
    participant: str
    subject: type[State] | None
    """The state whose life the saga is; None where another participant keeps it."""
    ends: Mapping[str, frozenset[str]]
    """Keyed by the type of an event that ends the saga: the reasons that it may give."""
    whole: bool
    """Whether every saga that begins here ends here, too, so that its time can be taken. One that
    goes well without an event that says so does not."""

    @property
    def has_deadline(self) -> bool:
        """Whether something may be due about the subject, so that it may be late."""
        return self.subject is not None and has_due(self.subject)


def course_of(saga: Saga, participant: Participant) -> Course | None:
    """What the participant sees of the saga's course; None where that is nothing, or it takes no
    part in it."""
    if participant not in saga.participants:
        return None
    subject = subject_of(saga)
    owned = subject if subject in {reaction.own for reaction in participant.reactions} else None
    mine = _ends_of(participant)
    if owned is None and not mine:
        return None
    elsewhere = any(_ends_of(other) for other in saga.participants if other is not participant)
    by_others = {
        event.type
        for reaction in participant.reactions
        for event in reaction.publishes
        if event.type in mine and reaction.own is not owned
    }
    ends_well = any(event.role is Role.COMPLETION for event in mine.values())
    return Course(
        saga.name,
        participant.name,
        owned,
        {type_: _words(event) for type_, event in mine.items()},
        whole=owned is not None and ends_well and not elsewhere and not by_others,
    )


def subject_of(saga: Saga) -> type[State] | None:
    """The state whose life the saga is: the one it names, or the only one with which it ends."""
    if saga.subject is not None:
        return saga.subject
    kinds = {
        reaction.own
        for participant in saga.participants
        for reaction in participant.reactions
        if any(map(_is_end, reaction.publishes))
    }
    return kinds.pop() if len(kinds) == 1 else None


def reason_of(event: Event, words: frozenset[str]) -> str:
    """Why a saga ended, if the event says so in one of these words; else nothing. An outcome that
    is free text is no label."""
    return event.outcome if event.outcome in words else ""


def _ends_of(participant: Participant) -> dict[str, type[Event]]:
    return {event.type: event for event in participant.publishes if _is_end(event)}


def _is_end(event: type[Event]) -> bool:
    # What is published again and again, such as each year, ends nothing for good.
    return event.role.terminal and not event.repeats


def _words(event: type[Event]) -> frozenset[str]:
    """Every word that the outcome of this kind of event may be: those that are listed in the
    types of the fields which it is made of."""
    made_by = getattr(event.outcome, "fget", None)
    names = made_by.__code__.co_names if isinstance(made_by, FunctionType) else ()
    fields = (field for name, field in event.model_fields.items() if name in names)
    return frozenset(word for field in fields for word in words_in(field.annotation))


def words_in(annotation: object) -> frozenset[str]:
    """The texts that a type lists: of enums, and `Literal`s."""
    if isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        return frozenset(str(member.value) for member in annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return frozenset(map(str, typing.get_args(annotation)))
    return frozenset().union(*map(words_in, typing.get_args(annotation)))
