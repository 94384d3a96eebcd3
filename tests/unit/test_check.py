"""Every rule finds what breaks it, names the function, and finds nothing in what is sound."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
from typer.testing import CliRunner

import saga.discovery
from saga.broker.drift import MISSING, Deviation
from saga.choreography import Choreography, Participant, State
from saga.cli import app
from saga.due import Due
from saga.graph.check import RULES, Finding, check, drifted
from saga.graph.flow import SourceLine
from saga.message import Answer, Command, Decided, Event, EventTypes, Intent, Role
from saga.runtime.messaging.definitions import Definitions, definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of
from tests.circle import GRAPH
from tests.words import Begun

Functions = list[Callable[..., Any]]


class Book(Command):
    type: ClassVar[str] = "trip.book"


class CallOff(Command):
    type: ClassVar[str] = "trip.call_off"


class Lapse(Command):
    type: ClassVar[str] = "trip.lapse"


class Nag(Command):
    type: ClassVar[str] = "trip.nag"


class TripBooked(Event):
    type: ClassVar[str] = "trip.booked"
    publisher: ClassVar[str] = "trip"


class TripEnded(Event):
    type: ClassVar[str] = "trip.ended"
    publisher: ClassVar[str] = "trip"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


class TripCancelled(Event):
    type: ClassVar[str] = "trip.cancelled"
    publisher: ClassVar[str] = "trip"
    role: ClassVar[Role] = Role.CANCELLATION


class SeatHeld(Event):
    type: ClassVar[str] = "seat.held"
    publisher: ClassVar[str] = "seat"
    role: ClassVar[Role] = Role.EFFECT


class SeatRefused(Event):
    type: ClassVar[str] = "seat.refused"
    publisher: ClassVar[str] = "seat"
    role: ClassVar[Role] = Role.FAILURE


class SeatFreed(Event):
    type: ClassVar[str] = "seat.freed"
    publisher: ClassVar[str] = "seat"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (SeatHeld,)
    final: ClassVar[bool] = True


class TripNoted(Event):
    type: ClassVar[str] = "trip.noted"
    publisher: ClassVar[str] = "trip"
    final: ClassVar[bool] = True


class SeatNoted(Event):
    type: ClassVar[str] = "seat.noted"
    publisher: ClassVar[str] = "seat"
    final: ClassVar[bool] = True


class FanCheered(Event):
    type: ClassVar[str] = "fan.cheered"
    publisher: ClassVar[str] = "fan"
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Remembering(State):
    booked: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, booked=True)


@dataclass(frozen=True, slots=True)
class Trip(Remembering):
    def due(self) -> Due[Lapse] | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Nagged(Remembering):
    def due(self) -> Due[Nag] | None:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Journey(Remembering):
    """About which nothing is due."""


@dataclass(frozen=True, slots=True)
class Seat(Remembering):
    pass


@dataclass(frozen=True, slots=True)
class Forgetful(State):
    pass


# mypy: disable-error-code="empty-body"
# Only their signatures are looked at.
def book(command: Book, trip: Trip) -> TripBooked | None: ...
def lapse(command: Lapse, trip: Trip) -> TripCancelled | None: ...
def call_off(command: CallOff, trip: Trip) -> TripCancelled | None: ...
def give_up(event: SeatRefused, trip: Trip) -> TripCancelled | None: ...
def end(event: SeatHeld, trip: Trip) -> TripEnded | None: ...
def hold(event: TripBooked, seat: Seat) -> SeatHeld | SeatRefused | None: ...
def free(event: TripCancelled, seat: Seat) -> SeatFreed | None: ...


TRIP: Functions = [book, call_off, give_up, end, lapse]
SEAT: Functions = [hold, free]


def found(*participants: tuple[str, Functions]) -> list[Finding]:
    graph = Choreography(Participant(name, *functions) for name, functions in participants)
    return check(graph, asked_for(graph))


def rules(*participants: tuple[str, Functions]) -> set[str]:
    """The rules that are broken."""
    return {finding.rule for finding in found(*participants)}


def asked_for(graph: Choreography) -> Definitions:
    return definitions(topology_of(graph), users_of(graph))


def test_a_sound_choreography_has_no_findings() -> None:
    assert found(("trip", TRIP), ("seat", SEAT)) == []


def test_a_command_that_ends_a_saga_at_once_begins_none() -> None:
    findings = found(("trip", [set_out, call_off_at_once, arrive, turn_back]), ("seat", SEAT))

    assert [f.name for f in findings if f.rule == "pending"] == ["set_out"]


def test_what_is_due_about_no_state_that_ever_changes_never_comes() -> None:
    findings = found(("trip", [set_out, arrive, turn_back]), ("seat", SEAT), ("clerk", [nag]))

    assert [f.name for f in findings if f.rule == "unreached"] == ["nag"]


# What breaks a rule each, and where it has to be found.


class TripDelayed(Event):
    type: ClassVar[str] = "trip.delayed"
    publisher: ClassVar[str] = "trip"


def apologize(event: TripDelayed, trip: Trip) -> TripEnded | None: ...


class SeatCleaned(Event):
    type: ClassVar[str] = "seat.cleaned"
    publisher: ClassVar[str] = "seat"


def clean(event: TripBooked, seat: Seat) -> SeatCleaned | None: ...


def praise(event: SeatCleaned, forgetful: Forgetful) -> FanCheered: ...


class Asked(Answer):
    pass


class Ask(Intent):
    answer: ClassVar[type[Answer]] = Asked


def hear(answer: Asked, seat: Seat) -> SeatNoted | None: ...


def give_up_silently(event: SeatRefused, trip: Trip) -> TripNoted | None: ...


def free_nothing(event: TripCancelled, seat: Seat) -> SeatNoted | None: ...


class SeatLost(Event):
    type: ClassVar[str] = "seat.lost"
    publisher: ClassVar[str] = "seat"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


class Lose(Command):
    type: ClassVar[str] = "seat.lose"


def lose_alone(command: Lose, seat: Seat) -> SeatLost | None: ...


def lose(event: TripEnded, seat: Seat) -> SeatLost | None: ...


class SeatCheered(Event):
    type: ClassVar[str] = "seat.cheered"
    publisher: ClassVar[str] = "seat"
    undoes: ClassVar[EventTypes] = (TripBooked,)
    final: ClassVar[bool] = True


def cheer(event: TripEnded, seat: Seat) -> SeatCheered | None: ...


class Ping(Event):
    type: ClassVar[str] = "ping"


class Pong(Event):
    type: ClassVar[str] = "pong"


def serve(command: Book, trip: Journey) -> Ping: ...


def hit(event: Ping, trip: Journey) -> Pong: ...


def hit_back(event: Pong, trip: Journey) -> Ping: ...


def hit_or_stop(event: Pong, seat: Seat) -> Ping | None: ...


def hit_forgetfully(event: Pong, forgetful: Forgetful) -> Ping | None: ...


def set_out(command: Book, trip: Journey) -> TripBooked | None: ...


def arrive(event: SeatHeld, trip: Journey) -> TripEnded | None: ...


def turn_back(event: SeatRefused, trip: Journey) -> TripCancelled | None: ...


def book_with_patience(command: Book, trip: Nagged) -> TripBooked | None: ...


def nag(command: Nag, trip: Nagged) -> TripDelayed | None: ...


def call_off_at_once(command: CallOff, trip: Journey) -> TripCancelled | None: ...


class SeatMoved(Event):
    type: ClassVar[str] = "seat.moved"
    publisher: ClassVar[str] = "seat"
    version: ClassVar[int] = 3
    final: ClassVar[bool] = True


class SeatMovedV2(Event):
    type: ClassVar[str] = "seat.moved"
    publisher: ClassVar[str] = "seat"
    version: ClassVar[int] = 2


def move(event: TripEnded, seat: Seat) -> SeatMoved | None: ...


def follow(event: SeatMovedV2, trip: Trip) -> TripNoted | None: ...


class CleanSeat(Command):
    type: ClassVar[str] = "seat.clean"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("trip",)


class MendSeat(CleanSeat):
    type: ClassVar[str] = "seat.mend"
    version: ClassVar[int] = 2


class FreeSeat(CleanSeat):
    type: ClassVar[str] = "seat.free"


def end_tidily(event: SeatHeld, trip: Trip) -> tuple[TripEnded, CleanSeat] | None: ...


def end_and_mend(event: SeatHeld, trip: Trip) -> tuple[TripEnded, MendSeat] | None: ...


def obey(command: CleanSeat, seat: Seat) -> SeatNoted | None: ...


def obey_mend(command: MendSeat, seat: Seat) -> SeatNoted | None: ...


def order_cleaning(event: SeatFreed, journey: Journey) -> CleanSeat | None: ...


def call_off_tidily(command: CallOff, trip: Trip) -> tuple[TripCancelled, FreeSeat] | None: ...


def give_up_tidily(event: SeatRefused, trip: Trip) -> tuple[TripCancelled, FreeSeat] | None: ...


def give_up_alone(event: SeatRefused, trip: Trip) -> TripCancelled | FreeSeat | None: ...


def call_off_alone(command: CallOff, trip: Trip) -> TripCancelled | None: ...


def free_as_told(command: FreeSeat, seat: Seat) -> SeatFreed | None: ...


def look_at(event: TripCancelled, forgetful: Forgetful) -> FanCheered | None: ...


class TripPaid(Event):
    type: ClassVar[str] = "trip.paid"
    private: ClassVar[bool] = True


class TripSeated(Event):
    type: ClassVar[str] = "trip.seated"
    private: ClassVar[bool] = True


class SeatPaid(Event):
    type: ClassVar[str] = "seat.paid"
    publisher: ClassVar[str] = "till"


def pay(event: TripBooked, seat: Seat) -> SeatPaid | None: ...


def join_seat(event: SeatHeld, trip: Trip) -> TripEnded | TripSeated | None: ...


def join_payment(event: SeatPaid, trip: Trip) -> TripEnded | TripPaid | None: ...


def forget_payment(event: SeatPaid, trip: Trip) -> TripEnded | None: ...


def never_wait_for_a_seat(event: SeatPaid, trip: Trip) -> TripEnded: ...


def keep_payment(event: SeatPaid, trip: Trip) -> TripPaid | None: ...


def keep_the_seat_only(event: SeatRefused, trip: Trip) -> TripSeated | TripCancelled | None: ...


def count_seats(event: SeatHeld, trip: Trip) -> tuple[TripSeated, TripEnded] | TripSeated: ...


@dataclass(frozen=True)
class Broken:
    participants: list[tuple[str, Functions]]
    rule: str
    at: Callable[..., Any] | type
    said: str


JOINING: Functions = [book, call_off, give_up, lapse]
BROKEN = {
    "an event that nobody publishes": Broken(
        [("trip", [*TRIP, apologize]), ("seat", SEAT)],
        "unpublished",
        apologize,
        "reacts to trip.delayed, which no participant publishes",
    ),
    "an event of no publisher": Broken(
        [("trip", [serve, hit])],
        "publisher",
        hit,
        "publishes pong, which names no `publisher`: its readers would believe every source",
    ),
    "an event of another publisher": Broken(
        [("trip", TRIP), ("seat", SEAT), ("usher", [lose_alone])],
        "publisher",
        lose_alone,
        "publishes seat.lost, whose `publisher` is 'seat': its readers would refuse it",
    ),
    "a command of a participant that is none of its senders": Broken(
        [("trip", [*TRIP]), ("usher", [order_cleaning]), ("seat", [*SEAT, obey])],
        "sender",
        order_cleaning,
        "sends seat.clean, whose `senders` are 'trip': seat would refuse it; name 'usher'",
    ),
    "a sender that does not send": Broken(
        [("trip", [*TRIP]), ("usher", [order_cleaning]), ("seat", [*SEAT, obey])],
        "sender",
        CleanSeat,
        "names 'trip' among its `senders`, whose reactions do not send it",
    ),
    "a command that only comes from outside, and has senders": Broken(
        [("trip", [*TRIP]), ("seat", [*SEAT, obey])],
        "sender",
        CleanSeat,
        "names 'trip' as its `senders`, but no reaction sends it",
    ),
    "a version of a command between participants without a class": Broken(
        [("trip", [book, call_off, give_up, end_and_mend, lapse]), ("seat", [*SEAT, obey_mend])],
        "version",
        MendSeat,
        "version 1 of seat.mend has no class",
    ),
    "an effect that no command sent with the cancellation undoes": Broken(
        [
            ("trip", [book, call_off_alone, give_up_alone, end, lapse]),
            ("seat", [hold, free_as_told]),
            ("fan", [look_at]),
        ],
        "effect",
        hold,
        "seat.held is an effect, but trip.cancelled does not lead seat to publish anything",
    ),
    "an event that nobody reacts to": Broken(
        [("trip", TRIP), ("seat", SEAT), ("cleaning", [clean])],
        "unconsumed",
        clean,
        "publishes seat.cleaned, which no participant reacts to; mark it `final`",
    ),
    "a participant that nothing reaches": Broken(
        [("trip", TRIP), ("seat", SEAT), ("fan", [praise])],
        "unreached",
        praise,
        "nothing that fan reacts to ever happens",
    ),
    "a reaction to the answer to no question": Broken(
        [("trip", TRIP), ("seat", [*SEAT, hear])],
        "unreached",
        hear,
        "Asked never comes",
    ),
    "a saga that nothing ends where an event never comes": Broken(
        [("trip", [set_out, arrive, turn_back]), ("seat", SEAT)],
        "pending",
        set_out,
        "begins what ends with trip.cancelled or trip.ended, and nothing that is due leads there: "
        "where an event never comes, it is pending for ever; let the Journey say by `due`",
    ),
    "a saga that is only ever reminded": Broken(
        [("trip", [book_with_patience, nag, arrive, turn_back]), ("seat", SEAT)],
        "pending",
        book_with_patience,
        "let the Nagged say by `due` what ends it",
    ),
    "a failure that cancels nothing": Broken(
        [("trip", [book, call_off, give_up_silently, end, lapse]), ("seat", SEAT)],
        "failure",
        hold,
        "seat.refused is a failure, but leads to no cancellation",
    ),
    "an effect that a cancellation does not undo": Broken(
        [("trip", TRIP), ("seat", [hold, free_nothing])],
        "effect",
        hold,
        "seat.held is an effect, but trip.cancelled does not lead seat to publish anything",
    ),
    "an effect that only somebody else undoes": Broken(
        [("trip", TRIP), ("seat", [hold]), ("usher", [free])],
        "effect",
        hold,
        "does not lead seat to",
    ),
    "an effect that one of two cancellations does not undo": Broken(
        [("trip", TRIP), ("seat", [*SEAT, lose])],
        "effect",
        hold,
        "seat.lost does not lead seat to",
    ),
    "an undoing of what is no effect": Broken(
        [("trip", TRIP), ("seat", [*SEAT, cheer])],
        "undoes",
        SeatCheered,
        "undoes trip.booked, whose role is step",
    ),
    "a cycle that nobody can leave": Broken(
        [("trip", [serve, hit]), ("seat", [hit_back])],
        "cycle",
        hit_back,
        "goes round for ever: seat.hit_back → ping → trip.hit → pong → seat.hit_back",
    ),
    "a cycle whose way out has no memory": Broken(
        [("trip", [serve, hit]), ("seat", [hit_forgetfully])],
        "cycle",
        hit_forgetfully,
        "let one of these reactions decide on nothing where its state says that it is done",
    ),
    "a leg that forgets that it came first": Broken(
        [("trip", [*JOINING, join_seat, forget_payment]), ("seat", SEAT), ("till", [pay])],
        "join",
        forget_payment,
        "is a leg of trip.ended, but keeps nothing: coming first, it would be forgotten",
    ),
    "a leg that cannot wait": Broken(
        [("trip", [*JOINING, join_seat, never_wait_for_a_seat]), ("seat", SEAT), ("till", [pay])],
        "join",
        never_wait_for_a_seat,
        "is a leg of trip.ended, but cannot wait for the others",
    ),
    "a join of one leg": Broken(
        [("trip", [*JOINING, join_seat, keep_payment]), ("seat", SEAT), ("till", [pay])],
        "join",
        join_seat,
        "keeps trip.seated until trip.ended, but no other reaction of trip returns that",
    ),
    "a leg that cannot complete the join": Broken(
        [
            ("trip", [book, call_off, join_seat, join_payment, keep_the_seat_only, lapse]),
            ("seat", SEAT),
            ("till", [pay]),
        ],
        "join",
        keep_the_seat_only,
        "keeps trip.seated, but cannot complete trip.ended: coming last",
    ),
    "a version without an upcaster": Broken(
        [("trip", TRIP), ("seat", [*SEAT, move])],
        "version",
        SeatMovedV2,
        "version 2 of seat.moved has no upcaster; 3 is the newest",
    ),
    "a version without a class": Broken(
        [("trip", TRIP), ("seat", [*SEAT, move])],
        "version",
        SeatMoved,
        "version 1 of seat.moved has no class",
    ),
    "a reaction to a version that is upcast": Broken(
        [("trip", [*TRIP, follow]), ("seat", [*SEAT, move])],
        "version",
        follow,
        "takes version 2 of seat.moved, but is never given it",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_a_rule_is_found_where_it_is(name: str) -> None:
    broken = BROKEN[name]
    findings = [f for f in found(*broken.participants) if f.rule == broken.rule]

    matching = [f for f in findings if f.name == broken.at.__name__ and broken.said in f.message]
    assert len(matching) == 1, [*map(str, findings)]
    _, line = inspect.getsourcelines(broken.at)
    source = matching[0].source
    assert source == SourceLine.of(broken.at)
    assert source is not None
    assert source.line == line
    assert Path(source.file).name == "test_check.py"


def test_there_is_a_broken_example_for_every_rule() -> None:
    assert {broken.rule for broken in BROKEN.values()} | {"permission"} == set(RULES)


def test_an_effect_may_be_undone_by_a_command_that_is_sent_with_the_cancellation() -> None:
    trip: Functions = [book, call_off_tidily, give_up_tidily, end_tidily, lapse]
    seat: Functions = [hold, free_as_told, obey]

    assert found(("trip", trip), ("seat", seat), ("fan", [look_at])) == []


def test_a_join_whose_legs_all_wait_and_complete_it_is_sound() -> None:
    trip: Functions = [*JOINING, join_seat, join_payment]

    assert found(("trip", trip), ("seat", SEAT), ("till", [pay])) == []


def test_what_counts_messages_of_one_type_is_no_join() -> None:
    assert found(("trip", [*JOINING, count_seats]), ("seat", SEAT)) == []


def test_a_user_who_may_not_send_what_its_reactions_send_is_found() -> None:
    trip = Participant("trip", book, call_off, give_up, end_tidily, lapse)
    graph = Choreography([trip, Participant("seat", *SEAT, obey)])
    document = asked_for(graph)
    for permission in document["topic_permissions"]:
        permission["write"] = permission["write"].replace(r"|seat\.clean\.high", "")

    (finding,) = check(graph, document)

    assert (finding.rule, finding.name) == ("permission", "end_tidily")


def test_a_cycle_that_a_remembering_reaction_can_leave_is_sound() -> None:
    assert "cycle" not in rules(("trip", [serve, hit]), ("seat", [hit_or_stop]))


def test_a_cancellation_of_another_saga_needs_to_undo_nothing() -> None:
    assert "effect" not in rules(("trip", TRIP), ("seat", SEAT), ("lost", [lose_alone]))


class CreateTask(Command):
    type: ClassVar[str] = "task.create"


class CompleteTask(Command):
    type: ClassVar[str] = "task.complete"


class TaskCreated(Event):
    type: ClassVar[str] = "task.created"
    publisher: ClassVar[str] = "task"


class TaskGivenUp(Event):
    type: ClassVar[str] = "task.given_up"
    publisher: ClassVar[str] = "task"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


class HoursBooked(Event):
    type: ClassVar[str] = "hours.booked"
    publisher: ClassVar[str] = "hours"
    role: ClassVar[Role] = Role.EFFECT
    final: ClassVar[bool] = True


class CorrectHours(Command):
    type: ClassVar[str] = "hours.correct"


@dataclass(frozen=True, slots=True)
class Task(Remembering):
    pass


@dataclass(frozen=True, slots=True)
class Hours(Remembering):
    pass


@dataclass(frozen=True, slots=True)
class HoursOfTrips(Remembering):
    pass


def create(command: CreateTask, task: Task) -> TaskCreated | None: ...
def complete(command: CompleteTask, task: Task) -> TaskGivenUp | None: ...
def book_hours(event: TaskCreated, hours: Hours) -> HoursBooked | None: ...
def correct(command: CorrectHours, hours: Hours) -> HoursBooked | None: ...


def book_hours_of_trips(event: TripBooked, hours: HoursOfTrips) -> HoursBooked | None: ...


def test_an_effect_is_to_be_undone_whichever_command_about_its_subject_cancels() -> None:
    findings = found(("task", [create, complete]), ("hours", [book_hours]))

    (finding,) = [finding for finding in findings if finding.rule == "effect"]
    assert finding.name == "book_hours"
    assert "task.given_up does not lead hours to publish anything" in finding.message


def test_two_sagas_of_one_participant_stay_apart_where_its_states_do() -> None:
    both = found(
        ("task", [create, complete]),
        ("trip", TRIP),
        ("seat", SEAT),
        ("hours", [book_hours_of_trips]),
    )

    said = [finding.message for finding in both if finding.rule == "effect"]
    assert [message for message in said if "task.given_up" in message] == []
    assert any("trip.cancelled does not lead hours" in message for message in said)


def test_a_command_about_what_two_sagas_have_in_common_does_not_make_one_of_them() -> None:
    both = found(
        ("trip", TRIP),
        ("seat", SEAT),
        ("task", [create, complete]),
        ("hours", [note_trip, note_task, correct]),
    )

    said = [finding.message for finding in both if finding.rule == "effect"]
    assert any("trip.cancelled does not lead hours" in message for message in said)
    assert any("task.given_up does not lead hours" in message for message in said)
    assert not any("seat.held is an effect, but task.given_up" in message for message in said)


def note_trip(event: TripBooked, hours: Hours) -> FanCheered | None: ...
def note_task(event: TaskCreated, hours: Hours) -> FanCheered | None: ...


@pytest.mark.parametrize("section", ["permissions", "topic_permissions"])
def test_a_reaction_that_may_publish_what_its_user_may_not_is_found(section: str) -> None:
    graph = Choreography([Participant("trip", *TRIP), Participant("seat", *SEAT)])
    document = asked_for(graph)
    for permission in document[section]:
        if permission["user"] == "seat":
            permission["write"] = permission["write"].replace(r"seat\.freed\.high|", "")
            permission["write"] = permission["write"].replace(r"saga\.events|", "")

    findings = check(graph, document)

    at = {"permissions": {"hold", "free"}, "topic_permissions": {"free"}}[section]
    assert {finding.rule for finding in findings} == {"permission"}
    assert {finding.name for finding in findings} == at
    assert all("the broker does not let the user seat" in f.message for f in findings)


def test_a_user_without_topic_permissions_may_publish_anything_as_rabbitmq_has_it() -> None:
    graph = Choreography([Participant("trip", *TRIP), Participant("seat", *SEAT)])

    assert check(graph, {**asked_for(graph), "topic_permissions": []}) == []


def test_what_a_live_broker_holds_differently_is_told_at_the_reaction_it_concerns() -> None:
    differences = [
        Deviation("binding", "saga.events thing.begun.high keeper.high", "there", MISSING),
        Deviation("queue", "asker.dlq", "there", MISSING),
        Deviation("queue", "saga.retry.500", "there", MISSING),
    ]

    bound, dead, waiting = drifted(GRAPH, differences)

    assert (bound.name, dead.name, waiting.name) == ("hold", "inquire", "broker")
    assert str(bound.source).startswith("tests/circle.py:")
    assert "expected there, found -" in bound.message


def test_saga_check_says_where_and_ends_with_1_when_something_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def said(*options: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["check", "--definitions", str(file), *options])
        return result.exit_code, result.stdout

    file = tmp_path / "definitions.json"
    sound = Choreography([Participant("trip", *TRIP), Participant("seat", *SEAT)])
    file.write_text(json.dumps(asked_for(sound)))
    monkeypatch.setattr(saga.discovery, "choreography", lambda: sound)
    assert said() == (0, "")

    broken = Choreography([Participant("seat", *SEAT), Participant("mail", greet)])
    monkeypatch.setattr(saga.discovery, "choreography", lambda: broken)
    status, text = said()
    assert status == 1
    line = next(line for line in text.splitlines() if "greet" in line and "unpublished" in line)
    assert line.startswith(f"{SourceLine.of(greet)} greet: reacts to thing.begun, which no")

    status, text = said("--json")
    document = json.loads(text)
    assert status == 1
    assert not document["ok"]
    assert {"rule", "file", "line", "function", "message"} == document["findings"][0].keys()


def greet(event: Begun, trip: Journey) -> TripNoted | None: ...


def test_a_definitions_file_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    file = tmp_path / "definitions.json"
    file.write_text("[]")
    for wrong in (file, tmp_path / "missing.json"):
        result = CliRunner().invoke(app, ["check", "--definitions", str(wrong)])
        assert result.exit_code == 2
