"""When a loop that tries again and again is stuck, and what it logs."""

from __future__ import annotations

import ast
import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from saga.runtime import retry_loop
from saga.runtime.retry_loop import (
    CAUSES_MAX,
    FAILURES_MIN,
    LOG_SECONDS,
    STUCK_SECONDS,
    TRACKED_MAX,
    RetryLoop,
    troubles,
)

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def loop(clock: Clock, caplog: pytest.LogCaptureFixture) -> RetryLoop:
    caplog.set_level(logging.INFO, "saga.runtime.retry_loop")
    return RetryLoop("copies", "publish copies", monotonic=clock)


def fail(loop: RetryLoop, clock: Clock, times: int, seconds: float, thing: object = None) -> None:
    """Fail so many times, evenly in so many seconds."""
    for number in range(times):
        loop.failed(OSError("no way"), thing)
        if number < times - 1:
            clock.now += seconds / (times - 1)


# --- stuck ----------------------------------------------------------------------------------------


def test_it_is_stuck_once_it_has_failed_often_and_long(loop: RetryLoop, clock: Clock) -> None:
    fail(loop, clock, FAILURES_MIN, STUCK_SECONDS)

    assert loop.trouble == "cannot publish copies, tried 3 times in 15 s: no way"
    assert troubles([loop, RetryLoop("outbox", "publish")]) == {"copies": loop.trouble}


def test_a_broker_that_is_back_soon_is_no_trouble(loop: RetryLoop, clock: Clock) -> None:
    fail(loop, clock, 100, STUCK_SECONDS - 1)
    assert loop.trouble == ""

    loop.succeeded()
    clock.now += STUCK_SECONDS
    loop.failed(OSError("no way"))
    assert loop.trouble == ""


def test_few_failures_far_apart_are_no_trouble(loop: RetryLoop, clock: Clock) -> None:
    fail(loop, clock, FAILURES_MIN - 1, 10 * STUCK_SECONDS)

    assert loop.trouble == ""


def test_the_trouble_is_over_with_a_success(loop: RetryLoop, clock: Clock) -> None:
    fail(loop, clock, FAILURES_MIN, STUCK_SECONDS)
    loop.succeeded()

    assert loop.trouble == ""


def test_one_thing_is_stuck_although_others_succeed(loop: RetryLoop, clock: Clock) -> None:
    for _ in range(FAILURES_MIN):
        loop.failed(OSError("refused"), "one")
        loop.failed(OSError("busy"), "another")
        clock.now += STUCK_SECONDS
        loop.succeeded("another")
        loop.succeeded("a third")

    assert "refused" in loop.trouble
    loop.succeeded("one")
    assert loop.trouble == ""


def test_the_latest_cause_of_what_has_failed_longest_is_named(
    loop: RetryLoop, clock: Clock
) -> None:
    loop.failed("at first this", "one")
    clock.now += 1
    fail(loop, clock, FAILURES_MIN, STUCK_SECONDS, "another")
    fail(loop, clock, FAILURES_MIN, STUCK_SECONDS, "one")
    loop.failed("now this\n[SQL: SELECT 1]", "one")

    assert loop.trouble.endswith("s: now this")


def test_what_nobody_tries_any_more_is_forgotten(loop: RetryLoop, clock: Clock) -> None:
    fail(loop, clock, FAILURES_MIN, STUCK_SECONDS, "one")
    loop.forget("one", "unknown")

    assert loop.trouble == ""
    assert not loop.failing


def test_no_more_things_are_counted_than_there_is_room_for(loop: RetryLoop) -> None:
    for number in range(2 * TRACKED_MAX):
        loop.failed("busy", number)

    assert len(loop.failing) == TRACKED_MAX


async def test_what_is_lost_again_and_again_is_stuck_until_it_lasts(
    loop: RetryLoop, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry_loop, "STEADY_SECONDS", 0.0)
    for _ in range(FAILURES_MIN):
        loop.lost("closed")
        loop.succeeded()  # It is opened again.
        clock.now += STUCK_SECONDS
    assert "closed" in loop.trouble

    await asyncio.sleep(0.01)  # The timer's turn.
    assert loop.trouble == ""


# --- logged ---------------------------------------------------------------------------------------


def test_a_cause_is_logged_once_then_once_a_minute_and_when_it_is_over(
    loop: RetryLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    fail(loop, clock, 2 * 90 + 1, 90)  # twice a second
    loop.succeeded()
    loop.succeeded()

    assert caplog.messages == [
        "cannot publish copies, trying again: no way",
        f"cannot publish copies, tried 121 times in {LOG_SECONDS:.0f} s: no way",
        "can publish copies again, after 181 failures in 90 s",
    ]


def test_a_new_cause_is_logged_at_once_and_two_that_take_turns_are_not(
    loop: RetryLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(10):
        for cause in ("one", "another"):
            loop.failed(cause)
            clock.now += 0.5

    assert [message.rpartition(": ")[2] for message in caplog.messages] == ["one", "another"]


def test_causes_without_end_do_not_fill_the_log(
    loop: RetryLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(10_000):
        loop.failed(f"port {number}")
        clock.now += LOG_SECONDS / 10_000

    assert len(caplog.messages) == CAUSES_MAX + 1


def test_what_fails_once_now_and_then_is_logged_once_a_minute(
    loop: RetryLoop, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(100):
        loop.failed("busy")
        loop.succeeded()
        clock.now += LOG_SECONDS / 100

    assert len(caplog.messages) == 2


def test_an_error_without_words_is_named_and_a_long_one_cut(
    loop: RetryLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.failed(TimeoutError())
    loop.failed("x" * 10_000)

    first, second = caplog.messages
    assert first.endswith(": TimeoutError")
    assert len(second) < 500


# --- which loops there are ------------------------------------------------------------------------

LOOPS = {
    "commits": ("saga/runtime/kernel/kernel.py Kernel._commit",),
    "inbox": ("saga/runtime/kernel/inbox.py keep_forgetting",),
    "kept": ("saga/runtime/kernel/kept.py Kept.run",),
    "outbox": ("saga/runtime/kernel/outbox.py Outbox._watch",),
    "outbox_rows": ("saga/runtime/kernel/outbox.py Outbox._set_apart",),
    "sweep": ("saga/runtime/kernel/outbox.py Outbox._patiently",),
    "lease": ("saga/runtime/kernel/outbox.py Outbox._patiently",),
    "copies": ("saga/runtime/messaging/consumer.py Deliveries._set_aside",),
    "consumer_connection": (
        "saga/runtime/messaging/wire.py ReconnectingConnection._lose",
        "saga/runtime/messaging/wire.py Wire.cold",
        "saga/runtime/messaging/wire.py Wire.connection_lost",
        "saga/runtime/messaging/wire.py WireFactory.create",
    ),
    "publisher_connection": (
        "saga/runtime/messaging/publisher.py BrokerPublisher._lose",
        "saga/runtime/messaging/publisher.py BrokerPublisher.open",
    ),
    "stream": ("saga/archive/follower.py Follower._pause",),
    "due": ("saga/runtime/kernel/timer.py Timekeeper._look",),
    "due_subjects": ("saga/runtime/kernel/timer.py Timekeeper._fire",),
    "persons": (
        "saga/personal/persons.py Persons.open",
        "saga/runtime/messaging/sealing.py IntakeSeal._insist",
    ),
    "partitions": (
        "saga/runtime/messaging/partitions.py PartitionReader.run",
        "saga/runtime/messaging/partitions.py PartitionReader._keep",
    ),
    "members": ("saga/runtime/messaging/partitions.py PartitionReader._owned",),
}
"""What the services try for ever, and where they notice that it fails."""
SLEEPING = {
    "saga/runtime/disk.py Disks.run": "looks again, whatever was seen",
    "saga/runtime/kernel/kernel.py Kernel._commit": "commits",
    "saga/runtime/kernel/kernel.py Kernel.run": "lets others take their turn",
    "saga/runtime/kernel/inbox.py keep_forgetting": "inbox",
    "saga/runtime/kernel/kept.py Kept.run": "kept",
    "saga/runtime/kernel/outbox.py Outbox._keep_lease": "lease",
    "saga/runtime/kernel/outbox.py Outbox._patiently": "sweep, lease",
    "saga/runtime/kernel/outbox.py Outbox._pause": "outbox",
    "saga/runtime/kernel/postgresql.py _prepare": "has a deadline",
    "saga/runtime/kernel/timer.py Timekeeper.run": "due",
    "saga/runtime/messaging/connection.py connect": "has a deadline",
    "saga/runtime/messaging/consumer.py Deliveries._set_aside": "copies",
    "saga/runtime/messaging/consumer.py Deliveries._settled": "has a deadline",
    "saga/runtime/messaging/consumer.py Deliveries.release": "lets others take their turn",
    "saga/runtime/metrics.py watch_event_loop": "cannot fail",
    "saga/runtime/service.py _finish": "has a deadline",
    "saga/archive/follower.py Follower._read_on": "waits after a success, or for room",
    "saga/archive/follower.py Follower.start": "has a deadline",
    "payment_service/gateway.py SandboxGateway._ask": "plays a slow provider",
    "payment_service/gateway.py SandboxGateway._commit_with_room": "has a deadline",
    "saga/runtime/kernel/sqlite.py made_by_one": "has a deadline",
    "saga/runtime/kernel/sqlite.py empty_log": "has a deadline",
    "saga/runtime/messaging/sealing.py IntakeSeal._insist": "persons",
    "saga/personal/persons.py Persons.open": "persons",
    "saga/personal/persons.py _Batcher._work": "waits once, for others",
    "saga/personal/persons.py _Batcher._asked": "leaves a turn to others, once for each value",
    "saga/personal/forgetting.py Forgetter._outwait": "waits once, for what processes know",
    "saga/personal/lookup.py PersonLookup.not_recorded": "has a deadline",
    "saga/personal/forgetting.py Forgetter._end": "has a deadline",
}
"""What sleeps in a service: in a loop, or why it is none that may be stuck."""


def calls() -> Iterator[tuple[str, ast.Call]]:
    """The calls in the services' code, each with the function that makes it."""

    def walk(path: Path, node: ast.AST, names: tuple[str, ...]) -> Iterator[tuple[str, ast.Call]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(path, child, (*names, child.name))
                continue
            if isinstance(child, ast.Call):
                yield f"{path.relative_to(ROOT)} {'.'.join(names)}", child
            yield from walk(path, child, names)

    engine = [ROOT / "saga" / name for name in ("runtime", "archive", "personal")]
    packages = [*engine, *ROOT.glob("*_service")]
    for path in sorted(path for package in packages for path in package.rglob("*.py")):
        if path.name != "retry_loop.py":
            yield from walk(path, ast.parse(path.read_text()), ())


def where(*methods: str) -> set[str]:
    """The functions that call a method of one of these names."""
    return {
        place
        for place, call in calls()
        if isinstance(call.func, ast.Attribute) and call.func.attr in methods
    }


def test_whatever_waits_to_try_again_is_a_loop_that_tells_or_has_an_end() -> None:
    there_are = {place for place in SLEEPING if (ROOT / place.partition(" ")[0]).exists()}

    assert where("sleep") == there_are


def test_each_loop_has_a_name_and_is_told_of_failures() -> None:
    made = {
        str(ast.literal_eval(call.args[0]))
        for _, call in calls()
        if ast.unparse(call.func).rpartition(".")[2] in ("RetryLoop", "retry_loop")
        and isinstance(call.args[0], ast.Constant)
    }

    assert made == LOOPS.keys()
    assert where("failed", "lost") == {place for places in LOOPS.values() for place in places}
