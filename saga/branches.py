"""What reactions may decide on by their signatures, and what they did decide on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saga.choreography import Participant, Reaction
from saga.foreign import Foreign
from saga.message import Command, Event, Message


@dataclass(frozen=True, slots=True, order=True)
class Branch:
    """One thing that a reaction may decide on by its signature: these messages, in this order."""

    participant: str
    reaction: str
    decides: tuple[str, ...]
    """Types of events and commands, names of intents; empty for nothing."""

    def __str__(self) -> str:
        return f"{self.participant}.{self.reaction}: {' and '.join(self.decides) or 'nothing'}"


def branches_of(participants: Iterable[Participant]) -> list[Branch]:
    """All that there are, participant by participant, reaction by reaction. A reaction that may
    decide on any choice of messages has one for each of them, and one for none.

    Participants in other languages are left out: how theirs come about no signature tells.
    """
    return [
        Branch(participant.name, reaction.name, decides)
        for participant in participants
        if not isinstance(participant, Foreign)
        for reaction in participant.reactions
        for decides in sorted(
            {tuple(map(name_of, shape)) for shape in reaction.shapes}
            | {(name_of(kind),) for kind in reaction.repeats}
            | ({()} if reaction.repeats else set())
        )
    ]


def branches_in(
    participant: str, reaction: Reaction, kinds: Sequence[type[Message]]
) -> set[Branch]:
    """What a reaction has decided on as branches: one, or where any choice is allowed, one for each
    message."""
    whole = tuple(kinds)
    parts = [whole] if whole in reaction.shapes or not whole else [(kind,) for kind in whole]
    return {Branch(participant, reaction.name, tuple(map(name_of, part))) for part in parts}


def name_of(kind: type[Message]) -> str:
    """The type of an event or a command, or the name of an intent."""
    return kind.type if issubclass(kind, Event | Command) else kind.__name__
