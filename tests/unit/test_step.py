"""One reaction to one message, with no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

import pytest

from saga.choreography import Participant, State
from saga.due import Due
from saga.envelope import Envelope, wrap
from saga.message import Decided, Priority
from saga.runtime.kernel.step import (
    Firing,
    ForwardRequest,
    NoReaction,
    OutsideSignature,
    StateId,
    react,
)
from tests.words import Cancel, Cancelled, Completed, Released, Voided

NOW = datetime(2030, 1, 1, tzinfo=UTC)
THING = UUID(int=1)


@dataclass(frozen=True, slots=True)
class Tally(State):
    seen: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, seen=self.seen + 1)


def twice(event: Cancelled, tally: Tally) -> tuple[Released, Voided] | Released | None:
    if event.who == "nobody":
        return None
    released, voided = Released(thing=THING, parts=()), Voided(thing=THING)
    wrong: dict[str, Any] = {  # what the type checker would refuse
        "outside": Completed(thing=THING, who="x"),
        "alone": voided,
        "other sequence": (voided, released),
        "a list": [released, voided],
        "elsewhere": Released(thing=UUID(int=2), parts=()),
    }
    if event.who in wrong:
        return wrong[event.who]  # type: ignore[no-any-return]  # on purpose
    return released, voided


PARTICIPANT = Participant("tally", twice)


def cause(who: str, id: str = "cause") -> Envelope[Any]:
    return wrap(
        Cancelled.model_validate_json(f'{{"thing": "{THING}", "who": "{who}", "reason": "wish"}}'),
        id=id,
        source="/services/starter",
        time=NOW,
        priority=Priority.HIGH,
    )


def blank(state_id: StateId) -> State:
    return state_id[0](state_id[1])


def test_events_are_numbered_and_inherit_from_their_cause() -> None:
    decision = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)

    released, voided = decision.events
    assert (released.sequence, voided.sequence) == (1, 2)
    assert released.causationid == voided.causationid == "cause"
    assert released.priority is Priority.HIGH
    assert released.correlationid == released.subject == str(THING)
    assert released.traceparent == cause("a").traceparent
    assert decision.own == Tally(str(THING), sequence=2, seen=2)
    assert decision.changes == {(Tally, str(THING)): decision.own}


def test_the_same_step_done_again_gives_the_same_ids() -> None:
    first = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)
    again = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)
    other = react(PARTICIPANT, cause("a", "other"), cause("a").data, blank, NOW)

    assert [e.id for e in first.events] == [e.id for e in again.events]
    assert {e.id for e in first.events}.isdisjoint(e.id for e in other.events)
    assert len({e.id for e in first.events}) == 2


def test_events_say_when_their_cause_was_taken_and_at_which_try() -> None:
    taken = NOW - timedelta(seconds=2)
    first = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW, taken_at=taken)
    third = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW, taken_at=taken, attempt=3)

    assert [(e.takenat, e.attempt) for e in first.events] == [(taken, None)] * 2
    assert [(e.takenat, e.attempt) for e in third.events] == [(taken, 3)] * 2


def test_no_event_no_change() -> None:
    decision = react(PARTICIPANT, cause("nobody"), cause("nobody").data, blank, NOW)

    assert decision.events == ()
    assert decision.changes == {}


REFUSED = {
    "outside": ("not_its_participants", "no reaction of tally may publish Completed"),
    "alone": ("not_in_signature", "returned Voided .* does not allow that"),
    "other sequence": ("not_in_signature", "returned Voided and Released"),
    "a list": ("not_in_signature", "returned list"),
    "elsewhere": ("another_subject", f"about '{THING}', but about '{UUID(int=2)}'"),
}


@pytest.mark.parametrize("who", REFUSED)
def test_what_a_signature_does_not_allow_is_refused(who: str) -> None:
    reason, said = REFUSED[who]
    with pytest.raises(OutsideSignature, match=r"tally\.twice returned") as refused:
        react(PARTICIPANT, cause(who), cause(who).data, blank, NOW)

    assert refused.value.reason == reason
    assert re.search(said, str(refused.value))


def always(event: Cancelled, tally: Tally) -> Released:
    return None  # type: ignore[return-value]  # on purpose


def test_nothing_is_refused_where_the_signature_promises_something() -> None:
    with pytest.raises(OutsideSignature, match="returned nothing"):
        react(Participant("tally", always), cause("a"), cause("a").data, blank, NOW)


def test_a_message_without_reaction_is_refused() -> None:
    voided = Voided(thing=THING)
    with pytest.raises(NoReaction, match="tally has no reaction to Voided"):
        react(PARTICIPANT, cause("a"), voided, blank, NOW)


@dataclass(frozen=True, slots=True)
class Waiting(State):
    until: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        return self

    def due(self) -> Due[Cancel] | None:
        return Due(self.until, Cancel(thing=UUID(self.key))) if self.until else None


def test_what_is_due_waits_for_its_time_unless_it_is_brought_forward() -> None:
    waiting = Waiting(str(THING), until=NOW)
    firing = Firing.of(waiting)
    early = Firing.of(waiting, brought_forward=ForwardRequest("ada", "she asked for it"))
    assert firing is not None
    assert early is not None
    before = NOW - timedelta(microseconds=1)

    assert not firing.may_be_done(waiting, before)
    assert firing.may_be_done(waiting, NOW)
    assert early.may_be_done(waiting, before)
    assert not firing.may_be_done(replace(waiting, until=None), NOW)
    assert not early.may_be_done(replace(waiting, until=before), NOW)
