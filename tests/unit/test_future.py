"""What can still come of an order, by the domains alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from common.events import PaymentCharged, PaymentDeclined, PaymentVoided
from inventory_service.domain import AddStock, StockItem
from order_service.domain import CancelOrder
from payment_service.domain import ChargeAnswered, Payment, PaymentStatus, Refund
from saga.archive.store import Fact
from saga.choreography import Participant
from saga.console import one
from saga.console.one import Forecast, Forecaster, Unforeseen
from saga.console.watched import Watched
from saga.discovery import choreography, saga
from saga.envelope import Envelope
from saga.errors import InputError
from saga.future import moment
from saga.future.ends import ReachableEnd, outlook
from saga.future.moment import Moment
from saga.future.present import ModelledSubject, SharedStates, SubjectModels, shared_keys
from saga.future.whatif import PAIRS_MAX, AskedStep, course, offers_of
from saga.history.debts import coming_of, debts_of
from saga.history.story import Story, tell
from saga.history.whereabouts import MessageLocation, MessageLocations, Place
from saga.testing import NOW
from saga.verify import VerifyError
from saga.view import Broken, States
from tests.order_play import Play, confirmed, declined, out_of_stock

TICK = timedelta(milliseconds=5)
MINUTE_SECONDS = 60.0
"""More than any exploration here takes, so that the machine's speed decides on nothing."""


@pytest.fixture(scope="module")
def foresight() -> SubjectModels:
    return SubjectModels(saga())


def stocked(**settings: Any) -> Play:
    played = Play(at=NOW, tick=TICK, graph=choreography(), **settings)
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    return played


def story_of(events: Sequence[Envelope[Any]], order: str) -> Story:
    facts = [Fact(e, e.to_bytes(), position=n) for n, e in enumerate(events) if e.subject == order]
    return tell(choreography(), order, facts)


def shelf(played: Play, story: Story) -> SharedStates:
    """What the databases have of what is about more than this order."""
    return {
        (name, (kind, key)): played.states[name].get((kind, key)) or kind(key)
        for (name, kind), keys in shared_keys(choreography(), story).items()
        for key in keys
    }


def present(
    foresight: SubjectModels, played: Play, order: str, *, influential_only: bool = True
) -> ModelledSubject:
    story = story_of(played.events, order)
    graph = choreography()
    return foresight.present(
        story,
        debts_of(graph, story, played.at),
        coming_of(graph, story, played.at),
        shelf(played, story),
        played.at,
        influential_only=influential_only,
    )


def ends(foresight: SubjectModels, found: ModelledSubject) -> dict[str, ReachableEnd]:
    seen = outlook(found, foresight.judged(found), seconds_max=MINUTE_SECONDS)
    assert seen.whole
    assert not seen.broken
    return {" and ".join(outcome for _, outcome in end.name): end for end in seen.ends}


def test_an_order_whose_payment_is_awaited_can_end_in_four_ways(foresight: SubjectModels) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()

    found = ends(foresight, present(foresight, played, order))

    assert sorted(found) == [
        "confirmed",
        "customer_request",
        "deadline_exceeded",
        "payment_declined",
    ]
    assert [step.receiver for step in found["confirmed"].way] == [
        "payment",
        "provider",
        "payment",
        "order",
    ]
    assert "payment.charged" in found["confirmed"].always
    assert "stock.released" in found["confirmed"].never


def test_an_order_that_is_charged_and_then_cancelled_is_always_refunded(
    foresight: SubjectModels,
) -> None:
    played = stocked(down={"order"})
    order = played.place()
    played.deliver()

    found = ends(foresight, present(foresight, played, order))

    assert sorted(found) == ["confirmed", "customer_request", "deadline_exceeded"]
    assert "payment.refunded" in found["customer_request"].always
    assert "payment.refunded" in found["confirmed"].never


def test_an_end_that_cannot_be_reached_any_more_is_named(foresight: SubjectModels) -> None:
    played = stocked()
    order = confirmed(played)

    found = present(foresight, played, order)
    seen = outlook(found, foresight.judged(found), seconds_max=MINUTE_SECONDS)

    assert seen.out_of_reach == ["order.cancelled"]
    assert "confirmed_unpaid" in seen.holding
    assert not seen.broken


@pytest.mark.parametrize("ordered", [confirmed, declined, out_of_stock])
def test_what_came_about_was_possible_at_every_moment_before(
    foresight: SubjectModels, ordered: Callable[[Play], str]
) -> None:
    played = stocked()
    order = ordered(played)
    whole = story_of(played.events, order)
    (end,) = [e for e in whole.events.values() if e.data.__class__.__name__ in ENDS]
    about = played.about(order)
    for number in range(1, len(about) + 1):
        story = story_of(about[:number], order)
        at = about[number - 1].time
        graph = choreography()
        found = foresight.present(
            story,
            debts_of(graph, story, at),
            coming_of(graph, story, at),
            before(played, about[:number], order),
            at,
            influential_only=True,
        )
        seen = outlook(found, foresight.judged(found), seconds_max=MINUTE_SECONDS)
        assert seen.whole
        assert not seen.broken
        assert ((end.type, end.data.outcome),) in {end.name for end in seen.ends}


ENDS = ("OrderConfirmed", "OrderCancelled")


def before(played: Play, about: Sequence[Envelope[Any]], order: str) -> SharedStates:
    """The shelf as it was after these events of the order."""
    story = story_of(about, order)
    found = shelf(played, story)
    held = any(event.type == "stock.reserved" for event in about)
    full = StockItem("tea", 1, 250, "EUR", 9, 0)
    return found if held else {key: full for key in found if key[1][1] == "tea"}


def test_a_limit_of_states_is_told(foresight: SubjectModels) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order)

    seen = outlook(found, foresight.judged(found), states_max=70, seconds_max=MINUTE_SECONDS)

    assert not seen.whole
    assert not seen.out_of_reach


def test_a_state_that_is_not_known_is_not_made_up(foresight: SubjectModels) -> None:
    played = stocked(down={"inventory"})
    order = played.place()
    played.deliver()
    story = story_of(played.events, order)
    graph = choreography()
    debts = debts_of(graph, story, played.at)
    found = foresight.present(story, debts, [], {}, played.at, influential_only=True)

    with pytest.raises(VerifyError, match="StockItem 'tea' of inventory"):
        outlook(found, foresight.judged(found))


def test_a_story_with_a_hole_is_not_put_into_a_model(foresight: SubjectModels) -> None:
    played = stocked()
    order = confirmed(played)
    events = [event for event in played.events if event.type != "stock.reserved"]

    with pytest.raises(VerifyError, match="lacks something"):
        foresight.present(story_of(events, order), [], [], {}, played.at)


def test_what_would_be_if_the_deadline_passed_now(foresight: SubjectModels) -> None:
    played = stocked(down={"payment", "notification"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)

    usual = course(found)
    late = course(found, [AskedStep("order", command="order.expire")])

    assert usual.end == (("order.confirmed", "confirmed"),)
    assert late.end == (("order.cancelled", "deadline_exceeded"),)
    assert late.asked == 1
    assert late.rests
    assert not late.broken
    published = [result.strip() for step in late.steps for result in step.results]
    assert "publishes payment.refunded" in published


def test_what_would_be_if_two_messages_came_the_other_way_round(foresight: SubjectModels) -> None:
    played = stocked(down={"payment", "inventory", "notification"})
    order = played.place()
    played.give("order", cancelling(order))
    played.deliver()
    found = present(foresight, played, order, influential_only=False)
    placed, cancelled = (
        next(e for e in played.about(order) if e.type == type_)
        for type_ in ("order.placed", "order.cancelled")
    )

    usual = course(found)
    other = course(
        found,
        [AskedStep("inventory", message=e.id) for e in (cancelled, placed)],
    )

    assert usual.end == other.end == (("order.cancelled", "customer_request"),)
    assert "publishes stock.reserved" in results(usual.steps)
    assert "publishes stock.reserved" not in results(other.steps)


def results(steps: Sequence[Any]) -> list[str]:
    return [result.strip() for step in steps for result in step.results]


def cancelling(order: str) -> Any:

    return CancelOrder(order_id=UUID(order))


def test_a_step_that_is_not_possible_is_refused(foresight: SubjectModels) -> None:
    played = stocked()
    order = confirmed(played)
    found = present(foresight, played, order, influential_only=False)

    with pytest.raises(InputError, match="not on its way"):
        course(found, [AskedStep("payment", message="nothing")])


@pytest.mark.parametrize("command", ["order.burn", "stock.reserved", "nothing"])
def test_a_command_that_nobody_can_give_is_no_step(foresight: SubjectModels, command: str) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)

    with pytest.raises(InputError, match=r"there are: .*order do order\.expire"):
        course(found, [AskedStep("order", command=command)])


def test_a_message_is_named_by_its_type_where_there_is_one_of_it(foresight: SubjectModels) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)
    ((_, event),) = found.pending
    payment = AskedStep.read("payment take stock.reserved")
    expired = AskedStep.read("order do order.expire")

    assert course(found, [payment]) == course(found, [AskedStep("payment", message=event.id)])
    # What is not published yet has no known id.
    charged = AskedStep("order", message="payment.charged")
    assert course(found, [payment, charged]).end == (("order.confirmed", "confirmed"),)
    assert course(found, [payment, expired]).end == (("order.cancelled", "deadline_exceeded"),)


def test_of_several_messages_of_a_type_each_is_named_by_its_id(foresight: SubjectModels) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)
    ((start, begun),) = found.model.begun.items()
    reserved = next(event for event, _ in begun.told if event.type == "stock.reserved")
    twin = reserved.model_copy(update={"id": "twin"})
    begun = replace(begun, told=[*begun.told, (twin, ["payment"])])
    found = replace(found, model=replace(found.model, begun={start: begun}))

    with pytest.raises(InputError, match=rf"there are several; .*{reserved.id}.*twin"):
        course(found, [AskedStep("payment", message="stock.reserved")])


@pytest.mark.parametrize("written", ["payment take stock.reserved", "order do order.expire"])
def test_a_step_is_written_as_it_is_read(written: str) -> None:
    assert str(AskedStep.read(written)) == written


@pytest.mark.parametrize("written", ["", "payment", "payment take", "payment give it", "take x"])
def test_what_is_no_step_is_refused_with_how_one_is_written(written: str) -> None:
    with pytest.raises(InputError, match="is no step; write PARTICIPANT take MESSAGE"):
        AskedStep.read(written)


def nothing_is_charged(payments: States[Payment]) -> Iterator[Broken]:
    """No customer ever pays."""
    for key, payment in payments.items():
        if payment.status is PaymentStatus.CHARGED:
            yield key, "it is charged"


def test_a_rule_that_is_broken_on_the_way_is_told_though_the_end_mends_it() -> None:
    whole = saga()
    strict = SubjectModels(replace(whole, always=(*whole.always, nothing_is_charged)))
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(strict, played, order, influential_only=False)

    late = course(found, [AskedStep("order", command="order.expire")])
    assert "publishes payment.refunded" in results(late.steps)
    assert [violation.rule for violation in late.broken] == ["nothing_is_charged"]

    influential = present(strict, played, order)
    seen = outlook(influential, strict.judged(influential), seconds_max=MINUTE_SECONDS)
    (broken,) = seen.broken
    assert broken.violation.rule == "nothing_is_charged"
    assert "publishes payment.charged" in results(broken.way[-1:])
    assert "nothing_is_charged" not in seen.holding


def stumble(
    answer: ChargeAnswered, payment: Payment
) -> (
    PaymentCharged | PaymentDeclined | PaymentVoided | tuple[PaymentCharged, Refund] | Refund | None
):
    raise ValueError("it broke")


def test_a_step_that_breaks_a_rule_by_itself_ends_the_way_to_it() -> None:
    own = next(p for p in saga().participants if p.name == "payment")
    others = [r.function for r in own.reactions if r.consumes is not ChargeAnswered]
    broken = SubjectModels(saga().with_(Participant("payment", *others, stumble)))
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()

    found = present(broken, played, order)
    seen = outlook(found, broken.judged(found), seconds_max=MINUTE_SECONDS)
    asked = course(found, [AskedStep("payment", message="stock.reserved")])

    each = next(each for each in seen.broken if "it broke" in each.violation.detail)
    assert "it broke" in results(each.way[-1:])[0]
    assert each.violation.rule in {violation.rule for violation in asked.broken}


def test_an_end_that_others_may_still_bring_about_is_not_called_out_of_reach(
    foresight: SubjectModels,
) -> None:
    played = stocked(down={"inventory"})
    order = played.place()
    played.deliver()
    waiting = present(foresight, played, order)
    seen = outlook(waiting, foresight.judged(waiting), seconds_max=MINUTE_SECONDS)

    # There is enough on the shelf now, but others may take it first.
    assert "out_of_stock" not in {outcome for end in seen.ends for _, outcome in end.name}
    assert seen.depends_on == ["StockItem of inventory"]
    assert any("what these do to it meanwhile is not looked at" in r for r in waiting.remarks)


def test_what_is_shared_counts_only_where_somebody_still_looks_at_it(
    foresight: SubjectModels,
) -> None:
    played = stocked()
    order = confirmed(played)
    found = present(foresight, played, order)

    assert outlook(found, foresight.judged(found), seconds_max=MINUTE_SECONDS).depends_on == []


def test_the_replay_of_a_dead_letter_is_offered_by_its_name(foresight: SubjectModels) -> None:
    played = stocked(down={"payment", "notification"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)
    ((_, event),) = found.pending
    dead = MessageLocations({("payment", event.id): MessageLocation(Place.DEAD, "a dead letter")})

    offers = {offer.words: offer.steps for offer in offers_of(found, dead)}

    steps = offers["the dead letter stock.reserved is replayed at payment now"]
    assert course(found, steps).end == (("order.confirmed", "confirmed"),)
    assert "its time comes now: order does order.expire" in offers
    assert "a client gives order.cancel to order" in offers


def test_pairs_are_offered_in_both_orders_however_many_there_are(foresight: SubjectModels) -> None:
    played = stocked(down={"payment"})
    order = played.place()
    played.deliver()
    found = present(foresight, played, order, influential_only=False)
    ((name, event),) = found.pending
    many = [(name, event.model_copy(update={"id": f"{number}"})) for number in range(40)]

    offers = offers_of(replace(found, pending=many), None)

    pairs = {tuple(step.message for step in o.steps) for o in offers if len(o.steps) == 2}
    assert len(pairs) == 2 * PAIRS_MAX
    assert pairs == {pair[::-1] for pair in pairs}


class Asked:
    """What the console foresees of an order whose payment is awaited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        played = stocked(down={"payment"})
        order = played.place()
        played.deliver()
        story, graph = story_of(played.events, order), choreography()
        self.moment = Moment(
            number=1,
            last=1,
            step=None,
            story=story,
            debts=debts_of(graph, story, played.at),
            coming=coming_of(graph, story, played.at),
            now=played.at,
        )
        self.monkeypatch = monkeypatch
        self.foreseeing = Forecaster(Watched(Path(), saga()))
        monkeypatch.setattr(Watched, "deployment", None)
        monkeypatch.setattr(moment, "read_shared", lambda *_: shelf(played, story))
        monkeypatch.setattr(one, "KEPT_SECONDS", MINUTE_SECONDS)
        self.bounded(seconds_max=MINUTE_SECONDS)

    def bounded(self, **limits: Any) -> None:
        self.monkeypatch.setattr(one, "outlook", partial(outlook, **limits))

    async def outlook(self) -> Forecast | Unforeseen:
        return await self.foreseeing.outlook(self.moment, None)


async def test_an_outlook_is_kept_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Asked(monkeypatch)
    first = await asked.outlook()
    assert await asked.outlook() is first
    monkeypatch.setattr(one, "KEPT_SECONDS", 0.0)
    assert await asked.outlook() is not first


async def test_neither_a_part_of_an_outlook_nor_a_refusal_is_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(monkeypatch)
    asked.bounded(states_max=70, seconds_max=MINUTE_SECONDS)
    part = await asked.outlook()
    assert isinstance(part, Forecast)
    assert not part.outlook.whole

    def refuse(*_: Any) -> SharedStates:
        raise VerifyError("the shelf is away")

    with monkeypatch.context() as away:
        away.setattr(moment, "read_shared", refuse)
        assert await asked.outlook() == Unforeseen("the shelf is away")
    asked.bounded(seconds_max=MINUTE_SECONDS)
    whole = await asked.outlook()
    assert isinstance(whole, Forecast)
    assert whole.outlook.whole


async def test_a_state_that_no_model_takes_is_a_reason_for_every_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = Asked(monkeypatch)

    def unhashable(*_: Any, **__: Any) -> Any:
        raise TypeError("unhashable type: 'list'")

    monkeypatch.setattr(SubjectModels, "present", unhashable)
    foreseeing, moment = asked.foreseeing, asked.moment
    for found in (await asked.outlook(), await foreseeing.supposed(moment, None, ())):
        assert isinstance(found, Unforeseen)
        assert "unhashable" in found.why
