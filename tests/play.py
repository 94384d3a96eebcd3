"""A saga played in memory: what the services would have decided, kept and published."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from saga.choreography import Choreography, Participant, State
from saga.envelope import Envelope, MessageKey, wrap
from saga.message import Answer, Command, Intent, Message, Priority
from saga.runtime.kernel.step import Firing, StateId, react
from saga.runtime.kernel.tables import utc_now


@dataclass(frozen=True)
class Delivery:
    """An event on its way to one participant; `attempt` is the try that it will be."""

    participant: str
    event: Envelope[Any]
    attempt: int = 1


@dataclass
class Play:
    """Every event is delivered once, in order; each reaction takes a `tick`, as does each way."""

    at: datetime = field(default_factory=lambda: utc_now() - timedelta(hours=1))
    tick: timedelta = timedelta(0)
    states: dict[str, dict[StateId, State]] = field(default_factory=dict)
    inboxes: dict[str, set[MessageKey]] = field(default_factory=dict)
    events: list[Envelope[Any]] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """Participants that read nothing."""
    failed: list[Delivery] = field(default_factory=list)
    """What failed because of the outside; `retry` has it tried again."""
    waiting: deque[Delivery] = field(default_factory=deque)
    graph: Choreography = field(kw_only=True)

    def __post_init__(self) -> None:
        self._participants = {p.name: p for p in self.graph.participants}
        for name in self._participants:
            self.states[name], self.inboxes[name] = {}, set()

    def give(self, participant: str, command: Command) -> None:
        cause = wrap(
            command, id=str(uuid4()), source="/test", time=self.at, priority=Priority.NORMAL
        )
        self._react(self._participants[participant], cause)

    def do_due(self, participant: str, state_id: StateId) -> None:
        """Do what is due about a state."""
        firing = Firing.of(self.states[participant][state_id])
        assert firing is not None
        cause = firing.envelope(participant, self.at)
        self._react(self._participants[participant], cause)

    def deliver(self) -> None:
        """Until nothing is on its way to a participant that reads."""
        while delivery := self._next():
            self._react(self._participants[delivery.participant], delivery.event, delivery.attempt)

    def retry(self) -> None:
        """Try again what failed."""
        again, self.failed = self.failed, []
        self.waiting.extend(again)
        self.deliver()

    def retry_only(self, subject: str) -> None:
        """Try again what failed about one subject."""
        others = [delivery for delivery in self.failed if delivery.event.subject != subject]
        self.failed = [d for d in self.failed if d.event.subject == subject]
        self.retry()
        self.failed += others

    def about(self, subject: str) -> list[Envelope[Any]]:
        """The events about one subject."""
        return [event for event in self.events if event.subject == subject]

    def _next(self) -> Delivery | None:
        for delivery in self.waiting:
            if delivery.participant not in self.down:
                self.waiting.remove(delivery)
                return delivery
        return None

    def _react(self, participant: Participant, cause: Envelope[Any], attempt: int = 1) -> None:
        states = self.states[participant.name]
        message: Message | None = cause.data
        self.at += self.tick
        taken_at = self.at
        while message is not None:
            self.at += self.tick
            decision = react(
                participant,
                cause,
                message,
                lambda at: states.get(at) or at[0](at[1]),
                self.at,
                taken_at=taken_at,
                attempt=attempt,
            )
            states.update(decision.changes)
            self.events += decision.events
            self.waiting.extend(
                Delivery(reader.name, event)
                for event in decision.events
                for reader in self.graph.reacting_to(event.type)
            )
            if self._fails(decision.intent):
                self.failed.append(Delivery(participant.name, cause, attempt + 1))
                return
            message = self._answer(decision.intent)
        self.inboxes[participant.name].add(cause.key)

    def _fails(self, intent: Intent | None) -> bool:
        """Whether it is refused now."""
        return False

    def _answer(self, intent: Intent | None) -> Answer | None:
        """What the outside says; None if nothing was asked."""
        if intent is not None:
            raise NotImplementedError(f"nobody here answers to {intent!r}")
        return None
