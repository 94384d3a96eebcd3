"""Participants in other languages, declared by their signatures alone.

    def print_label(event: TripBooked) -> LabelPrinted | LabelRefused | None: ...

    LABEL = Foreign("label", print_label, command=("node", "label/main.mjs"))

Queues, user, permissions, contracts and the place on the map follow from that as from any other
participant's. Its code and its database are not visible here; what it has to keep is in `DUTIES`,
and in `docs/other-languages.md` at length.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import wraps
from typing import Any, ClassVar, Final, Self

from pydantic import ValidationError

from saga.choreography import ChoreographyError, Participant, Reaction, State, place_of
from saga.message import Answer, Command, Decided, Event, Message, Role
from saga.retry import Retry

PAGE: Final = "docs/other-languages.md"
"""What such a participant has to keep, at length."""
DUTIES: Final = (
    "envelope: CloudEvents 1.0 in structured JSON, from its own source, with the attributes that "
    "the page lists",
    "ids: the same each time a step is done again; a message's `causationid` is its cause's id",
    "sequence: its messages about one subject are numbered from 1, without a hole",
    "inbox: what has a known source and id changes nothing more; committed before it is "
    "acknowledged",
    "outbox: committed with the inbox row; published persistent and mandatory, again until the "
    "broker confirms it",
    "undone for good: after a compensation it publishes no effect that this undoes",
)
"""What nothing but its own tests can tell of such a participant, a line each."""

_OF_A_LISTENER: Final = tuple(duty for duty in DUTIES if duty.startswith("inbox"))

ANSWERS_MAX: Final = 64
"""How many different answers to one message are tried."""

Answers = tuple[Event | Command, ...]
"""What is published and sent because of one message, in this order."""
Choose = Callable[[Message, Sequence[Answers]], Answers]
"""Picks one of the answers to a message."""
Sample = Callable[[Any], Iterable[Event | Command]]
"""Messages of one type that may be published because of a given message."""


@dataclass(frozen=True, slots=True)
class ForeignState(State):
    """What is known here of a subject that a participant in another language deals with: the types
    of what it has published about it."""

    published: frozenset[str] = frozenset()

    def evolve(self, message: Decided, at: datetime) -> Self:
        if not isinstance(message, Event | Command) or message.type in self.published:
            return self
        return replace(self, published=self.published | {message.type})


class Foreign(Participant):
    """A participant in another language: the functions are its signatures, and are never called.

    Each takes one event or command, and returns what may be published because of it: events, and
    commands to others. Its body is `...`, or raises `NotImplementedError`.

    `samples` make up, keyed by a type of message, what such a participant may publish because of a
    given one: to try the others with. Without, a message has its cause's fields of the same names,
    and the defaults of the others. With a `command`, `saga up` starts the participant by it, in the
    project's folder. `retry` is what the map shows; the participant keeps to it by itself.
    """

    foreign: ClassVar[bool] = True

    def __init__(
        self,
        name: str,
        *signatures: Callable[..., Any],
        samples: Mapping[type[Event | Command], Sample] | None = None,
        command: Sequence[str] = (),
        retry: Retry | None = None,
        retries: Mapping[Callable[..., Any], Retry] | None = None,
    ) -> None:
        super().__init__(name, *signatures, retry=retry, retries=retries)
        self.package = ""
        self.command = tuple(command)
        self._samples = dict(samples or {})
        if strangers := [kind for kind in self._samples if kind not in self.emits]:
            raise ChoreographyError(
                f"{name}: there are samples of {strangers[0].__name__}, which none of its "
                f"signatures returns"
            )

    def _read(self, function: Callable[..., Any]) -> Reaction:
        reaction, where = Reaction.read(function), place_of(function)
        if reaction.parameters:
            raise ChoreographyError(
                f"{where}: takes {reaction.parameters[0][0]!r} beside its message; what a "
                f"participant in another language keeps is not known here"
            )
        if issubclass(reaction.consumes, Answer) or reaction.intends:
            raise ChoreographyError(
                f"{where}: whom a participant in another language asks is its own matter; leave "
                f"intents and answers out of its signatures"
            )
        if issubclass(reaction.consumes, Command) and not reaction.consumes.intake:
            raise ChoreographyError(
                f"{where}: takes {reaction.consumes.__name__}, which comes over no queue; let it "
                f"have `intake = True`"
            )
        if own := [kind.__name__ for kind in reaction.publishes if kind.private]:
            raise ChoreographyError(
                f"{where}: may publish {own[0]}, which is private; the states of a participant in "
                f"another language are not folded here, so it needs no private facts"
            )
        return replace(reaction, parameters=(("state", ForeignState, False),))

    def answers(self, message: Message, published: Collection[str] = ()) -> Sequence[Answers]:
        """Everything that may be published because of a message, nothing in front.

        `published` are the types of what was published before about the subject: an effect does
        not come after what undoes it. Raises `ChoreographyError` where a message cannot be made up,
        or there are more than `ANSWERS_MAX` answers.
        """
        reaction = self.by_message[type(message)]
        undone = _undone_by(kind for kind in self.publishes if kind.type in published)
        possible = (
            answer
            for shape in _shapes(reaction)
            if _types(shape).isdisjoint(undone)
            for answer in itertools.product(*(self._made(kind, message) for kind in shape))
        )
        found = [*itertools.islice(possible, ANSWERS_MAX + 1)]
        if len(found) > ANSWERS_MAX:
            raise ChoreographyError(
                f"{place_of(reaction.function)}: there are more than {ANSWERS_MAX} answers to one "
                f"{type(message).__name__}, too many to try; give fewer samples"
            )
        return found or [()]

    def played(self, choose: Choose) -> Participant:
        """A stand-in in Python for trying the others: it answers each message by what `choose`
        picks, and keeps an `ForeignState` of each subject."""
        return _StandIn(
            self.name,
            {
                (play := self._playing(reaction, choose)): replace(reaction, function=play)
                for reaction in self.reactions
            },
        )

    def _playing(self, reaction: Reaction, choose: Choose) -> Callable[..., Any]:
        @wraps(reaction.function)
        def play(message: Message, state: ForeignState) -> Answers:
            return choose(message, self.answers(message, state.published))

        return play

    def _made(self, kind: type[Any], message: Message) -> Iterable[Any]:
        """Messages of this kind, because of `message`."""
        if (sample := self._samples.get(kind)) is not None:
            made = [*sample(message)]
            if not made or any(type(one) is not kind for one in made):
                raise ChoreographyError(
                    f"{self.name}: the samples of {kind.__name__} give {made!r} because of "
                    f"{type(message).__name__}; let them give at least one {kind.__name__}, and "
                    f"nothing else"
                )
            return made
        same = {name: getattr(message, name, None) for name in kind.model_fields}
        known = {name: value for name, value in same.items() if value is not None}
        try:
            return [kind(**known)]
        except ValidationError as error:
            fields = ", ".join(str(problem["loc"][0]) for problem in error.errors())
            raise ChoreographyError(
                f"{self.name}: cannot make up a {kind.__name__} because of "
                f"{type(message).__name__}, which does not tell its {fields}; say by "
                f"`samples={{{kind.__name__}: lambda message: [{kind.__name__}(...)]}}` what it "
                f"may be"
            ) from error


class _StandIn(Participant):
    """A participant whose reactions are given to it, by function."""

    def __init__(self, name: str, reactions: Mapping[Callable[..., Any], Reaction]) -> None:
        self._given = reactions
        super().__init__(name, *reactions)

    def _read(self, function: Callable[..., Any]) -> Reaction:
        return self._given[function]


def duties_of(participant: Participant) -> tuple[str, ...]:
    """Those of the `DUTIES` that it has: one that publishes nothing has only to know what it has
    taken."""
    return DUTIES if participant.emits else _OF_A_LISTENER


def foreign_in(participants: Iterable[Participant]) -> tuple[Foreign, ...]:
    """Those of them that are in another language."""
    return tuple(p for p in participants if isinstance(p, Foreign))


def _shapes(reaction: Reaction) -> Iterator[tuple[Any, ...]]:
    """What may be published together, each once, nothing in front."""
    yield from sorted(reaction.shapes, key=lambda shape: (len(shape), _names(shape)))
    kinds = sorted(reaction.repeats, key=lambda kind: kind.__name__)
    for count in range(len(kinds) + 1 if kinds else 0):
        for shape in itertools.combinations(kinds, count):
            if shape not in reaction.shapes:
                yield shape


def _names(shape: Iterable[type[Any]]) -> list[str]:
    return [kind.__name__ for kind in shape]


def _undone_by(published: Iterable[type[Event]]) -> frozenset[str]:
    """The types of the effects that do not stand after these."""
    return frozenset(
        effect.type for kind in published for effect in kind.undoes if effect.role is Role.EFFECT
    )


def _types(shape: Iterable[type[Any]]) -> frozenset[str]:
    return frozenset(kind.type for kind in shape)
