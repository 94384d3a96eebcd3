"""Recorded sagas against changed reactions: what would have been decided otherwise is found, and
nothing else is."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import pytest
from typer.testing import CliRunner

from common.events import (
    CancellationReason,
    DeclineReason,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PaymentVoided,
    PlaceOrder,
    StockRejected,
    StockReleased,
    StockReserved,
)
from inventory_service import domain as inventory
from inventory_service.domain import AddStock, Reservation, StockItem
from order_saga import SAGA
from order_service import domain as order
from order_service.domain import CancelOrder, Order, OrderStatus
from payment_service import domain as payment
from payment_service.domain import Charge, Payment, Refund, SettleCharge
from saga.archive.store import Fact
from saga.choreography import Participant, State
from saga.cli import app
from saga.commands.past import show_past
from saga.declaration import Saga
from saga.due import Due
from saga.envelope import Attributes, Envelope, wrap
from saga.history.transfer import KIND, VERSION
from saga.message import Command, Event, Message, Priority
from saga.past.against import Against, compare
from saga.past.exported import archive_of
from saga.past.findings import DifferenceGroup, DifferenceKind, FoundDifference, PastFindings
from saga.past.recorded import PendingMessages
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.testing import NOW
from tests import moving, parcels
from tests import recorded as recorded_module
from tests.order_play import BROKE, Play
from tests.play import Delivery
from tests.recorded import archive_with, facts_of, simulated
from tests.swapping import retyped, swapped, without

TICK = timedelta(milliseconds=5)
BARE = Saga("orders", participants=SAGA.participants, outside=SAGA.outside)
"""Without what reads states and events that some twins do not have."""
ORDERS = 100
PAID, DECLINED, SOLD_OUT, CALLED_OFF, EXPIRED = 60, 15, 15, 7, 3


@dataclass(frozen=True)
class RecordedOrders:
    """An archive of orders, and how they were played."""

    url: str
    facts: list[Fact]


def stocked(quantity: int = 5_000) -> Play:
    played = Play(at=NOW, tick=TICK)
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1),
            sku="tea",
            quantity=quantity,
            unit_price_cents=250,
            currency="EUR",
        ),
    )
    return played


def expired(played: Play, order_id: str) -> None:
    """Let the order's deadline pass."""
    played.down.add("payment")
    played.deliver()
    state = played.states["order"][Order, order_id]
    assert isinstance(state, Order)
    played.at = state.deadline + TICK
    played.do_due("order", (Order, order_id))
    played.down.clear()
    played.deliver()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> RecordedOrders:
    """A hundred orders that ended in every way, each with its compensations."""
    played = stocked()
    for _ in range(PAID):
        played.place(quantity=3)
        played.deliver()
    for _ in range(DECLINED):
        played.place(customer=BROKE)
        played.deliver()
    for _ in range(SOLD_OUT):
        played.place(quantity=10_000)
        played.deliver()
    for _ in range(CALLED_OFF):
        order_id = played.place()
        played.down.add("order")
        played.deliver()
        played.give("order", CancelOrder(order_id=UUID(order_id)))
        played.down.clear()
        played.deliver()
    for _ in range(EXPIRED):
        expired(played, played.place())
    played.at += timedelta(days=1)
    played.place()  # By then, everything before was taken.
    played.deliver()
    facts = facts_of(played.events)
    return RecordedOrders(archive_with(tmp_path_factory.mktemp("recorded"), facts), facts)


def against(recorded: RecordedOrders, *stand_ins: Participant, saga: Saga = SAGA) -> Against:
    return compare(saga.with_(*stand_ins), recorded.url, scenarios=False)


def found(run: Against) -> dict[tuple[str, str, DifferenceKind], FoundDifference]:
    """The differences, by participant, reaction and kind."""
    groups = ((one.group, one) for one in run.findings.differences())
    return {(group.participant, group.reaction, group.kind): one for group, one in groups}


# --- nothing is found where nothing is changed ----------------------------------------------------


def test_of_an_unchanged_tree_nothing_is_said(recorded: RecordedOrders) -> None:
    run = against(recorded)

    assert run.ok
    assert run.findings.differences() == []
    assert run.findings.late() == []
    assert run.findings.not_looked_at == {}
    assert run.subjects == run.total == ORDERS + 2
    assert run.findings.compared > 5 * ORDERS
    assert "order.expire" not in list(run.untouched())


def test_of_a_pure_refactoring_nothing_is_said(recorded: RecordedOrders) -> None:
    def hold(
        event: OrderPlaced, reservation: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        return inventory.reserve(event, reservation, shelf)

    def ask_for_money(event: StockReserved, state: Payment) -> Charge | None:
        amount = event.total_cents
        if state.status not in (payment.PaymentStatus.NONE, payment.PaymentStatus.CHARGING):
            return None
        return Charge(
            order_id=event.order_id,
            customer=event.customer,
            currency=event.currency,
            amount_cents=amount,
        )

    run = against(
        recorded,
        renamed(inventory.PARTICIPANT, "reserve", hold),
        renamed(payment.PARTICIPANT, "charge", ask_for_money),
    )

    assert run.ok
    assert run.findings.differences() == []


def renamed(participant: Participant, name: str, instead: Callable[..., Any]) -> Participant:
    """The participant with another function for one of its reactions."""
    functions = [instead if r.name == name else r.function for r in participant.reactions]
    return Participant(participant.name, *functions, package=participant.package)


@pytest.mark.parametrize("saga", [SAGA, moving.SAGA, parcels.SAGA], ids=lambda saga: saga.name)
def test_of_runs_full_of_faults_only_late_messages_are_said(saga: Saga, tmp_path: Path) -> None:
    compared = 0
    for seed, facts in simulated(saga, range(3)):
        run = compare(saga, archive_with(tmp_path, facts, f"{seed}.db"), scenarios=False)

        kinds = {one.group.kind for one in run.findings.differences()}
        assert kinds <= {DifferenceKind.EARLY}, seed
        assert run.findings.not_looked_at == {}, seed
        assert run.onward is not None
        assert run.onward.ok, seed
        compared += run.findings.compared
    assert compared > 15


@pytest.mark.long
@pytest.mark.parametrize("saga", [SAGA, moving.SAGA, parcels.SAGA], ids=lambda saga: saga.name)
def test_of_many_runs_full_of_faults_only_late_messages_are_said(
    saga: Saga, tmp_path: Path
) -> None:
    for seed, facts in simulated(saga, range(3, 200)):
        run = compare(saga, archive_with(tmp_path, facts, f"{seed}.db"), scenarios=False)

        assert {d.group.kind for d in run.findings.differences()} <= {DifferenceKind.EARLY}, seed
        assert run.findings.not_looked_at == {}, seed


EXAMPLES = Path(__file__).parents[2] / "examples"
OF_AN_EXAMPLE = """
import importlib, pathlib, runpy, sys
from saga.past.against import compare

name, folder, helper = sys.argv[1:]  # The example has `tests` of its own.
made = runpy.run_path(helper)
archive_with, simulated = made["archive_with"], made["simulated"]
saga = importlib.import_module(name).SAGA
for seed, facts in simulated(saga, range(8)):
    url = archive_with(pathlib.Path(folder), facts, f"{seed}.db")
    found = compare(saga, url, scenarios=False).findings
    assert {one.group.kind.name for one in found.differences()} <= {"EARLY"}, (seed, found)
    assert not found.not_looked_at, (seed, found)
    assert found.compared
"""


@pytest.mark.long
@pytest.mark.parametrize("name", ["trips", "taskflow", "orchestrated"])
def test_of_an_example_only_late_messages_are_said(name: str, tmp_path: Path) -> None:
    """In taskflow, the bank may have charged a user without its answer being heard."""
    folder = EXAMPLES / name
    done = subprocess.run(
        [sys.executable, "-c", OF_AN_EXAMPLE, name, str(tmp_path), recorded_module.__file__],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (folder, EXAMPLES.parent)))},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stderr


# --- what is found --------------------------------------------------------------------------------


def test_another_rounding_of_a_total_is_found(recorded: RecordedOrders) -> None:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        placed = order.place(command, state, now)
        if placed is None:
            return None
        whole = -(-placed.total_cents // 100) * 100
        return placed.model_copy(update={"total_cents": whole})

    differing = found(against(recorded, swapped(order.PARTICIPANT, place)))

    ((key, one),) = differing.items()
    assert key == ("order", "place", DifferenceKind.OTHER_FIELDS)
    assert one.group.what == "total_cents of order.placed"
    assert one.count == PAID  # The others' totals are whole.
    assert one.decided == "total_cents 800 instead of 750"


def test_a_compensation_that_is_dropped_for_one_reason_is_found(recorded: RecordedOrders) -> None:
    def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
        if event.reason is CancellationReason.PAYMENT_DECLINED:
            return None
        return inventory.release(event, reservation)

    differing = found(against(recorded, swapped(inventory.PARTICIPANT, release)))

    ((key, one),) = differing.items()
    assert key == ("inventory", "release", DifferenceKind.SILENT)
    assert (one.group.what, one.count) == ("stock.released", DECLINED)


def test_a_refund_that_is_dropped_for_one_reason_is_found(recorded: RecordedOrders) -> None:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if event.reason is CancellationReason.CUSTOMER_REQUEST:
            return None
        return payment.compensate(event, state)

    differing = found(against(recorded, swapped(payment.PARTICIPANT, compensate)))

    ((key, one),) = differing.items()
    assert key == ("payment", "compensate", DifferenceKind.SILENT)
    assert (one.group.what, one.count) == ("payment.refunded", CALLED_OFF)


def confirm_early(event: StockReserved, state: Order) -> OrderConfirmed | None:
    """Before it is paid."""
    if state.status is not OrderStatus.PENDING:
        return None
    return OrderConfirmed(
        order_id=event.order_id,
        customer=state.customer,
        currency=event.currency,
        total_cents=event.total_cents,
    )


def test_a_reaction_that_decides_earlier_is_found(recorded: RecordedOrders) -> None:
    early = renamed(order.PARTICIPANT, "confirm", confirm_early)

    differing = found(against(recorded, early))

    assert differing["order", "confirm_early", DifferenceKind.EARLY].count >= PAID
    ended = differing["order", "(payment.charged)", DifferenceKind.SILENT]
    assert ended.count == PAID + 1
    assert ended.group.what == "order.confirmed, as no reaction takes payment.charged"


def test_a_reaction_that_decides_earlier_beside_the_old_one_is_found(
    recorded: RecordedOrders,
) -> None:
    functions = [reaction.function for reaction in order.PARTICIPANT.reactions]
    both = Participant("order", *functions, confirm_early, package=order.PARTICIPANT.package)

    differing = found(against(recorded, both))

    ((key, one),) = differing.items()
    assert key == ("order", "confirm_early", DifferenceKind.EARLY)
    assert one.group.what == "order.confirmed because of stock.reserved"


def test_a_reaction_that_speaks_where_it_was_silent_is_found(recorded: RecordedOrders) -> None:
    def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
        if reservation.status is inventory.ReservationStatus.REJECTED:
            return StockReleased(order_id=event.order_id, lines=())
        return inventory.release(event, reservation)

    differing = found(against(recorded, swapped(inventory.PARTICIPANT, release)))

    ((key, one),) = differing.items()
    assert key == ("inventory", "release", DifferenceKind.SPEAKS)
    assert (one.group.what, one.count) == ("stock.released because of order.cancelled", SOLD_OUT)


def test_another_event_is_found(recorded: RecordedOrders) -> None:
    def give_up_unpaid(event: PaymentDeclined, state: Order) -> OrderConfirmed | None:
        return OrderConfirmed(
            order_id=event.order_id, customer=state.customer, currency="EUR", total_cents=1
        )

    differing = found(against(recorded, swapped(order.PARTICIPANT, give_up_unpaid)))

    ((key, one),) = differing.items()
    assert key == ("order", "give_up_unpaid", DifferenceKind.OTHER_EVENT)
    assert one.group.what == "order.confirmed where it published order.cancelled"
    assert one.count == DECLINED


def test_a_reaction_that_raises_is_found(recorded: RecordedOrders) -> None:
    def confirm(event: PaymentCharged, state: Order) -> OrderConfirmed | None:
        if event.amount_cents == 750:
            raise ValueError("three of them")
        return order.confirm(event, state)

    differing = found(against(recorded, swapped(order.PARTICIPANT, confirm)))

    ((key, one),) = differing.items()
    assert key == ("order", "confirm", DifferenceKind.RAISES)
    assert (one.count, one.decided) == (PAID, "ValueError: three of them")


def test_what_is_asked_for_shows_in_what_follows(recorded: RecordedOrders) -> None:
    def charge(event: StockReserved, state: Payment) -> Charge | None:
        question = payment.charge(event, state)
        if question is None:
            return None
        # One less would be too little for the refunds that were recorded.
        return question.model_copy(update={"amount_cents": question.amount_cents + 1})

    differing = found(against(recorded, swapped(payment.PARTICIPANT, charge)))

    one = differing["payment", "record_charge", DifferenceKind.OTHER_FIELDS]
    assert one.group.what == "amount_cents of payment.charged"
    assert one.decided in ("amount_cents 751 instead of 750", "amount_cents 501 instead of 500")
    assert differing.keys() == {("payment", "record_charge", DifferenceKind.OTHER_FIELDS)}


def test_an_answer_that_is_not_waited_for_any_more_is_found(recorded: RecordedOrders) -> None:
    def charge(event: StockReserved, state: Payment) -> Charge | PaymentDeclined | None:
        if event.customer == BROKE:  # As the provider would say.
            return PaymentDeclined(order_id=event.order_id, reason=DeclineReason.CARD_DECLINED)
        return payment.charge(event, state)

    differing = found(against(recorded, swapped(payment.PARTICIPANT, charge)))

    ((key, one),) = differing.items()
    assert key == ("payment", "charge", DifferenceKind.PATH)
    assert one.count == DECLINED
    assert one.group.what == (
        "payment.declined: decided at once, where it was decided after an answer to Charge or "
        "SettleCharge"
    )


def test_one_difference_does_not_lead_to_the_next(recorded: RecordedOrders) -> None:
    def reserve(
        event: OrderPlaced, reservation: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        decided = inventory.reserve(event, reservation, shelf)
        if isinstance(decided, StockReserved):
            return decided.model_copy(update={"total_cents": 1})
        return decided

    differing = found(against(recorded, swapped(inventory.PARTICIPANT, reserve)))

    assert differing.keys() == {("inventory", "reserve", DifferenceKind.OTHER_FIELDS)}


def test_a_deadline_at_another_time_is_found(recorded: RecordedOrders) -> None:
    @dataclass(frozen=True, slots=True)
    class Patient(Order):
        def due(self) -> Due[order.ExpireOrder] | None:
            known = Order.due(self)
            return None if known is None else replace(known, at=known.at + timedelta(days=1))

    patient = retyped(order.PARTICIPANT, Order, Patient)

    differing = found(against(recorded, patient, saga=BARE))

    one = differing["order", "expire", DifferenceKind.DUE]
    assert (one.group.what, one.count) == ("order.cancelled", EXPIRED)


# --- what is not looked at is named ---------------------------------------------------------------


def test_what_the_record_does_not_tell_is_named(recorded: RecordedOrders) -> None:
    told = against(recorded).findings.not_told

    assert {key.partition(":")[0]: seen.count for key, seen in told.items()} == {
        "reference of payment.charged": PAID + CALLED_OFF + EXPIRED + 1,
    }


def test_what_was_recorded_in_another_order_than_it_was_decided_is_named(tmp_path: Path) -> None:
    played = stocked(quantity=2)
    played.place()  # It takes all there is,
    played.place()  # and the next one comes too late.
    played.deliver()
    facts = facts_of(played.events)
    types = [fact.attributes.type for fact in facts]
    reserved, rejected = types.index("stock.reserved"), types.index("stock.rejected")
    facts[reserved], facts[rejected] = facts[rejected], facts[reserved]

    run = compare(SAGA, archive_with(tmp_path, facts), scenarios=False)

    assert run.findings.differences() == []
    assert [
        what for what in run.findings.not_told if what.startswith("the order in which inventory")
    ]


def test_a_hole_is_named(recorded: RecordedOrders, tmp_path: Path) -> None:
    lost = next(f for f in recorded.facts if f.attributes.type == "stock.reserved")
    url = archive_with(tmp_path, [fact for fact in recorded.facts if fact is not lost])

    run = compare(SAGA, url, scenarios=False)

    assert not run.ok
    assert run.findings.differences() == []
    assert set(run.findings.not_looked_at) == {
        "stock.reserved of inventory is not in the history",
        "what led to payment.charged of payment is not in the history",
    }


def test_what_this_version_cannot_read_is_named(recorded: RecordedOrders) -> None:
    gone = without(without(inventory.PARTICIPANT, "release"), "shelve")

    run = against(recorded, gone, saga=BARE)

    assert not run.ok
    assert "this version cannot read stock.released" in run.findings.not_looked_at


def test_of_an_empty_archive_nothing_is_fine(tmp_path: Path) -> None:
    assert not compare(SAGA, archive_with(tmp_path, []), scenarios=False).ok


def test_a_sample_says_of_how_many_it_is(recorded: RecordedOrders) -> None:
    def subjects(seed: int) -> tuple[int, int, int]:
        run = compare(SAGA, recorded.url, sample=20, seed=seed, scenarios=False)
        return run.subjects, run.total, run.events

    assert subjects(1)[:2] == (20, ORDERS + 2)
    assert subjects(1) == subjects(1)
    assert len({subjects(seed) for seed in range(5)}) > 1


# --- exports --------------------------------------------------------------------------------------


def exported(file: Path, facts: list[Fact]) -> Path:
    """A file as `saga history export` writes it."""
    lines = [json.dumps({"export": KIND, "version": VERSION, "stream": None, "offset": None})]
    lines += [json.dumps({"offset": None, "event": json.loads(fact.body)}) for fact in facts]
    lines.append(json.dumps({"end": {"events": len(facts), "strays": 0}}))
    file.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode()))
    return file


def test_an_export_is_read_like_the_archive_and_duplicates_count_once(
    recorded: RecordedOrders, tmp_path: Path
) -> None:
    twice = exported(tmp_path / "twice.jsonl.gz", [*recorded.facts, *recorded.facts])

    with archive_of(twice) as url:
        run = compare(SAGA, url, scenarios=False)

    assert run.ok
    assert run.findings == against(recorded).findings


# --- from where they are --------------------------------------------------------------------------


def under_way(tmp_path: Path, count: int) -> str:
    """An archive in which so many orders wait for their payment."""
    played = stocked()
    played.place()
    played.deliver()
    played.down.add("payment")
    for number in range(count):
        played.place(customer=f"customer {number}")
        played.deliver()
    return archive_with(tmp_path, facts_of(played.events))


def test_equal_sagas_are_explored_once(tmp_path: Path) -> None:
    run = compare(SAGA, under_way(tmp_path, 50), scenarios=False)

    assert run.ok
    assert run.onward is not None
    assert run.onward.pending == 50
    (state,) = run.onward.states
    assert state.count == 50
    assert state.states > 100


def test_what_can_go_wrong_from_here_is_found(tmp_path: Path) -> None:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if state.status is payment.PaymentStatus.CHARGED:
            return None  # The money is kept.
        return payment.compensate(event, state)

    changed = SAGA.with_(swapped(payment.PARTICIPANT, compensate))
    run = compare(changed, under_way(tmp_path, 20), scenarios=False)

    assert not run.ok
    assert run.onward is not None
    broken = run.onward.breaks["charged_not_confirmed"]
    assert broken.count == 20
    assert "order.cancelled" in " ".join(step.what for step in broken.way)


def test_sagas_are_told_apart_by_texts_that_the_code_names(tmp_path: Path) -> None:
    def charge(event: StockReserved, state: Payment) -> Charge | PaymentDeclined | None:
        if event.customer == "customer 7":
            return PaymentDeclined(order_id=event.order_id, reason=DeclineReason.CARD_DECLINED)
        return payment.charge(event, state)

    changed = SAGA.with_(swapped(payment.PARTICIPANT, charge))
    run = compare(changed, under_way(tmp_path, 20), scenarios=False)

    assert run.onward is not None
    assert sorted(state.count for state in run.onward.states) == [1, 19]


def test_that_equal_sagas_were_not_all_explored_is_said(tmp_path: Path) -> None:
    some = compare(SAGA, under_way(tmp_path, 3), scenarios=False).onward

    assert some is not None
    assert [
        line for line in some.remarks if line.startswith("for 2 subjects, another one was explored")
    ]


def test_what_is_taken_for_granted_is_said(tmp_path: Path) -> None:
    played = stocked()
    played.place()
    played.deliver()
    played.down.add("inventory")
    played.place()
    played.deliver()

    run = compare(SAGA, archive_with(tmp_path, facts_of(played.events)), scenarios=False)

    assert run.onward is not None
    said = "\n".join(run.onward.remarks)
    assert "StockItem of inventory: as the databases have it now" in said
    assert "all this is so as long as nothing else changes StockItem of inventory" in said
    assert not run.whole


def test_all_states_have_one_budget(tmp_path: Path) -> None:
    played = stocked()
    played.place()
    played.deliver()
    played.down.add("payment")
    for quantity in range(1, 21):  # Each in another state.
        played.place(quantity=quantity)
        played.deliver()
    url = archive_with(tmp_path, facts_of(played.events))

    run = compare(SAGA, url, states_max=70, scenarios=False)

    assert run.onward is not None
    looked = sum(state.states for state in run.onward.states)
    assert run.onward.left <= 0
    assert run.onward.budget <= looked < 2 * run.onward.budget
    ((why, left),) = run.onward.left_out.items()
    assert "once 700 had been looked at in all" in why
    assert len(run.onward.states) + left.count == 20


def test_an_exploration_that_is_cut_short_is_no_all_clear(tmp_path: Path) -> None:
    run = compare(SAGA, under_way(tmp_path, 1), states_max=70, scenarios=False)

    assert run.findings.differences() == []
    assert not run.ok
    assert run.onward is not None
    assert [state.whole for state in run.onward.states] == [False]


def test_a_message_that_is_dead_is_on_its_way(recorded: RecordedOrders, tmp_path: Path) -> None:
    played = stocked()
    played.place()
    played.down.add("payment")
    played.deliver()
    (dead,) = played.waiting
    played.waiting.clear()
    played.down.clear()
    played.at += timedelta(minutes=2)
    played.place()
    played.deliver()
    url = archive_with(tmp_path, facts_of(played.events))
    waiting = PendingMessages({("payment", dead.event.id)})

    lost = compare(SAGA, url, scenarios=False).findings
    known = compare(SAGA, url, way=waiting, scenarios=False).findings

    assert [one.group.kind for one in lost.differences()] == [DifferenceKind.SPEAKS]
    assert known.differences() == []
    assert known.pending["payment"] == 1


def test_a_corrected_copy_was_taken_in_the_place_of_what_it_corrects(tmp_path: Path) -> None:
    played = stocked()
    played.place()
    played.down.add("payment")
    played.deliver()
    (dead,) = played.waiting
    played.waiting.clear()
    document = json.loads(dead.event.to_bytes())
    document |= {
        "id": str(UUID(int=7)),
        "source": EDITOR_SOURCE,
        "causationid": dead.event.id,
        ADDRESSEE: "payment",
    }
    document["data"]["total_cents"] += 100
    body = json.dumps(document).encode()
    played.down.clear()
    played.waiting.append(Delivery("payment", SAGA.choreography.decoder.decode(body)))
    before = len(played.events)
    played.deliver()
    facts = facts_of(played.events)
    facts.insert(before, Fact(Attributes.of(body), body))

    run = compare(SAGA, archive_with(tmp_path, facts), scenarios=False)

    assert run.ok
    assert run.findings.late() == []
    assert run.findings.published["payment"] == 1


class _AboutLamp(Message):
    lamp: str

    @property
    def subject(self) -> str:
        return self.lamp


class LightUp(_AboutLamp, Command):
    type: ClassVar[str] = "lamp.light_up"


class LampLitBefore(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.lit"
    colour: str

    def upcast(self) -> LampLit:
        return LampLit(lamp=self.lamp, colour=self.colour, level=0)


class LampLit(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.lit"
    version: ClassVar[int] = 2
    colour: str
    level: int


@dataclass(frozen=True, slots=True)
class Lamp(State):
    lit: bool = False


def light_up(command: LightUp, lamp: Lamp) -> LampLit | None:
    return LampLit(lamp=command.lamp, colour="red", level=7)


@pytest.mark.parametrize("colour", ["red", "blue"])
def test_an_older_version_is_compared_in_the_fields_that_it_had(
    colour: str, tmp_path: Path
) -> None:
    published = wrap(
        LampLitBefore(lamp="hall", colour=colour),
        id=str(UUID(int=1)),
        source="/services/lamp",
        time=NOW,
        priority=Priority.NORMAL,
        causation=str(UUID(int=2)),
        sequence=1,
    )
    saga = Saga("lamps", participants=(Participant("lamp", light_up),))

    run = compare(saga, archive_with(tmp_path, facts_of([published])))

    differing = [one.group.what for one in run.findings.differences()]
    assert differing == ([] if colour == "red" else ["colour of lamp.lit"])
    if colour == "red":
        assert list(run.findings.not_told) == [
            "level of lamp.lit: it was published before there was such a field"
        ]


@dataclass(frozen=True, slots=True)
class Watch(State):
    pass


class LampSeen(_AboutLamp, Event):
    type: ClassVar[str] = "lamp.seen"
    final: ClassVar[bool] = True


def see(event: LampLit, watch: Watch, now: datetime) -> LampSeen | None:
    """A participant that comes late sees nothing."""
    return LampSeen(lamp=event.lamp) if now < NOW + timedelta(seconds=1) else None


def see_always(event: LampLit, watch: Watch, now: datetime) -> LampSeen | None:
    return LampSeen(lamp=event.lamp)


@pytest.mark.parametrize(("reaction", "differs"), [(see, False), (see_always, True)])
def test_what_led_to_nothing_may_have_been_taken_late(
    reaction: Callable[..., Any], differs: bool, tmp_path: Path
) -> None:
    watch = Participant("watch", reaction)
    saga = Saga("lamps", participants=(Participant("lamp", light_up), watch))

    def lit(lamp: str, number: int, after: timedelta) -> Envelope[Any]:
        return wrap(
            LampLit(lamp=lamp, colour="red", level=7),
            id=str(UUID(int=number)),
            source="/services/lamp",
            time=NOW + after,
            priority=Priority.NORMAL,
            causation=str(UUID(int=number + 1)),
            sequence=1,
        )

    late, later = lit("hall", 1, timedelta(0)), lit("yard", 3, timedelta(days=1))
    answer = wrap(
        LampSeen(lamp="yard"),
        id=str(UUID(int=5)),
        source="/services/watch",
        time=NOW,
        priority=Priority.NORMAL,
        causation=later.id,
        sequence=1,
    )

    run = compare(saga, archive_with(tmp_path, facts_of([late, later, answer])))

    kinds = [one.group.kind for one in run.findings.differences()]
    assert kinds == ([DifferenceKind.SPEAKS] if differs else [])


def test_recorded_states_that_no_scenario_comes_to_are_named(
    recorded: RecordedOrders, tmp_path: Path
) -> None:
    one = next(scenario for scenario in SAGA.scenarios if scenario.name == "one order")
    small = replace(SAGA, scenarios=(replace(one, starts={"": ()}),))
    few = [fact for fact in recorded.facts if fact.attributes.time < NOW + timedelta(minutes=1)]

    run = compare(small, archive_with(tmp_path, few))

    assert run.onward is not None
    unreached = {(each.participant, each.shape[0]) for each in run.onward.unreached}
    assert ("inventory", "status=held") in unreached
    assert ("order", "status=pending") not in unreached


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The project's saga with one small scenario."""
    one = next(scenario for scenario in SAGA.scenarios if scenario.name == "one order")
    saga = replace(SAGA, scenarios=(replace(one, starts={"": ()}),))
    monkeypatch.setattr("saga.discovery.saga", lambda: saga)


def verify(*arguments: str | Path) -> tuple[int, str]:
    """The exit status and the output of `saga verify --from-history`."""
    done = CliRunner().invoke(app, ["verify", "--from-history", *map(str, arguments)])
    return done.exit_code, done.output


@pytest.mark.usefixtures("small")
def test_the_command_says_what_was_compared_and_what_was_not(recorded: RecordedOrders) -> None:
    status, said = verify("--data-dir", Path(recorded.url.removeprefix("sqlite:///")).parent)

    assert status == 0
    assert said.rstrip().endswith("nothing differs of what was looked at")
    assert f"events about {ORDERS + 2} subjects above" in said
    assert "not compared: reference of payment.charged: it follows from reference" in said
    assert "not compared: what is asked outside (Charge, " in said
    assert "in no scenario: Reservation of inventory with status=held" in said


def test_the_command_fails_for_a_difference_and_names_an_example(
    recorded: RecordedOrders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
        return None

    changed = replace(SAGA, scenarios=()).with_(swapped(inventory.PARTICIPANT, release))
    monkeypatch.setattr("saga.discovery.saga", lambda: changed)
    file = exported(tmp_path / "all.jsonl.gz", recorded.facts)

    status, said = verify("--export", file)
    json_status, document = verify("--export", file, "--json")

    released = DECLINED + CALLED_OFF + EXPIRED
    (one,) = json.loads(document)["differences"]
    assert (status, json_status) == (1, 1)
    assert (
        f"inventory.release publishes nothing where it published: stock.released: {released}"
        in (said)
    )
    assert f"saga trace {one['subject']}" in said
    assert (one["kind"], one["count"]) == ("silent", released)


@pytest.mark.usefixtures("small")
def test_the_command_says_of_how_many_a_sample_is(recorded: RecordedOrders, tmp_path: Path) -> None:
    file = exported(tmp_path / "all.jsonl.gz", recorded.facts)

    _, said = verify("--export", file, "--sample", "10", "--seed", "7")

    assert f"about 10 subjects of {ORDERS + 2}, drawn by seed 7, above" in said


def test_only_what_was_compared_in_full_differs_nowhere(capsys: pytest.CaptureFixture[str]) -> None:
    saga = Saga("lamps", participants=(Participant("lamp", light_up),))

    def ending(**changed: Any) -> str:
        group = DifferenceGroup("lamp", "light_up", DifferenceKind.EARLY, "lamp.lit")
        run = Against(saga, total=2, subjects=changed.get("subjects", 2))
        run.findings.published["lamp"] = run.findings.taken["lamp", "light_up"] = 40
        run.findings.ran |= changed.get("ran", {("lamp", "light_up")})
        for field in changed.get("left", ()):
            run.findings.leave(field, "hall")
        for _ in range(changed.get("late", 0)):
            run.findings.differ(group, "hall", "nothing", "lamp.lit")
        show_past(run, drawn_by=0)
        return capsys.readouterr().out

    some = "nothing differs of what was looked at"
    assert "nothing differs, and nothing can go wrong from here" in ending()
    assert some in ending(subjects=1)
    assert some in ending(ran=frozenset())
    assert some in ending(left=["level of lamp.lit"])
    late = ending(late=2)
    assert "may have come late: 2 of the 40 messages that lamp.light_up took" in late
    assert some in late
    assert "3 decisions would be others" in ending(late=3)


def test_messages_that_came_late_are_counted_by_reaction_not_by_what_follows() -> None:
    findings = PastFindings()
    findings.taken["lamp", "light_up"] = 40
    for what in ("lamp.lit", "lamp.seen"):
        group = DifferenceGroup("lamp", "light_up", DifferenceKind.EARLY, what)
        for _ in range(2):
            findings.differ(group, "hall", "nothing", what)

    assert findings.late() == []
    assert [one.count for one in findings.differences()] == [2, 2]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--from-history", "--simulate"], "--from-history is by itself"),
        (["--from-history", "--seed", "1"], "add --sample"),
        (["--sample", "1"], "add --from-history"),
        (["--from-history", "--export", "nothing.jsonl"], "cannot read nothing.jsonl"),
    ],
)
def test_options_that_do_not_go_together_are_named(arguments: list[str], why: str) -> None:
    done = CliRunner().invoke(app, ["verify", *arguments])

    assert done.exit_code == 2
    assert why in " ".join(done.output.replace("│", " ").split())
