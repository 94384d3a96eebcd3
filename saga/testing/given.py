"""Specs of participants: given these own events, when this message, then these messages.

assert given(PARTICIPANT, ask, asked).when(cancelled) == (take_back,)
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

from saga.choreography import Participant, State
from saga.message import Decided, Intent, Message

NOW = datetime(2030, 1, 1, tzinfo=UTC)

S = TypeVar("S", bound=State)


class GivenParticipant:
    """One participant and what is known to it. Blank states are made as they are asked for."""

    def __init__(self, participant: Participant) -> None:
        self.participant = participant
        self._states: dict[tuple[type[State], str], State] = {}

    def state(self, kind: type[S], key: object) -> S:
        """The state as it is; a blank one, if nothing was said of it."""
        found = self._states.get((kind, str(key)))
        return found if isinstance(found, kind) else kind(str(key))

    def states(self, kind: type[S]) -> Iterator[S]:
        return (state for state in self._states.values() if isinstance(state, kind))

    def when(self, message: Message, now: datetime = NOW) -> tuple[Decided, ...]:
        """What the participant's reaction returns; the states stay as they are."""
        reaction = self.participant.by_message[type(message)]
        own = self.state(reaction.own, message.subject)
        arguments: list[Any] = [message]
        for _, kind, many in reaction.parameters:
            if not issubclass(kind, State):
                arguments.append(now)
            elif many:
                arguments.append({key: self.state(kind, key) for key in kind.keys(message, own)})
            else:
                arguments.append(self.state(kind, message.subject))
        results = reaction.function(*arguments)
        if results is None:
            return ()
        return results if isinstance(results, tuple) else (results,)

    def fold(self, *messages: Decided, at: datetime = NOW) -> GivenParticipant:
        """Evolve every state that these own events and intents concern."""
        for message in messages:
            (own_kind,) = {
                reaction.own
                for reaction in self.participant.reactions
                if type(message) in reaction.returns
            }
            own = self.state(own_kind, message.subject)
            for kind in self.participant.states:
                for key in (own.key,) if kind is own_kind else kind.keys(message, own):
                    self._states[kind, key] = self.state(kind, key).evolve(message, at)
        return self

    def live(self, message: Message, now: datetime = NOW) -> tuple[Decided, ...]:
        """React to a message, and fold the result."""
        results = self.when(message, now)
        self.fold(*results, at=now)
        return results


def given(participant: Participant, *own: Decided) -> GivenParticipant:
    """The participant after these own events and intents."""
    return GivenParticipant(participant).fold(*own)


def assert_once(world: GivenParticipant, message: Message, now: datetime = NOW) -> None:
    """A message that comes twice changes nothing more; a question it led to is asked again."""
    first = world.live(message, now)
    again = world.when(message, now)
    asked = tuple(result for result in first if isinstance(result, Intent))
    if again != asked:
        raise AssertionError(f"{message!r} came again and led to {again}, not to {asked}")
