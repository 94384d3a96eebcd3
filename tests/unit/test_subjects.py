"""What the archive tells of a subject of any saga, by the types and the times of its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from random import Random
from typing import Any, ClassVar, Self

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from order_saga.archive.queries import ORDER_VIEW
from saga.archive.store import Fact, decoded
from saga.archive.subjects import Subject, SubjectRules
from saga.archive.views import projection_of
from saga.choreography import Choreography, Participant, State
from saga.discovery import choreography
from saga.envelope import Envelope
from saga.history.debts import debts_of
from saga.history.story import tell
from saga.message import Answer, Command, Decided, Event, EventTypes, Intent, Role
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.testing import NOW
from tests import errands
from tests.order_play import SAGA, Play
from tests.unit.test_history_domain import LIVES, play

ORDERS = choreography()
LATER = timedelta(days=30)


def told(rules: SubjectRules, events: Iterable[Envelope[Any]], subject: str = "x") -> Subject:
    return Subject(subject).after(events, rules)


@for_all(life=st.sampled_from(list(LIVES)), random=st.randoms(), cut=st.integers(0, 9))
def test_the_order_in_which_events_come_makes_no_difference(
    life: Callable[[Play], str], random: Random, cut: int
) -> None:
    played = play()
    events = played.about(life(played))
    rules = SubjectRules(ORDERS)
    mixed = [*events]
    random.shuffle(mixed)

    later = told(rules, mixed[:cut]).after(mixed[cut:], rules)
    assert later == told(rules, events)


@for_all(life=st.sampled_from(list(LIVES)), cut=st.integers(1, 9), graph=st.sampled_from([SAGA]))
def test_an_order_is_settled_when_its_own_view_says_so(
    life: Callable[[Play], str], cut: int, graph: Choreography
) -> None:
    played = play()
    order = life(played)
    events = played.about(order)[:cut]
    view = ORDER_VIEW.of(order, ((event.data, event.time) for event in events))
    summary = told(SubjectRules(graph), events, order)

    assert summary.kind == "Order"
    assert summary.settled == view.settled
    assert summary.ended_at == view.ended_at
    assert (summary.first_event_at, summary.last_event_at, summary.sequence) == (
        view.first_event_at,
        view.last_event_at,
        view.sequence,
    )


@for_all(
    life=st.sampled_from(list(LIVES)),
    cut=st.integers(0, 12),
    down=st.sets(st.sampled_from(["inventory", "payment", "notification"])),
    provider_down=st.booleans(),
)
def test_a_subject_about_which_anything_is_owed_is_open(
    life: Callable[[Play], str], cut: int, down: set[str], provider_down: bool
) -> None:
    """Otherwise `saga stuck` would not look at it."""
    played = play()
    played.down, played.provider_down = down, provider_down
    try:
        order = life(played)
    except IndexError:  # That life needs what is down.
        return
    facts = [Fact(event, event.to_bytes()) for event in played.about(order)[: cut or None]]
    story = tell(ORDERS, order, facts)

    if debts_of(ORDERS, story, played.at + LATER):
        assert story.summary.open


@pytest.mark.parametrize("life", LIVES)
def test_an_order_that_has_ended_and_of_which_all_were_told_is_not_open(
    life: Callable[[Play], str],
) -> None:
    played = replace(play(), graph=ORDERS)
    summary = told(SubjectRules(ORDERS), played.about(life(played)))

    assert (summary.settled, summary.open) == (True, False)


def test_what_was_only_put_on_the_shelf_is_another_kind_and_nothing_is_owed_about_it() -> None:
    summary = told(SubjectRules(ORDERS), play().about("tea"))

    assert (summary.kind, summary.types) == ("StockItem", ("stock.added",))
    assert (summary.ended_by, summary.settled, summary.open) == (None, False, False)


def test_a_corrected_copy_is_nobodys_fact() -> None:
    (added,) = play().about("tea")
    rules = SubjectRules(ORDERS)

    assert told(rules, [added.model_copy(update={"source": EDITOR_SOURCE})]) == Subject("x")


def test_a_type_that_no_signature_names_counts_and_says_nothing_else() -> None:
    (added,) = play().about("tea")
    summary = told(SubjectRules(ORDERS), [added.model_copy(update={"type": "unheard.of"})])

    assert (summary.sequence, summary.types, summary.kind) == (1, (), "")


# --- a saga without a line of its own
# --------------------------------------------------------------


class Create(Command):
    type: ClassVar[str] = "job.create"


class Stop(Command):
    type: ClassVar[str] = "job.stop"


class Created(Event):
    type: ClassVar[str] = "job.created"


class Stopped(Event):
    type: ClassVar[str] = "job.stopped"
    role: ClassVar[Role] = Role.CANCELLATION


class Done(Event):
    type: ClassVar[str] = "job.done"
    role: ClassVar[Role] = Role.COMPLETION


class Rented(Event):
    type: ClassVar[str] = "machine.rented"
    role: ClassVar[Role] = Role.EFFECT


class Refused(Event):
    type: ClassVar[str] = "machine.refused"
    role: ClassVar[Role] = Role.FAILURE


class GivenBack(Event):
    type: ClassVar[str] = "machine.given_back"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (Rented,)


class NeverRented(Event):
    type: ClassVar[str] = "machine.never_rented"
    role: ClassVar[Role] = Role.COMPENSATION


class Billed(Event):
    type: ClassVar[str] = "bill.begun"


class Paid(Event):
    type: ClassVar[str] = "bill.paid"


class WasPaid(Answer):
    pass


class Pay(Intent):
    answer: ClassVar[type[Answer]] = WasPaid


@dataclass(frozen=True, slots=True)
class Job(State):
    def evolve(self, message: Decided, at: datetime) -> Self:
        return self


@dataclass(frozen=True, slots=True)
class Machine(Job):
    pass


@dataclass(frozen=True, slots=True)
class Bill(Job):
    pass


# mypy: disable-error-code="empty-body"
# Only their signatures are looked at.
def create(command: Create, job: Job) -> Created: ...
def stop(command: Stop, job: Job) -> Stopped | None: ...
def refused(event: Refused, job: Job) -> Stopped | None: ...
def rented(event: Rented, job: Job) -> Done | None: ...
def rent(event: Created, machine: Machine) -> Rented | Refused | None: ...
def give_back(event: Stopped, machine: Machine) -> GivenBack | NeverRented | None: ...
def bill(event: Done, bill: Bill) -> tuple[Billed, Pay] | None: ...
def paid(answer: WasPaid, bill: Bill) -> Paid: ...


JOBS = SubjectRules(
    Choreography(
        [
            Participant("job", create, stop, refused, rented),
            Participant("machine", rent, give_back),
            Participant("bill", bill, paid),
        ]
    )
)


@pytest.mark.parametrize(
    ("types", "settled", "open_"),
    [
        ("job.created", False, True),
        ("job.created machine.rented", False, True),
        ("job.created machine.rented job.done", True, True),
        ("job.created machine.rented job.done bill.begun", True, True),
        ("job.created machine.rented job.done bill.begun bill.paid", True, False),
        ("job.created machine.refused job.stopped", True, False),
        ("job.created job.stopped", False, True),
        ("job.created job.stopped machine.rented", False, True),
        ("job.created job.stopped machine.rented machine.given_back", True, False),
        ("job.created job.stopped machine.rented machine.never_rented", False, True),
        ("job.created job.stopped machine.never_rented", True, False),
        ("job.stopped", False, True),
    ],
)
def test_where_a_subject_stands_follows_from_roles_and_signatures(
    types: str, settled: bool, open_: bool
) -> None:
    standing = JOBS.standing(frozenset(types.split()))

    assert (standing.kind, standing.settled, standing.open) == ("Job", settled, open_)


class Low(Event):
    type: ClassVar[str] = "stock.low"


class Filled(Event):
    type: ClassVar[str] = "stock.filled"


class Sell(Command):
    type: ClassVar[str] = "stock.sell"


def sell(command: Sell, shelf: Job) -> Low | None: ...
def fill(event: Low, supplier: Machine) -> Filled | None: ...


def test_a_saga_that_goes_round_is_looked_at_after_the_first_round_too() -> None:
    rules = SubjectRules(Choreography([Participant("shelf", sell), Participant("supplier", fill)]))
    (added,) = play().about("tea")
    low = added.model_copy(update={"type": Low.type})
    filled = added.model_copy(update={"type": Filled.type})

    once = told(rules, [low, filled])
    assert not once.open
    assert once.after([low], rules).open
    assert not told(rules, [filled, filled]).open  # No participant reacts to that.


def test_a_saga_without_a_view_of_its_own_has_none() -> None:
    @dataclass(frozen=True, slots=True)
    class Note(State):
        pass

    class Noted(Event):
        type: ClassVar[str] = "note.noted"
        publisher: ClassVar[str] = "note"
        text: str

        @property
        def subject(self) -> str:
            return self.text

    class TakeNote(Command):
        type: ClassVar[str] = "note.take"

    def take(command: TakeNote, note: Note) -> Noted: ...

    take.__annotations__ = {"command": TakeNote, "note": Note, "return": Noted}
    graph = Choreography([Participant("note", take)])

    assert projection_of(graph).view is None
    assert projection_of(ORDERS).view is ORDER_VIEW


def test_a_class_that_was_defined_after_everything_was_imported_is_read() -> None:
    class Late(Event):
        type: ClassVar[str] = "late.came"
        publisher: ClassVar[str] = "job"

        @property
        def subject(self) -> str:
            return "late"

    def come(event: Created, job: Job) -> Late: ...

    come.__annotations__ = {"event": Created, "job": Job, "return": Late}
    graph = Choreography([Participant("job", come)])
    (added,) = play().about("tea")
    event = added.model_copy(
        update={
            "type": Late.type,
            "subject": "late",
            "source": "/services/job",
            "dataschema": "urn:order-saga:late.came:1",
            "data": Late(),
        }
    )

    read = decoded(Fact(event, event.to_bytes()), graph)
    assert read is not None
    assert read.data == Late()
    assert decoded(Fact(event, event.to_bytes()), ORDERS) is None


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize("down", [(), ("rider",), ("stamper",), ("rider", "stamper")])
def test_who_was_told_to_do_something_and_has_not_leaves_a_subject_open(
    far: bool, down: tuple[str, ...]
) -> None:
    played = Play(at=NOW, graph=errands.GRAPH, down={*down})
    played.give("desk", errands.AskErrand(errand="a", far=far))
    played.deliver()
    facts = [Fact(event, event.to_bytes()) for event in played.about("a")]
    story = tell(errands.GRAPH, "a", facts)

    assert story.summary.kind == "Errand"
    assert "ride.start" in story.summary.types
    assert story.summary.open or not debts_of(errands.GRAPH, story, played.at + LATER)
