"""Commands between participants, private facts and joins: what the model checker finds of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import pytest

from saga.choreography import Participant, State
from saga.declaration import Saga
from saga.graph.check import check
from saga.message import Decided
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import StateId, react
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, topology_of
from saga.verify import Schedule, model_of, uncovered, verify
from tests import errands
from tests.errands import (
    DESK,
    GRAPH,
    NOW,
    RIDER,
    SAGA,
    SCENARIO,
    STAMPER,
    Errand,
    ErrandCancelled,
    ErrandEnded,
    ErrandRidden,
    ErrandStamped,
    GiveStamp,
    Papers,
    Ride,
    RideDone,
    RideRefused,
    Stage,
    StampGiven,
    StartRide,
    asked,
    told_to_ride,
)
from tests.swapping import swapped

# --- the real ones ------------------------------------------------------------------------------


def test_an_errand_ends_well_in_every_order_of_deliveries() -> None:
    report = verify(model_of(SAGA, SCENARIO.name))

    assert report.schedule is None
    assert report.exploration.states_at_rest > 1
    assert [*uncovered(SAGA, report.reacted, report.published, report.asked)] == []


def test_an_errands_choreography_has_no_findings_but_that_it_has_no_deadline() -> None:
    found = check(GRAPH, definitions(topology_of(GRAPH), users_of(GRAPH)))

    assert [(finding.rule, finding.name) for finding in found] == [("pending", "ask")]


def test_commands_to_others_are_numbered_among_the_events_and_named_by_their_cause() -> None:
    first = react(DESK, asked("a"), asked("a").data, blank, NOW)
    again = react(DESK, asked("a"), asked("a").data, blank, NOW)

    assert [(e.type, e.sequence, e.source) for e in first.events] == [
        ("ride.start", 1, "/services/desk"),
        ("stamp.give", 2, "/services/desk"),
    ]
    assert [e.id for e in first.events] == [e.id for e in again.events]
    assert {e.causationid for e in first.events} == {asked("a").id}


def test_an_answer_has_the_trace_of_the_command_and_not_of_who_asked_from_outside() -> None:
    started = react(DESK, asked("a"), asked("a").data, blank, NOW).events[0]
    (done,) = react(RIDER, started, started.data, blank, NOW).events

    assert started.traceparent != asked("a").traceparent
    assert done.traceparent == started.traceparent


def test_the_same_command_from_another_sender_leads_to_another_event() -> None:
    ours = told_to_ride("a")
    theirs = told_to_ride("a", source="https://customer.example")

    one, other = (react(RIDER, e, e.data, blank, NOW).events[0].id for e in (ours, theirs))

    assert one != other


def test_a_state_is_the_fold_of_the_commands_and_the_private_facts_too() -> None:
    fold = Fold(DESK)
    started, stamping = react(DESK, asked("a"), asked("a").data, fold.find, NOW).events
    fold.take(started)
    fold.take(stamping)
    done = react(RIDER, started, started.data, blank, NOW).events[0]
    (kept,) = react(DESK, done, done.data, fold.find, NOW).events
    fold.take(kept)

    assert kept.type == "errand.ridden"
    assert fold.find((Errand, "a")) == Errand("a", sequence=3, stage=Stage.RIDDEN)


def test_only_what_participants_send_is_bound_and_private_facts_are_not() -> None:
    bound = {b.key: b.queue for b in topology_of(GRAPH).bindings if b.exchange == EVENTS_EXCHANGE}

    assert bound["ride.start.high"] == "rider.intake.high"
    assert bound["stamp.take_off.normal"] == "stamper.intake.normal"
    assert not any(key.startswith(("errand.ask", "errand.ridden")) for key in bound)


def test_senders_may_write_the_commands_they_send_and_nobody_else() -> None:
    keys = {
        user.name: user.topics[0].write for user in users_of(GRAPH) if user.name != "saga-replay"
    }

    assert [name for name, write in keys.items() if r"ride\.start\.high" in write] == ["desk"]
    assert r"errand\.ridden\.high" in keys["desk"]


def blank(state_id: StateId) -> State:
    kind, key = state_id
    return kind(key)


# --- broken twins -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Twin:
    """An errand with one mistake, and what is to be found: by the checker, and by `saga check`."""

    saga: Callable[[], Saga]
    rule: str
    steps: int
    checked: str | None = None


TWINS: dict[str, Twin] = {}


def twin(
    rule: str, steps: int, checked: str | None = None
) -> Callable[[Callable[[], Saga]], Callable[[], Saga]]:
    def decorate(saga: Callable[[], Saga]) -> Callable[[], Saga]:
        TWINS[saga.__name__] = Twin(saga, rule, steps, checked)
        return saga

    return decorate


@twin("ended_undone", 2, "join")
def a_join_ends_on_one_leg() -> Saga:
    def ridden(event: RideDone, errand: Errand) -> ErrandEnded | None:
        over = errand.stage in (Stage.ENDED, Stage.CANCELLED)
        return None if over else ErrandEnded(errand=event.errand)

    return SAGA.with_(swapped(DESK, ridden))


@twin("never_ended", 4, "join")
def a_join_has_one_leg_that_can_complete_it() -> Saga:
    def stamped(event: StampGiven, errand: Errand) -> ErrandStamped | None:
        return ErrandStamped(errand=event.errand) if errand.stage is Stage.ASKED else None

    return SAGA.with_(swapped(DESK, stamped))


@twin("never_ended", 4, "join")
def a_leg_that_comes_first_is_forgotten() -> Saga:
    def stamped(event: StampGiven, errand: Errand) -> ErrandEnded | None:
        return ErrandEnded(errand=event.errand) if errand.stage is Stage.RIDDEN else None

    return SAGA.with_(swapped(DESK, stamped))


@twin("ended_undone", 3)
def a_join_counts_deliveries() -> Saga:
    """Two of them are taken for both legs."""

    def ridden(event: RideDone, errand: Errand) -> ErrandEnded | ErrandRidden | None:
        if errand.stage in (Stage.RIDDEN, Stage.STAMPED):
            return ErrandEnded(errand=event.errand)
        return errands.ridden(event, errand)

    return SAGA.with_(swapped(DESK, ridden))


@dataclass(frozen=True, slots=True)
class Forgetful(Errand):
    """Its private facts change nothing."""

    def evolve(self, message: Decided, at: datetime) -> Self:
        if isinstance(message, ErrandRidden | ErrandStamped):
            return self
        return super(Forgetful, self).evolve(message, at)


@twin("never_ended", 4)
def a_private_fact_is_not_remembered() -> Saga:
    def ask(command: errands.AskErrand, errand: Forgetful) -> tuple[StartRide, GiveStamp] | None:
        return errands.ask(command, errand)

    def ridden(event: RideDone, errand: Forgetful) -> ErrandEnded | ErrandRidden | None:
        return errands.ridden(event, errand) if errand.sequence < 3 else None

    def stamped(event: StampGiven, errand: Forgetful) -> ErrandEnded | ErrandStamped | None:
        return errands.stamped(event, errand) if errand.sequence < 3 else None

    def refused(
        event: RideRefused, errand: Forgetful
    ) -> tuple[ErrandCancelled, errands.TakeStampOff] | None:
        return errands.refused(event, errand)

    return SAGA.with_(swapped(DESK, ask, ridden, stamped, refused))


@twin("never_ended", 3)
def an_answer_to_a_command_is_dropped() -> Saga:
    def ride(command: StartRide, ride: Ride) -> RideDone | RideRefused | None:
        return None if command.far else errands.ride(command, ride)

    return SAGA.with_(swapped(RIDER, ride))


@twin("ridden_once", 2)
def a_command_that_comes_again_is_carried_out_again() -> Saga:
    def ride(command: StartRide, ride: Ride) -> RideDone | RideRefused | None:
        return errands.ride(command, Ride(ride.key))

    return SAGA.with_(swapped(RIDER, ride))


@twin("stamp_left", 4, "effect")
def a_coordinator_forgets_to_have_an_effect_undone() -> Saga:
    def refused(event: RideRefused, errand: Errand) -> ErrandCancelled | None:
        cancel = errand.stage in (Stage.ASKED, Stage.STAMPED)
        return ErrandCancelled(errand=event.errand) if cancel else None

    without = [r.function for r in STAMPER.reactions if r.name != "take_off"]
    return SAGA.with_(swapped(DESK, refused), Participant("stamper", *without))


@twin("said_twice", 5)
def a_command_overtakes_the_one_that_undoes_it() -> Saga:
    """What is undone before it is done, is done then; and undone again, by the same command."""

    def stamp(command: GiveStamp, papers: Papers) -> StampGiven | None:
        was_stamped = papers.mark is errands.Mark.STAMP or papers.sequence > 1
        return None if was_stamped else StampGiven(errand=command.errand)

    return SAGA.with_(swapped(STAMPER, stamp))


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_found_by_the_model_checker(name: str) -> None:
    twin = TWINS[name]
    schedule = verify(model_of(twin.saga(), SCENARIO.name)).schedule

    assert isinstance(schedule, Schedule)
    assert (schedule.violation.rule, len(schedule.steps)) == (twin.rule, twin.steps)


@pytest.mark.parametrize("name", TWINS)
def test_a_broken_twin_is_found_by_saga_check_where_its_signatures_tell(name: str) -> None:
    twin = TWINS[name]
    graph = twin.saga().choreography

    found = check(graph, definitions(topology_of(graph), users_of(graph)))

    rules = {finding.rule for finding in found} - {"pending"}
    assert rules == ({twin.checked} if twin.checked else set())
