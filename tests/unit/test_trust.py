"""Whom a participant believes about a message, and which of its headers."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import pytest
from pamqp import encode

from saga.envelope import Envelope, Undecodable, wrap
from saga.message import Event, Priority
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import ATTEMPTS, REPLAYS, attempts_in, ours_in
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, wait_queue
from saga.runtime.messaging.trust import EDITOR_SOURCE, check_sender
from tests.errands import asked, told_to_ride
from tests.integration.toy import NOW
from tests.words import Begin, Cancelled, Part, Reason

QUEUE = "toy.normal"
KEY = "thing.cancelled.normal"


class Rumour(Event):
    type: ClassVar[str] = "rumour.heard"

    @property
    def subject(self) -> str:
        return "somebody"


def cancelled(source: str = "/services/starter") -> Envelope[Any]:
    event = Cancelled(thing=UUID(int=1), who="ada", reason=Reason.WISH)
    return wrap(event, id="1", source=source, time=NOW, priority=Priority.NORMAL)


def refused(exchange: str, key: str, envelope: Envelope[Any], queue: str = QUEUE) -> bool:
    try:
        check_sender(exchange, key, envelope, queue)
    except Undecodable as error:
        return error.reason == "misrouted"
    return False


def test_an_event_is_believed_from_its_publisher_under_its_own_routing_key() -> None:
    assert not refused(EVENTS_EXCHANGE, KEY, cancelled())
    assert refused(EVENTS_EXCHANGE, "question.agreed.normal", cancelled())


def test_a_retry_or_a_replay_is_believed_under_its_queues_name() -> None:
    assert not refused("", QUEUE, cancelled())
    assert refused("", "other.normal", cancelled())


@pytest.mark.parametrize("source", ["/services/asker", "/services/starter/", "/", EDITOR_SOURCE])
def test_an_event_is_refused_that_says_another_source_than_its_publisher(source: str) -> None:
    assert refused(EVENTS_EXCHANGE, KEY, cancelled(source))


def test_a_retry_is_refused_that_says_another_source_than_its_publisher() -> None:
    assert refused("", QUEUE, cancelled("/services/asker"))


def test_a_corrected_copy_is_believed_by_the_default_exchange_only() -> None:
    assert not refused("", QUEUE, cancelled(EDITOR_SOURCE))


def test_a_command_may_come_from_anybody_who_may_write_the_queue() -> None:
    part = Part(name="tea", count=1, size=250)
    begin = Begin(thing=UUID(int=1), who="ada", parts=(part,))
    source = "https://shop.example"
    command = wrap(begin, id="1", source=source, time=NOW, priority=Priority.NORMAL)

    assert not refused("", "starter.intake.normal", command, "starter.intake.normal")


def test_an_event_of_no_known_publisher_is_believed_for_its_routing_key() -> None:
    rumour = wrap(Rumour(), id="1", source="/anybody", time=NOW, priority=Priority.NORMAL)

    assert not refused(EVENTS_EXCHANGE, "rumour.heard.normal", rumour)


def delivered(exchange: str, key: str, *headers: frames.Field) -> Delivery:
    raw = frames.join({"headers": frames.table_of(headers)} if headers else {})
    return Delivery(1, False, exchange, key, raw)


HEADERS = (frames.field(ATTEMPTS, 9), frames.field(REPLAYS, 1), frames.field("traceparent", "00-"))


def test_headers_of_ours_count_on_what_comes_back_by_the_default_exchange() -> None:
    assert ours_in(delivered("", QUEUE, *HEADERS), QUEUE) == {ATTEMPTS: 9, REPLAYS: 1}


@pytest.mark.parametrize(("exchange", "key"), [(EVENTS_EXCHANGE, KEY), ("", "other.normal")])
def test_headers_of_ours_count_on_nothing_else(exchange: str, key: str) -> None:
    assert ours_in(delivered(exchange, key, *HEADERS), QUEUE) == {}


def test_a_message_without_headers_has_none_of_ours() -> None:
    assert ours_in(delivered(EVENTS_EXCHANGE, KEY), QUEUE) == {}
    assert ours_in(delivered("", QUEUE), QUEUE) == {}


@pytest.mark.parametrize("exchange", ["saga.retry.500", DEAD_EXCHANGE])
def test_a_copy_that_waits_or_is_dead_is_its_services_own(exchange: str) -> None:
    assert ours_in(delivered(exchange, QUEUE, *HEADERS)) == {ATTEMPTS: 9, REPLAYS: 1}


@pytest.mark.parametrize(("came_by", "believed"), [(EVENTS_EXCHANGE, False), ("", True)])
def test_what_the_broker_has_set_aside_is_believed_as_it_was_before(
    came_by: str, believed: bool
) -> None:
    table: Any = [{"exchange": came_by, "queue": QUEUE, "reason": "delivery_limit"}]
    death = frames.Field(b"x-death", encode.encode_table_value(table))
    assert bool(ours_in(delivered(DEAD_EXCHANGE, "toy", death, *HEADERS))) is believed


def test_a_copy_of_what_came_from_a_wait_queue_may_carry_the_brokers_note_of_that() -> None:
    wait = wait_queue(500)
    table: Any = [{"exchange": wait, "queue": wait, "reason": "expired"}]
    death = frames.Field(b"x-death", encode.encode_table_value(table))
    copy = delivered(DEAD_EXCHANGE, "toy", death, *HEADERS)
    assert ours_in(copy) == {ATTEMPTS: 9, REPLAYS: 1}


@pytest.mark.parametrize("value", [-1, 2**63 - 1, "many", True, b"9"])
def test_what_is_no_number_of_failures_counts_as_none(value: Any) -> None:
    assert attempts_in({ATTEMPTS: value}) == 0


INTAKE = "rider.intake.normal"


def test_a_command_is_believed_from_its_senders_by_the_events_exchange() -> None:
    assert not refused(EVENTS_EXCHANGE, "ride.start.normal", told_to_ride("a"), INTAKE)
    assert refused(EVENTS_EXCHANGE, "ride.done.normal", told_to_ride("a"), INTAKE)


@pytest.mark.parametrize("source", ["/services/stamper", "https://shop.example", EDITOR_SOURCE])
def test_a_command_is_refused_that_says_another_source_than_its_senders(source: str) -> None:
    command = told_to_ride("a", source=source)

    assert refused(EVENTS_EXCHANGE, "ride.start.normal", command, INTAKE)
    assert not refused("", INTAKE, command, INTAKE)  # Only operators write there.


def test_a_command_that_no_participant_sends_is_refused_by_the_events_exchange() -> None:
    assert refused(EVENTS_EXCHANGE, "errand.ask.normal", asked("a"), "desk.intake.normal")
