"""A participant's states as its own events tell them: no database, no broker, no inbox."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any

from saga.choreography import Participant, State
from saga.envelope import Envelope, source_of
from saga.message import Command, Decided, Event, Intent
from saga.runtime.kernel.step import StateId, evolved


def is_shared(kind: type[State]) -> bool:
    """Whether a state of this kind may change by events about other subjects than its own."""
    return kind.keys.__func__ is not State.keys.__func__  # type: ignore[attr-defined]  # of a class method


class Fold:
    """Folds what one participant published, with the `evolve` functions that it runs. The commands
    that it sent are among that, and events here.

    Events about one subject have to be taken in the order of their `sequence`; those about
    different subjects commute. What a participant asked the outside, its intents, it never
    published: states in the middle of a question are folded as they were before it.
    """

    def __init__(self, participant: Participant) -> None:
        self.participant = participant
        self.source = source_of(participant.name)
        self.states: dict[StateId, State] = {}
        self._own: Mapping[type[Decided], type[State]] = {
            kind: reaction.own for reaction in participant.reactions for kind in reaction.returns
        }
        self._by_type = {
            kind.type: own for kind, own in self._own.items() if issubclass(kind, Event | Command)
        }

    def find(self, state_id: StateId) -> State:
        """A state as it is by now, blank if nothing was said about it."""
        return self.states.get(state_id) or state_id[0](state_id[1])

    def own(self, type_: str, subject: str) -> State:
        """The state that numbers the participant's events of this type, about this subject."""
        return self.find((self._by_type[type_], subject))

    def kind_of(self, type_: str) -> type[State] | None:
        """The kind of state that numbers the participant's events of this type; None if it
        publishes none such."""
        return self._by_type.get(type_)

    def take(self, event: Envelope[Any]) -> None:
        """Fold one of the participant's own events. Raises KeyError for a type that is not."""
        own_id = self._by_type[event.type], event.subject
        self.states.update(evolved(self.participant, own_id, event.data, self.find, event.time))
        own = self.find(own_id)
        self.states[own_id] = replace(own, sequence=event.sequence or own.sequence + 1)

    def ask(self, intent: Intent, at: datetime) -> None:
        """Fold a question to the outside, as far as it is known from elsewhere."""
        own_id = self._own[type(intent)], intent.subject
        self.states.update(evolved(self.participant, own_id, intent, self.find, at))
