"""Every race between charge, customer, deadline and replay, forced to happen; each ends well.

How it ends is read from the services' books and from the provider's, and `reconcile` has nothing to
say against any of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import UUID

import pytest

from payment_service.gateway import Fault, FaultMode
from saga.dlq.desk import open_desk
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.dlq.states import ItemState
from saga.local.postgres import PostgresCluster
from tests.integration.staged import (
    BROKE,
    ON_THE_SHELF,
    PRICE_CENTS,
    RICH,
    End,
    Stage,
    staged,
)
from tests.polling import until

REASON = {"customer": "customer_request", "deadline": "deadline_exceeded"}
UNTOUCHED = (ON_THE_SHELF, 0)

CONFIRMED = End("confirmed", None, "held", "charged", PRICE_CENTS, 0)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, amqp_url: str
) -> AsyncIterator[Stage]:
    """The system, on either kind of database."""
    cluster: PostgresCluster | None = None
    if request.param == "postgresql":
        cluster = request.getfixturevalue("postgres_cluster")
    async with staged(tmp_path, amqp_url, cluster) as stage:
        yield stage


@pytest.fixture(params=["customer", pytest.param("deadline", marks=pytest.mark.long)])
def by(request: pytest.FixtureRequest) -> str:
    """Who cancels. Only the order service can tell; where a deadline does, each time, is told in
    the tests that take no such argument."""
    return str(request.param)


def refunded(by: str) -> End:
    return End("cancelled", REASON[by], "released", "refunded", PRICE_CENTS, PRICE_CENTS)


def never_charged(by: str) -> End:
    return End("cancelled", REASON[by], "released", "voided", 0, 0)


async def replay_all(stage: Stage) -> None:
    """Replay every dead letter; each has to be done."""
    async with open_desk(stage.deployment, stage.graph) as desk:
        result = await replay(desk, Selection(), ReplaySettings(timeout_seconds=60.0))
        assert set(result.counts) == {ItemState.DONE}, result.letters


async def cancel_while_charging(stage: Stage, by: str, customer: str, hold: str) -> UUID:
    """Both questions about the order are held: the charge, and the cancellation's to settle it."""
    stage.provider.holding = hold
    order = await stage.place(customer)
    await until(lambda: len(stage.provider.held) == 1)
    await stage.cancel(order, by)
    await until(lambda: len(stage.provider.held) == 2)
    return order


# --- the charge against customer and deadline -----------------------------------------------------


@pytest.mark.parametrize("first", ["charge", "cancellation"])
async def test_a_charge_answered_after_the_cancellation_is_charged_and_refunded(
    first: str, by: str, stage: Stage
) -> None:
    order = await cancel_while_charging(stage, by, RICH, "answers")
    assert [charge.refunded_cents for charge in stage.provider.ledger()] == [0]

    answers = stage.provider.held if first == "charge" else stage.provider.held[::-1]
    answers[0].set()
    await until(lambda: stage.is_payment(order, "refunded"))
    answers[1].set()

    assert await stage.end(order) == refunded(by)
    assert await stage.shelf() == UNTOUCHED


@pytest.mark.parametrize(
    ("first", "customer"), [("charge", RICH), ("cancellation", RICH), ("cancellation", BROKE)]
)
async def test_a_charge_that_reaches_the_provider_after_the_cancellation_leaves_no_money_there(
    first: str, customer: str, stage: Stage
) -> None:
    order = await cancel_while_charging(stage, "customer", customer, "questions")
    assert stage.provider.ledger() == []

    questions = stage.provider.held if first == "charge" else stage.provider.held[::-1]
    questions[0].set()
    await until(lambda: stage.is_payment(order, "refunded" if customer == RICH else "voided"))
    questions[1].set()

    end = refunded("customer") if customer == RICH else never_charged("customer")
    assert await stage.end(order) == end
    assert await stage.shelf() == UNTOUCHED


async def test_a_service_that_ends_while_it_charges_and_is_cancelled_meanwhile_refunds(
    stage: Stage,
) -> None:
    stage.provider.holding = "answers"
    order = await stage.place()
    await until(lambda: len(stage.provider.held) == 1)
    await stage.payment.stop()
    await stage.cancel(order, "deadline")
    stage.provider.holding = None
    stage.payment.gate.hold("stock.reserved", "order.cancelled")
    await stage.payment.start()
    await until(lambda: len(+stage.payment.gate.waiting) == 2)
    stage.payment.gate.let("order.cancelled", "stock.reserved")

    assert await stage.end(order) == refunded("deadline")
    assert await stage.shelf() == UNTOUCHED


@pytest.mark.parametrize("first", ["stock.reserved", "order.cancelled"])
async def test_a_cancellation_in_one_group_with_what_asks_for_the_charge_leaves_no_money_charged(
    first: str, stage: Stage
) -> None:
    second = {"stock.reserved": "order.cancelled", "order.cancelled": "stock.reserved"}[first]
    stage.payment.gate.hold(first, second)
    order = await stage.place()
    await until(lambda: stage.payment.gate.waiting["stock.reserved"] == 1)
    await stage.cancel(order, "deadline")
    await until(lambda: stage.payment.gate.waiting["order.cancelled"] == 1)
    stage.payment.gate.let(first, second)

    overtaken = first == "order.cancelled"
    assert await stage.end(order) == (
        never_charged("deadline") if overtaken else refunded("deadline")
    )
    assert await stage.shelf() == UNTOUCHED


@pytest.mark.parametrize("first", ["order.placed", "order.cancelled"])
async def test_a_cancellation_in_one_group_with_its_order_leaves_no_stock_held(
    first: str, stage: Stage
) -> None:
    second = {"order.placed": "order.cancelled", "order.cancelled": "order.placed"}[first]
    stage.inventory.gate.hold(first, second)
    order = await stage.place()
    await stage.cancel(order, "customer")
    await until(lambda: len(+stage.inventory.gate.waiting) == 2)
    stage.inventory.gate.let(first, second)

    assert await stage.end(order) == never_charged("customer")
    assert await stage.shelf() == UNTOUCHED


# --- the end of an order --------------------------------------------------------------------------


async def test_an_order_paid_for_after_its_cancellation_stays_cancelled_and_is_refunded(
    by: str, stage: Stage
) -> None:
    stage.order.gate.hold("payment.charged")
    order = await stage.place()
    await until(lambda: stage.order.gate.waiting["payment.charged"] == 1)
    await stage.cancel(order, by)
    stage.order.gate.let("payment.charged")

    assert await stage.end(order) == refunded(by)
    assert await stage.shelf() == UNTOUCHED


async def test_a_cancellation_in_one_group_with_the_confirmation_ends_the_order_once(
    stage: Stage,
) -> None:
    """What the service is told itself goes ahead of what the broker brings."""
    stage.order.gate.hold("payment.charged", "order.cancel")
    order = await stage.place()
    cancelling = asyncio.create_task(stage.ask_to_cancel(order))
    await until(lambda: len(+stage.order.gate.waiting) == 2)
    stage.order.gate.let("payment.charged", "order.cancel")

    assert await cancelling
    assert await stage.end(order) == refunded("customer")
    assert await stage.shelf() == UNTOUCHED


async def test_an_order_confirmed_first_is_not_ended_again(stage: Stage) -> None:
    stage.order.gate.hold("payment.charged", "order.cancel", "order.expire")
    order = await stage.place()
    await until(lambda: stage.order.gate.waiting["payment.charged"] == 1)
    cancelling = asyncio.create_task(stage.ask_to_cancel(order))
    stage.pass_deadlines()
    await until(lambda: len(+stage.order.gate.waiting) == 3)
    stage.order.gate.let("payment.charged")
    await until(lambda: stage.is_order(order, "confirmed"))
    stage.order.gate.let("order.expire", "order.cancel")

    assert not await cancelling
    assert await stage.end(order) == CONFIRMED
    assert await stage.shelf() == (ON_THE_SHELF - 1, 1)


@pytest.mark.parametrize("first", ["order.cancel", "order.expire"])
async def test_a_deadline_that_passes_while_the_customer_cancels_cancels_the_order_once(
    first: str, stage: Stage
) -> None:
    second = {"order.cancel": "order.expire", "order.expire": "order.cancel"}[first]
    stage.order.gate.hold("payment.charged", first, second)
    order = await stage.place()
    await until(lambda: stage.order.gate.waiting["payment.charged"] == 1)
    stage.pass_deadlines()
    cancelling = asyncio.create_task(stage.ask_to_cancel(order))
    await until(lambda: len(+stage.order.gate.waiting) == 3)
    stage.order.gate.let(first, second, "payment.charged")

    by_customer = first == "order.cancel"
    assert await cancelling is by_customer
    assert await stage.end(order) == refunded("customer" if by_customer else "deadline")


# --- replays --------------------------------------------------------------------------------------


async def test_an_order_replayed_after_its_cancellation_holds_no_stock(
    by: str, stage: Stage
) -> None:
    stage.inventory.gate.broken_for.add("order.placed")
    order = await stage.place()
    await stage.dead_letters(1)
    await stage.cancel(order, by)
    await until(lambda: stage.is_payment(order, "voided"))
    stage.inventory.gate.broken_for.clear()
    await replay_all(stage)

    assert await stage.end(order) == never_charged(by)
    assert await stage.shelf() == UNTOUCHED


async def test_stock_reserved_replayed_after_the_cancellation_charges_nothing(
    by: str, stage: Stage
) -> None:
    stage.payment.gate.broken_for.add("stock.reserved")
    order = await stage.place()
    await stage.dead_letters(1)
    await stage.cancel(order, by)
    await until(lambda: stage.is_payment(order, "voided"))
    stage.payment.gate.broken_for.clear()
    await replay_all(stage)

    assert await stage.end(order) == never_charged(by)
    assert await stage.shelf() == UNTOUCHED


@pytest.mark.parametrize("first", ["stock.reserved", "order.cancelled"])
async def test_a_replay_in_one_group_with_the_cancellation_leaves_no_money_charged(
    first: str, stage: Stage
) -> None:
    second = {"stock.reserved": "order.cancelled", "order.cancelled": "stock.reserved"}[first]
    stage.payment.gate.broken_for.add("stock.reserved")
    order = await stage.place()
    await stage.dead_letters(1)
    stage.payment.gate.broken_for.clear()
    stage.payment.gate.hold(first, second)
    await stage.cancel(order, "customer")
    replaying = asyncio.create_task(replay_all(stage))
    await until(lambda: len(+stage.payment.gate.waiting) == 2)
    stage.payment.gate.let(first, second)
    await replaying

    overtaken = first == "order.cancelled"
    assert await stage.end(order) == (
        never_charged("customer") if overtaken else refunded("customer")
    )
    assert await stage.shelf() == UNTOUCHED


async def test_a_charge_replayed_to_an_order_cancelled_meanwhile_ends_refunded(
    by: str, stage: Stage
) -> None:
    stage.order.gate.broken_for.add("payment.charged")
    order = await stage.place()
    await stage.dead_letters(1)
    await stage.cancel(order, by)
    await until(lambda: stage.is_payment(order, "refunded"))
    stage.order.gate.broken_for.clear()
    await replay_all(stage)

    assert await stage.end(order) == refunded(by)
    assert await stage.shelf() == UNTOUCHED


async def test_cancellations_that_died_everywhere_undo_everything_when_replayed(
    stage: Stage,
) -> None:
    stage.order.gate.hold("payment.charged")
    order = await stage.place()
    await until(lambda: stage.order.gate.waiting["payment.charged"] == 1)
    for member in (stage.inventory, stage.payment):
        member.gate.broken_for.add("order.cancelled")
    await stage.cancel(order, "deadline")
    await stage.dead_letters(2)
    stage.order.gate.let("payment.charged")
    for member in (stage.inventory, stage.payment):
        member.gate.broken_for.clear()
    await replay_all(stage)

    assert await stage.end(order) == refunded("deadline")
    assert await stage.shelf() == UNTOUCHED


# --- a provider that is away ----------------------------------------------------------------------


@pytest.mark.parametrize("mode", [FaultMode.UNAVAILABLE, FaultMode.LOST_ANSWER])
async def test_a_provider_that_is_away_during_the_refund_gives_the_money_back_once(
    mode: FaultMode, stage: Stage
) -> None:
    stage.order.gate.hold("payment.charged")
    order = await stage.place()
    await until(lambda: stage.order.gate.waiting["payment.charged"] == 1)
    stage.provider.set_fault(Fault(mode))
    await stage.cancel(order, "customer")
    await until(lambda: stage.is_payment(order, "refunding"))
    stage.order.gate.let("payment.charged")
    await until(stage.waiting_to_be_tried_again)
    stage.provider.set_fault(Fault())

    assert await stage.end(order) == refunded("customer")


async def test_a_charge_given_up_whose_order_is_cancelled_is_settled_and_its_replay_changes_nothing(
    stage: Stage,
) -> None:
    """The provider has the money, but each of its answers is lost, until after the cancellation."""
    stage.provider.set_fault(Fault(FaultMode.LOST_ANSWER))
    order = await stage.place()
    await until(stage.waiting_to_be_tried_again)
    stage.payment.gate.broken_for.add("stock.reserved")  # shorter than all its tries
    await stage.dead_letters(1)
    assert await stage.is_payment(order, "charging")
    stage.provider.set_fault(Fault())
    stage.payment.gate.broken_for.clear()
    await stage.cancel(order, "deadline")
    await until(lambda: stage.is_payment(order, "refunded"))
    await replay_all(stage)

    assert await stage.end(order) == refunded("deadline")
    assert await stage.shelf() == UNTOUCHED
