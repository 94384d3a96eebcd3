"""A saga that can only be cancelled: it goes well without an event that says so, and one of those
who follow it only listens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import ClassVar, Final

import pytest

from saga.archive.subjects import SubjectRules
from saga.choreography import Participant, State
from saga.course import course_of
from saga.declaration import Saga
from saga.due import Due
from saga.envelope import Envelope, source_of, wrap
from saga.foreign import Foreign, duties_of
from saga.graph.canvas import canvas
from saga.graph.check import check
from saga.graph.flow import Flow
from saga.load.plan import Plan
from saga.load.run import LoadResult
from saga.message import Command, Event, Priority, Role
from saga.reconcile import Report
from saga.rules import Rules
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of
from saga.simulation.verdict import wrong_endings
from saga.view import EventsInMemory, View

AT: Final = datetime(2030, 1, 1, tzinfo=UTC)
KEY: Final = "k"


class _Event(Event):
    key: str

    @property
    def subject(self) -> str:
        return self.key


class _Command(Command):
    key: str

    @property
    def subject(self) -> str:
        return self.key


class Post(_Command):
    """Publish an entry."""

    type: ClassVar[str] = "entry.post"


class StopReading(_Command):
    """It takes too long to read."""

    type: ClassVar[str] = "entry.stop_reading"


class Posted(_Event):
    """There is an entry."""

    type: ClassVar[str] = "entry.posted"
    publisher: ClassVar[str] = "blog"


class Refused(_Event):
    """It is not fit to be read."""

    type: ClassVar[str] = "entry.refused"
    publisher: ClassVar[str] = "reader"
    role: ClassVar[Role] = Role.FAILURE


class Liked(_Event):
    """It is fit to be read."""

    type: ClassVar[str] = "entry.liked"
    publisher: ClassVar[str] = "reader"
    final: ClassVar[bool] = True


class Rated(_Event):
    """It is worth so much."""

    type: ClassVar[str] = "entry.rated"
    publisher: ClassVar[str] = "reader"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True


class Withdrawn(_Event):
    """There is no entry any more."""

    type: ClassVar[str] = "entry.withdrawn"
    publisher: ClassVar[str] = "blog"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


@dataclass(frozen=True, slots=True)
class Entry(State):
    """An entry."""


@dataclass(frozen=True, slots=True)
class Lasting(State):
    """An entry, for which there is a time."""

    until: datetime | None = None

    def due(self) -> Due[StopReading] | None:
        return None if self.until is None else Due(self.until, StopReading(key=self.key))


@dataclass(frozen=True, slots=True)
class Reading(State):
    """Reading it, for which there is a time as well."""

    until: datetime | None = None

    def due(self) -> Due[StopReading] | None:
        return None if self.until is None else Due(self.until, StopReading(key=self.key))


def post(command: Post, entry: Entry) -> Posted | None:
    return Posted(key=command.key)


def withdraw(event: Refused, entry: Entry) -> Withdrawn | None:
    return Withdrawn(key=event.key)


def read(event: Posted, reading: Reading) -> Liked | Refused | None:
    return Liked(key=event.key)


def read_at_leisure(event: Posted, entry: Entry) -> Liked | Refused | None:
    return Liked(key=event.key)


def stop_reading(command: StopReading, reading: Reading) -> Refused | None:
    return Refused(key=command.key)


def rate(event: Posted, entry: Entry) -> Rated | Liked | Refused | None:
    return Rated(key=event.key)


def count(event: Posted) -> None:
    """One entry more."""


BLOG: Final = Participant("blog", post, withdraw)
READER: Final = Participant("reader", read, stop_reading)
FICKLE: Final = Participant("reader", rate)
COUNTER: Final = Foreign("counter", count)
SAGA: Final = Saga("entries", (BLOG, READER, COUNTER), subject=Entry)


def post_lasting(command: Post, entry: Lasting) -> Posted | None:
    return Posted(key=command.key)


def withdraw_lasting(command: StopReading, entry: Lasting) -> Withdrawn | None:
    return Withdrawn(key=command.key)


TIMED: Final = Saga("timed", (Participant("blog", post_lasting, withdraw_lasting),))
"""The entry itself has a time, after which it is withdrawn."""


def told(*events: Event) -> list[Envelope[Event]]:
    return [
        wrap(
            event,
            id=f"id-{number}",
            source=source_of(event.publisher or ""),
            time=AT,
            priority=Priority.NORMAL,
            sequence=number,
        )
        for number, event in enumerate(events, 1)
    ]


def broken(saga: Saga, events: Sequence[Envelope[Event]], name: str, state: State) -> set[str]:
    """The rules that this breaks at rest."""
    known = {name: {(type(state), state.key): state}}
    view = View(known, EventsInMemory(events), rests=lambda _: True)
    return {violation.rule for violation in Rules(saga).judge(view)}


def test_it_rests_without_an_end() -> None:
    assert broken(SAGA, told(Posted(key=KEY), Liked(key=KEY)), "reader", Reading(KEY)) == set()


def test_it_ends_once_nevertheless() -> None:
    twice = told(Posted(key=KEY), Withdrawn(key=KEY), Withdrawn(key=KEY))

    assert "outcome_changed" in broken(SAGA, twice, "reader", Reading(KEY))


def test_where_the_state_that_ends_it_has_a_time_it_has_to_end() -> None:
    forgotten = Lasting(KEY)

    assert broken(TIMED, told(Posted(key=KEY)), "blog", forgotten) == {"endless", "not_ended"}


def test_nothing_that_is_due_has_to_end_it() -> None:
    graph = replace(SAGA, participants=(BLOG, Participant("reader", read_at_leisure))).choreography

    assert check(graph, definitions(topology_of(graph), users_of(graph))) == []


@pytest.mark.parametrize(
    ("types", "open_"),
    [
        ({"entry.posted"}, True),
        ({"entry.posted", "entry.liked"}, False),
        ({"entry.posted", "entry.refused"}, True),
        ({"entry.posted", "entry.refused", "entry.withdrawn"}, False),
    ],
)
def test_the_archive_tells_whether_anybody_owes_anything_but_for_who_only_listens(
    types: set[str], open_: bool
) -> None:
    assert SubjectRules(SAGA.choreography).standing(frozenset(types)).open is open_


def test_what_came_again_and_nobody_takes_leaves_nothing_open() -> None:
    rules = SubjectRules(replace(SAGA, participants=(BLOG, FICKLE)).choreography)

    assert not rules.standing(frozenset({"entry.posted", "entry.rated"}), repeated=True).open
    assert rules.standing(frozenset({"entry.posted", "entry.liked"}), repeated=True).open


def test_how_many_have_not_ended_is_no_figure_of_it() -> None:
    found = course_of(SAGA, BLOG)

    assert found is not None
    assert (found.subject, found.whole) == (Entry, False)
    assert set(found.ends) == {"entry.withdrawn"}


@pytest.mark.parametrize(
    ("events", "found"),
    [
        ((Posted(key=KEY),), []),
        ((Posted(key=KEY), Withdrawn(key=KEY)), ["it is entry.withdrawn; the load says no end"]),
        ((), ["it was begun, and is not known"]),
    ],
)
def test_a_load_may_predict_that_nothing_ends_it(events: Sequence[Event], found: list[str]) -> None:
    view = View({}, EventsInMemory(told(*events)), rests=lambda _: True)

    endings = wrong_endings(view, [Withdrawn], {KEY: frozenset()}, {}, {})

    assert [violation.detail for violation in endings] == found


def test_what_was_to_go_well_and_was_cancelled_is_unexpected() -> None:
    plan = Plan([], {"a": frozenset(), "b": frozenset(), "c": frozenset({"late"})})
    ends = {"a": (), "b": ("late",), "c": ("late",)}
    result = LoadResult(1, plan, ends, Report(True, {}, (), {}))

    assert result.unexpected == ["b: expected no end, found late"]
    assert result.to_json()["outcomes"] == {"late": 2, "no end": 1}


def test_a_listener_that_is_declared_in_a_package_by_itself_has_a_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(count, "__module__", "package")

    page = canvas(Flow(SAGA.choreography), COUNTER)

    assert "| `entry.posted` | `count` | nothing |" in page
    assert "| publishes | nothing |" in page


def test_a_listener_has_to_know_what_it_has_taken_and_nothing_else() -> None:
    (duty,) = duties_of(COUNTER)

    assert duty.startswith("inbox: ")
