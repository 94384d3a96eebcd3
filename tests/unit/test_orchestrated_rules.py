"""The orchestrated example has the order system's rules: both are run on the same inputs.

It is a project of its own and shares no code with the order system, so nothing else would notice if
the two went apart, and with them what is compared in `docs/choreography-or-orchestration.md`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from common import events as ours
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock
from order_saga.outsides import DeskGateway
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.domain import ChargeAnswered, Payment, RefundAnswered
from payment_service.ledger import ChargeOutcome, Decline, GatewayRefused, Ledger, Receipt
from saga.message import Event, Intent, Priority
from saga.outside import Desk, at_once
from saga.sandbox import DeskBookkeeper
from saga.testing import NOW, GivenParticipant

EXAMPLE = Path(__file__).parents[2] / "examples" / "orchestrated"
SEEDS = 200
STEPS = 30
ORDERS = [UUID(int=number) for number in range(1, 4)]


class Theirs:
    """The example's modules. They are no part of this project, so they are looked up by name."""

    def __init__(self) -> None:
        from importlib import import_module

        self.language: Any = import_module("orchestrated.language")
        self.inventory: Any = import_module("orchestrated.inventory.domain")
        self.payment: Any = import_module("orchestrated.payment.domain")
        self.provider: Any = import_module("orchestrated.provider")


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Theirs:
    monkeypatch.syspath_prepend(EXAMPLE)
    return Theirs()


def test_inventory_answers_the_same(theirs: Theirs) -> None:
    seen = set()
    for seed in range(SEEDS):
        chance = random.Random(seed)
        one, other = GivenParticipant(INVENTORY), GivenParticipant(theirs.inventory.PARTICIPANT)
        for _ in range(STEPS):
            mine, yours = _about_stock(chance, theirs)
            said, told = one.live(mine), other.live(yours)
            assert _same(said, told), f"seed {seed}: {mine!r} led to {said}, and there to {told}"
            seen |= {event.type for event in said if isinstance(event, Event)}
    assert seen == {"stock.added", "stock.reserved", "stock.rejected", "stock.released"}


def _about_stock(chance: random.Random, theirs: Theirs) -> tuple[Any, Any]:
    """A message to the one, and the same to the other."""
    order_id = chance.choice(ORDERS)
    match chance.choice(("add", "reserve", "reserve", "release")):
        case "add":
            delivery: dict[str, Any] = {
                "delivery_id": UUID(int=chance.randrange(3)),
                "sku": chance.choice(("mug", "pen")),
                "quantity": chance.randrange(4),
                "unit_price_cents": chance.choice((150, 160)),
                "currency": "CHF",
            }
            return AddStock(**delivery), theirs.language.AddStock(**delivery)
        case "reserve":
            lines: Any = tuple(
                {"sku": chance.choice(("mug", "pen")), "quantity": q, "unit_price_cents": 150}
                for q in chance.choices((1, 2), k=chance.randint(1, 3))
            )
            order: dict[str, Any] = {
                "order_id": order_id,
                "currency": chance.choice(("CHF",) * 9 + ("EUR",)),
            }
            of_lines = tuple(ours.OrderLine(**line) for line in lines)
            placed = ours.OrderPlaced.model_validate(
                {
                    **order,
                    "customer": "anna",
                    "lines": of_lines,
                    "total_cents": ours.total_of(of_lines),
                    "priority": Priority.NORMAL,
                    "deadline": NOW,
                }
            )
            wanted = tuple(theirs.language.OrderLine(**line) for line in lines)
            return placed, theirs.language.ReserveStock(**order, lines=wanted)
        case _:
            return _cancelled(order_id), theirs.language.ReleaseStock(order_id=order_id)


def test_payment_answers_the_same(theirs: Theirs) -> None:
    seen = set()
    for seed in range(SEEDS):
        chance = random.Random(seed)
        one, other = GivenParticipant(PAYMENT), GivenParticipant(theirs.payment.PARTICIPANT)
        asked: list[tuple[Intent, Intent]] = []
        for _ in range(STEPS):
            mine, yours = _about_payment(chance, theirs, asked)
            said, told = one.live(mine), other.live(yours)
            assert _same(said, told), f"seed {seed}: {mine!r} led to {said}, and there to {told}"
            assert (
                one.state(Payment, mine.subject).phase
                is other.state(theirs.payment.Payment, mine.subject).phase
            )
            asked += zip(
                [intent for intent in said if isinstance(intent, Intent)],
                [intent for intent in told if isinstance(intent, Intent)],
                strict=True,
            )
            seen |= {getattr(each, "type", type(each).__name__) for each in said}
    assert {"payment.refunded", "payment.voided", "payment.declined", "SettleCharge"} <= seen


def _about_payment(
    chance: random.Random, theirs: Theirs, asked: list[tuple[Intent, Intent]]
) -> tuple[Any, Any]:
    order_id = chance.choice(ORDERS)
    if asked and chance.random() < 0.5:
        mine, _ = asked.pop(chance.randrange(len(asked)))
        about: dict[str, Any] = {"order_id": UUID(mine.subject)}
        if mine.answer is RefundAnswered:
            return RefundAnswered(**about), theirs.payment.RefundAnswered(**about)
        reason = chance.choice((None, ours.DeclineReason.CARD_DECLINED))
        declined = reason and theirs.language.DeclineReason(reason)
        return (
            ChargeAnswered(**about, declined=reason, reference="receipt"),
            theirs.payment.ChargeAnswered(**about, declined=declined, reference="receipt"),
        )
    if chance.random() < 0.3:
        return _cancelled(order_id), theirs.language.CancelPayment(order_id=order_id)
    order = {"order_id": order_id, "customer": "anna", "currency": "CHF"}
    held = (ours.HeldLine(sku="mug", quantity=1),)
    return (
        ours.StockReserved.model_validate({**order, "total_cents": 150, "lines": held}),
        theirs.language.ChargePayment(**order, amount_cents=150),
    )


def test_the_provider_answers_the_same(theirs: Theirs) -> None:
    for seed in range(SEEDS):
        chance = random.Random(seed)
        mine, yours = Desk(Ledger(), None), Desk(theirs.provider.Ledger(), None)
        one, other = DeskGateway(mine), DeskBookkeeper(yours)
        for _ in range(STEPS):
            outcome = chance.choice(list(ChargeOutcome))
            mine.decision, yours.decision = outcome, theirs.provider.Outcome(outcome)
            order_id, cents = chance.choice(ORDERS), chance.choice((100, 100, 100, 200))
            key = str(order_id)
            about: dict[str, Any] = {"currency": "CHF", "amount_cents": cents}
            if chance.random() < 0.6:
                said = _said(one.charge(key, customer="anna", **about))
                wish = theirs.payment.Charge(order_id=order_id, customer="anna", **about)
                told = _said(other.ask(key, partial(theirs.provider.charge, wish)))
            else:
                said = _said(one.refund(key, **about))
                wish = theirs.payment.Refund(order_id=order_id, **about)
                told = _said(other.ask(key, partial(theirs.provider.refund, wish)))
            assert said == told, f"seed {seed}"
            assert list(_lines(mine.books)) == list(_lines(yours.books)), f"seed {seed}"


def _said(question: Any) -> Any:
    """Why no money was taken, None if it was, or that the question makes no sense."""
    try:
        answer = at_once(question, "the provider")
    except (GatewayRefused, ValueError):
        return "refused"
    if isinstance(answer, Decline):
        return answer.reason
    return None if isinstance(answer, Receipt) else answer


def _lines(ledger: Any) -> Iterator[tuple[object, ...]]:
    for line in ledger:
        yield line.key, line.amount_cents, line.outcome.value, line.kept_cents


def _cancelled(order_id: UUID) -> ours.OrderCancelled:
    reason = ours.CancellationReason.CUSTOMER_REQUEST
    return ours.OrderCancelled(order_id=order_id, customer="anna", reason=reason)


def _same(said: tuple[Any, ...], told: tuple[Any, ...]) -> bool:
    """Whether the answers are the same, but for what only the other style needs to carry along."""
    if [type(each).__name__ for each in said] != [type(each).__name__ for each in told]:
        return False
    for mine, yours in zip(said, told, strict=True):
        a, b = mine.model_dump(mode="json"), yours.model_dump(mode="json")
        if any(a[name] != b[name] for name in a.keys() & b.keys()):
            return False
    return True
