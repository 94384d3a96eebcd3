"""Recorded decisions made again, in toy words: what is a difference, and what was not looked at."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest

from saga.archive.store import Fact
from saga.choreography import Participant, State
from saga.declaration import Saga
from saga.envelope import Attributes, Envelope, derived_id, wrap
from saga.foreign import Foreign
from saga.message import Answer, Ask, Command, Event, Intent, Message, Priority, Role
from saga.outside import Desk, Outside
from saga.past.against import Against, compare
from saga.past.findings import DifferenceKind
from saga.past.recorded import PendingMessages
from saga.view import Broken, Events
from tests.recorded import archive_with, facts_of

START = datetime(2030, 1, 1, tzinfo=UTC)


class _AboutLamp(Message):
    lamp: str

    @property
    def subject(self) -> str:
        return self.lamp


class Switch(_AboutLamp, Command):
    type: ClassVar[str] = "lamp.switch"


class LampSwitched(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.switched"
    publisher: ClassVar[str] = "lamp"
    level: int = 7


class LampChecked(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.checked"
    publisher: ClassVar[str] = "watch"
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class LampState(State):
    lit: bool = False

    def evolve(self, message: Any, at: datetime) -> LampState:
        return replace(self, lit=True)


@dataclass(frozen=True, slots=True)
class WatchState(State):
    done: bool = False

    def evolve(self, message: Any, at: datetime) -> WatchState:
        return replace(self, done=True)


def switch(command: Switch, lamp: LampState) -> LampSwitched | None:
    return None if lamp.lit else LampSwitched(lamp=command.lamp)


LAMP = Participant("lamp", switch)


def event(
    data: Event,
    number: int,
    *,
    by: str = "lamp",
    after: timedelta = timedelta(0),
    because_of: str | None = None,
    sequence: int = 1,
) -> Envelope[Any]:
    """What a participant has published; because of a command from outside if nothing is said."""
    return wrap(
        data,
        id=str(UUID(int=number)),
        source=f"/services/{by}",
        time=START + after,
        priority=Priority.NORMAL,
        causation=because_of or str(UUID(int=number + 1000)),
        sequence=sequence,
    )


def kinds(run: Against) -> list[DifferenceKind]:
    return [one.group.kind for one in run.findings.differences()]


# --- a participant that has answered nothing ------------------------------------------------------


def check(event: LampSwitched, watch: WatchState) -> LampChecked | None:
    return None if watch.done else LampChecked(lamp=event.lamp)


def check_nothing(event: LampSwitched, watch: WatchState) -> LampChecked | None:
    return None


def watched(reaction: Callable[..., Any]) -> Saga:
    return Saga("lamps", participants=(LAMP, Participant("watch", reaction)))


def unanswered(tmp_path: Path) -> str:
    """Of one lamp a day ago and of one now, and without an event about either."""
    old, new = LampSwitched(lamp="hall"), LampSwitched(lamp="yard")
    return archive_with(tmp_path, facts_of([event(old, 1), event(new, 2, after=timedelta(days=1))]))


def looked(**ready: int) -> PendingMessages:
    """So much was in the queues when the newest event was a second old."""
    return PendingMessages(looked_at=START + timedelta(days=1, seconds=1), ready=ready)


def test_silence_of_one_who_never_answered_is_compared_where_its_queues_are_known(
    tmp_path: Path,
) -> None:
    run = compare(watched(check), unanswered(tmp_path), way=looked(lamp=0, watch=0))

    (difference,) = run.findings.differences()
    assert (difference.group.kind, difference.subject) == (DifferenceKind.SPEAKS, "hall")
    assert run.findings.pending == {"watch": 1}  # What is new may be in its hands.


def test_silence_of_one_who_never_answered_is_not_looked_at_where_nobody_can_be_asked(
    tmp_path: Path,
) -> None:
    run = compare(watched(check), unanswered(tmp_path))

    assert kinds(run) == []
    assert not run.ok
    (why,) = run.findings.not_looked_at
    assert why.startswith("whether watch has taken lamp.switched")
    assert run.findings.not_looked_at[why].subject == "hall"


def test_silence_of_one_who_has_a_backlog_is_not_looked_at(tmp_path: Path) -> None:
    run = compare(watched(check), unanswered(tmp_path), way=looked(lamp=0, watch=7))

    assert kinds(run) == []
    assert not run.ok


def test_silence_of_one_who_never_answered_is_no_difference_if_it_stays_silent(
    tmp_path: Path,
) -> None:
    run = compare(watched(check_nothing), unanswered(tmp_path))

    assert run.findings.differences() == []
    assert run.findings.not_looked_at == {}
    assert run.findings.silent["watch"] == 2


# --- fields that no class has any more ------------------------------------------------------------


class Bulb(Message):
    watts: int


class LampFitted(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.fitted"
    final: ClassVar[bool] = True
    bulbs: tuple[Bulb, ...] = ()
    spare: Bulb | None = None


def fit(command: Switch, lamp: LampState) -> LampFitted | None:
    return LampFitted(lamp=command.lamp, bulbs=(Bulb(watts=40),), spare=Bulb(watts=60))


def fitted(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> Against:
    """What came of an archive with an event whose data are changed first."""
    data = LampFitted(lamp="hall", bulbs=(Bulb(watts=40),), spare=Bulb(watts=60))
    document = json.loads(event(data, 1).to_bytes())
    change(document["data"])
    body = json.dumps(document).encode()
    saga = Saga("lamps", participants=(Participant("lamp", fit),))
    return compare(saga, archive_with(tmp_path, [Fact(Attributes.of(body), body)]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.update(colour="red"), "colour of lamp.fitted"),
        (lambda data: data["bulbs"][0].update(colour="red"), "bulbs.colour of lamp.fitted"),
        (lambda data: data["spare"].update(colour="red"), "spare.colour of lamp.fitted"),
    ],
)
def test_a_field_that_no_class_has_any_more_is_a_difference(
    change: Callable[[dict[str, Any]], None], named: str, tmp_path: Path
) -> None:
    run = fitted(change, tmp_path)

    (difference,) = run.findings.differences()
    assert (difference.group.kind, difference.group.what) == (DifferenceKind.DROPPED, named)
    assert (difference.recorded, difference.decided) == ("red", "nothing")
    assert not run.ok


def test_an_event_of_which_all_is_read_does_not_differ(tmp_path: Path) -> None:
    assert fitted(lambda data: None, tmp_path).ok


# --- commands that were not recorded --------------------------------------------------------------


class Rent(_AboutLamp, Command):
    type: ClassVar[str] = "lamp.rent"
    price: Decimal
    lasts: timedelta
    first_day: date
    bulbs: tuple[Bulb, ...]
    labels: Mapping[str, str]


class Connect(_AboutLamp, Command):
    type: ClassVar[str] = "lamp.connect"
    address: IPv4Address


class LampTaken(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.taken"
    final: ClassVar[bool] = True


def rent(command: Rent, lamp: LampState) -> LampTaken | None:
    return LampTaken(lamp=command.lamp) if command.price > 0 and command.lasts else None


def connect(command: Connect, lamp: LampState) -> LampTaken | None:
    return LampTaken(lamp=command.lamp)


def taken(reaction: Callable[..., Any], tmp_path: Path) -> Against:
    saga = Saga("lamps", participants=(Participant("lamp", reaction),))
    return compare(saga, archive_with(tmp_path, facts_of([event(LampTaken(lamp="hall"), 1)])))


def test_a_command_of_common_types_is_guessed(tmp_path: Path) -> None:
    run = taken(rent, tmp_path)

    assert run.ok
    assert run.findings.published["lamp"] == 1


def test_a_decision_on_a_command_that_cannot_be_guessed_was_not_looked_at(tmp_path: Path) -> None:
    run = taken(connect, tmp_path)

    assert not run.ok
    assert list(run.findings.not_looked_at) == [
        "lamp.taken of lamp: it followed from lamp.connect, whose content cannot be guessed"
    ]


# --- a question that is asked beside an event -----------------------------------------------------


class Measured(_AboutLamp, Answer):
    watts: int


class Measure(_AboutLamp, Intent):
    answer: ClassVar[type[Answer]] = Measured


class LampMeasured(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.measured"
    publisher: ClassVar[str] = "meter"
    final: ClassVar[bool] = True


class MeterRead(_AboutLamp, Event):
    type: ClassVar[str] = "meter.read"
    publisher: ClassVar[str] = "meter"
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class MeterState(State):
    read: bool = False

    def evolve(self, message: Any, at: datetime) -> MeterState:
        return replace(self, read=True) if isinstance(message, MeterRead) else self


def read(event: LampSwitched, meter: MeterState) -> tuple[MeterRead, Measure] | None:
    if meter.read:
        return None
    return MeterRead(lamp=event.lamp), Measure(lamp=event.lamp)


def read_only(event: LampSwitched, meter: MeterState) -> MeterRead | None:
    return None if meter.read else MeterRead(lamp=event.lamp)


read_only.__name__ = "read"


def measured(answer: Measured, meter: MeterState) -> LampMeasured | None:
    return LampMeasured(lamp=answer.lamp)


def _ask(desk: Desk[None]) -> Mapping[type[Intent], Ask]:
    async def measure(intent: Any) -> Answer:
        return Measured(lamp=intent.lamp, watts=40)

    return {Measure: measure}


LAB = Outside("lab", asked_by="meter", blank=None, decisions=("measures",), ask=_ask)


@pytest.mark.parametrize(("reaction", "differs"), [(read, False), (read_only, True)])
def test_a_question_that_is_gone_beside_its_event_is_found(
    reaction: Callable[..., Any], differs: bool, tmp_path: Path
) -> None:
    switched = event(LampSwitched(lamp="hall"), 1)

    def meter(data: Event, step: str, sequence: int) -> Envelope[Any]:
        made = event(data, 5, by="meter", because_of=switched.id, sequence=sequence)
        return made.model_copy(update={"id": derived_id(switched.id, f"meter.{step}.{data.type}")})

    facts = facts_of(
        [
            switched,
            meter(MeterRead(lamp="hall"), "read", 1),
            meter(LampMeasured(lamp="hall"), "measured", 2),
        ]
    )
    saga = Saga(
        "lamps",
        participants=(LAMP, Participant("meter", reaction, measured)),
        outside=(LAB,),
    )

    run = compare(saga, archive_with(tmp_path, facts))

    found = [(d.group.reaction, d.group.kind, d.recorded) for d in run.findings.differences()]
    assert found == ([("read", DifferenceKind.SILENT, "lamp.measured")] if differs else [])
    assert run.findings.not_looked_at == {}


def test_a_question_that_is_open_beside_its_event_is_not_at_rest(tmp_path: Path) -> None:
    switched = event(LampSwitched(lamp="hall"), 1)
    read_ = event(MeterRead(lamp="hall"), 5, by="meter", because_of=switched.id)
    saga = Saga("lamps", participants=(LAMP, Participant("meter", read, measured)), outside=(LAB,))

    run = compare(saga, archive_with(tmp_path, facts_of([switched, read_])))

    assert run.onward is not None
    assert run.onward.pending == 1
    assert list(run.onward.left_out) == [
        "about which meter is asking the outside: no event tells what"
    ]
    assert not run.ok


def keep_measuring(answer: Measured, meter: MeterState) -> LampMeasured | Measure:
    return Measure(lamp=answer.lamp)


def test_what_never_comes_to_rest_from_here_is_found(tmp_path: Path) -> None:
    switched = event(LampSwitched(lamp="hall"), 1)
    meter = Participant("meter", ask_only, keep_measuring)
    saga = Saga("lamps", participants=(LAMP, meter), outside=(LAB,))

    run = compare(saga, archive_with(tmp_path, facts_of([switched])))

    assert run.onward is not None
    assert list(run.onward.breaks) == ["never_at_rest"]


def ask_only(event: LampSwitched, meter: MeterState) -> Measure:
    return Measure(lamp=event.lamp)


class LampCheckedAgain(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.checked_again"
    publisher: ClassVar[str] = "watch"
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class DoubtfulWatch(State):
    checked: int = 0

    def evolve(self, message: Any, at: datetime) -> DoubtfulWatch:
        return replace(self, checked=self.checked + 1)


def check_twice(event: LampSwitched, watch: DoubtfulWatch) -> LampChecked | LampCheckedAgain | None:
    """A message that comes twice leads to more."""
    if watch.checked > 1:
        return None
    return LampCheckedAgain(lamp=event.lamp) if watch.checked else LampChecked(lamp=event.lamp)


def test_what_moves_at_rest_from_here_is_found(tmp_path: Path) -> None:
    switched = event(LampSwitched(lamp="hall"), 1)
    saga = Saga("lamps", participants=(LAMP, Participant("watch", check_twice)))

    run = compare(saga, archive_with(tmp_path, facts_of([switched])))

    assert run.onward is not None
    assert "moved_at_rest" in run.onward.breaks


# --- participants in other languages --------------------------------------------------------------


class LampInsured(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.insured"
    publisher: ClassVar[str] = "insurer"
    final: ClassVar[bool] = True


def insure(event: LampSwitched) -> LampInsured:
    raise NotImplementedError


@pytest.mark.parametrize("answered", [False, True])
def test_what_waits_for_a_participant_in_another_language_is_not_at_rest(
    answered: bool, tmp_path: Path
) -> None:
    switched = event(LampSwitched(lamp="hall"), 1)
    insured = event(LampInsured(lamp="hall"), 5, by="insurer", because_of=switched.id)
    saga = Saga("lamps", participants=(LAMP, Foreign("insurer", insure)))

    facts = facts_of([switched, insured] if answered else [switched])
    run = compare(saga, archive_with(tmp_path, facts))

    assert run.onward is not None
    assert run.onward.pending == (0 if answered else 1)
    assert len(run.onward.states) == (0 if answered else 1)


# --- subjects of which several participants go on by themselves -----------------------------------


class Burn(_AboutLamp, Command):
    type: ClassVar[str] = "lamp.burn"


class LampBurnt(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.burnt"
    publisher: ClassVar[str] = "lamp"
    role: ClassVar[Role] = Role.COMPLETION


class LampReplaced(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.replaced"
    final: ClassVar[bool] = True


class LampReordered(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.reordered"
    final: ClassVar[bool] = True


def burn(command: Burn, lamp: LampState) -> LampBurnt | None:
    return None if lamp.lit else LampBurnt(lamp=command.lamp)


def replace_it(event: LampBurnt, watch: WatchState) -> LampReplaced | None:
    return None if watch.done else LampReplaced(lamp=event.lamp)


def reorder(event: LampBurnt, store: WatchState) -> LampReordered | None:
    return None if store.done else LampReordered(lamp=event.lamp)


def left_alone(followed: Events[LampReplaced | LampReordered]) -> Iterator[Broken]:
    """Nothing follows."""
    for each in followed:
        yield each.subject, "something followed"


def test_a_subject_of_which_several_go_on_by_themselves_counts_once(tmp_path: Path) -> None:
    saga = Saga(
        "lamps",
        participants=(
            Participant("lamp", burn),
            Participant("shop", replace_it),
            Participant("store", reorder),
        ),
        always=(left_alone,),
    )
    burnt = [event(LampBurnt(lamp=f"lamp {number}"), number) for number in (1, 2, 3)]

    run = compare(saga, archive_with(tmp_path, facts_of(burnt)))

    assert run.onward is not None
    assert run.onward.pending == 3
    assert [state.count for state in run.onward.states] == [3]
    assert run.onward.breaks["left_alone"].count == 3
