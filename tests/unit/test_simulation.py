"""The simulation finds nothing wrong with the kernel, and finds what is wrong with broken ones."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import subprocess
import sys
import weakref
from collections.abc import Collection, Sequence
from contextlib import closing
from copy import copy
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from functools import partial
from operator import attrgetter
from types import SimpleNamespace
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from typer.testing import CliRunner

import saga.simulation as simulation_module
from common.events import (
    NotificationBegun,
    NotificationDismissed,
    NotificationSent,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
    PaymentVoided,
)
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import (
    DismissNotification,
    Notification,
    PutOff,
    Resend,
    ResendNotification,
    Result,
    Send,
    SendAnswered,
    dismiss,
    record,
    tell_confirmed,
)
from order_saga import SAGA
from order_saga.outsides import MAIL_SERVER, PROVIDER
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.domain import (
    Payment,
    Refund,
    SettleCharge,
    charge,
    compensate,
    record_charge,
    record_refund,
)
from saga.asking import Phase
from saga.choreography import Participant
from saga.cli import app
from saga.commands.simulating import Summary, show, summary_as_json
from saga.declaration import Saga, SagaError
from saga.envelope import Envelope
from saga.load.plan import Plan
from saga.message import Answer, Ask, Intent, Priority
from saga.personal.forgetting import Forgetter
from saga.personal.keystore import KeyDatabase, KeyStore, NewPerson, PersonKey
from saga.personal.marks import with_personal
from saga.personal.persons import Persons
from saga.personal.seal import Forgotten, Unsealable, sealed
from saga.retry import RUNGS_MS, Retry
from saga.runtime.kernel.kept import Kept
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.leases import Lease
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.rows import WriteSet, writing
from saga.runtime.kernel.step import Decision, Firing
from saga.runtime.kernel.tables import DUE_AT, Tables, VersionConflict, utc_now
from saga.runtime.kernel.timer import DueState, Timekeeper
from saga.runtime.kernel.work import Done, Duplicate, Failed, Outcome, Work
from saga.runtime.messaging import frames
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.messaging.consumer import Deliveries, _Intake
from saga.runtime.messaging.dead_letters import ATTEMPTS, Failure, Reason, attempts_in, ours_in
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.publisher import BrokerPublisher, PublishChannel
from saga.runtime.messaging.sealing import SealedCommand
from saga.runtime.messaging.wire import ChannelLost
from saga.runtime.retry_loop import RetryLoop
from saga.simulation import PartsUnderTest, Run, Simulation, run_seeds, uncovered
from saga.simulation import network as network_module
from saga.simulation.database import SimulatedDatabase
from saga.simulation.faults import fault, is_fault
from saga.simulation.loop import SimulatedLoop, SimulatedProcess
from saga.simulation.network import Network
from saga.simulation.rules import RULES, violation
from saga.simulation.weather import DOOR_KINDS
from saga.simulation.world import World
from tests.errands import SAGA as ERRANDS

SEEDS = 200
SHORT = 50
"""Seeds of the short runs."""
PORTION = 25
"""Seeds of one test, so that several processes share them."""
SOON, LATER = 30, 300
"""Seeds within which a broken kernel must be caught."""
STUCK_SECONDS = 0.5
"""Of CPU time, in which a step has to end here."""

FAULTS = (
    "is killed",
    "is away",
    "is killed, having sent something",
    "away for minutes",
    "freezes for",
    "loses its",
    "is stuck",
    "is cut off",
    "is restarted",
    " refused",
    "refused and not kept",
    "doubles",
    "holds up",
    "transaction failed",
    "committed, which is not known",
    "transaction met another replica's",
    "transaction's data refused",
    "replays",
    "to saga.retry.",
    "to saga.dead",
    "keys         are away",
    "keys         commits, and",
    "keys         makes",
    "is started again to seal",
    "stranger     sends",
    "waiting for 1 open sagas to end",
    "has forgotten one of the persons",
)
"""What the traces of some runs must tell of: without it there is nothing to be robust against."""


def runs(first: int, count: int) -> list[Run]:
    with closing(Simulation()) as simulation:
        return [simulation.run(seed) for seed in range(first, first + count)]


@pytest.mark.parametrize(
    "first",
    [
        pytest.param(first, marks=() if first < SHORT else pytest.mark.long)
        for first in range(0, SEEDS, PORTION)
    ],
)
def test_nothing_goes_wrong_whatever_does(first: int) -> None:
    broken = {run.seed: run.violations for run in runs(first, PORTION) if run.violations}
    assert not broken, "see `saga verify --simulate --seeds 1 --seed <the first of these>`"


@pytest.mark.long
def test_nothing_goes_wrong_in_ten_thousand_runs() -> None:
    broken = [run for run in run_seeds(0, 10_000, jobs=os.cpu_count() or 1) if run.violations]
    assert not broken, f"see `saga verify --simulate --seeds 1 --seed {broken[0].seed}`"


@pytest.mark.long
def test_every_kind_of_fault_happens() -> None:
    traces = ["\n".join(run.trace) for run in runs(0, SEEDS)]
    assert not [fault for fault in FAULTS if not any(fault in trace for trace in traces)]


def test_a_seed_decides_on_everything() -> None:
    first, second = runs(20, 5), runs(20, 5)
    assert first == second
    assert len({run.digest for run in first}) == 5


def test_a_part_of_the_runs_of_a_saga_with_personal_data_has_doors() -> None:
    made = runs(20, 20)
    with_doors = [run for run in made if run.has_doors]

    assert 3 <= len(with_doors) <= 12
    assert any(
        "has forgotten one of the persons" in line for run in with_doors for line in run.trace
    )
    assert not any(DOOR_KINDS & run.faults for run in made if not run.has_doors)
    assert Summary(made, 1.0).with_doors == len(with_doors)


def test_nothing_of_a_run_is_left_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or ten thousand of them would need gigabytes."""
    worlds: list[weakref.ref[World]] = []

    class Noted(World):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            worlds.append(weakref.ref(self))

    monkeypatch.setattr(simulation_module, "World", Noted)
    made = runs(20, 10)

    assert {run.has_doors for run in made} == {True, False}
    assert len(worlds) == len(made)
    assert [run.seed for run, world in zip(made, worlds, strict=True) if world()] == []


def test_all_processes_end_with_a_run_even_if_one_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or what cleans up would run without a loop, whenever the garbage is collected."""
    ended: list[str] = []

    end = SimulatedLoop.end

    def fails_for_one(loop: SimulatedLoop, process: SimulatedProcess) -> None:
        end(loop, process)
        if process.name == "world":
            ended.clear()  # Others may have been killed before.
            raise ValueError("it cannot")
        ended.append(process.name)

    with closing(Simulation()) as simulation:
        monkeypatch.setattr(SimulatedLoop, "end", fails_for_one)
        with pytest.raises(ValueError, match="it cannot"):
            simulation.run(20)

    assert {name.partition("-")[0] for name in ended} == {
        participant.name for participant in SAGA.participants
    }


def test_an_outside_that_opens_nothing_it_is_told_of_persons_is_not_covered() -> None:
    provider = replace(PROVIDER, opens=None)

    assert not [line for line in uncovered(SAGA, ()) if "`opens`" in line]
    (line,) = [line for line in uncovered(SAGA.with_(provider), ()) if "`opens`" in line]
    assert "provider" in line


def test_a_saga_without_personal_data_has_no_doors() -> None:
    with closing(Simulation(saga=ERRANDS)) as simulation:
        assert not any(simulation.run(seed).has_doors for seed in range(20))


def test_a_load_whose_values_leave_no_room_for_a_tag_is_named() -> None:
    def load(chance: random.Random, sagas: int) -> Plan:
        drawn = SAGA.load
        assert drawn is not None
        plan = drawn(chance, sagas)
        given = [
            replace(each, command=with_personal(each.command, lambda _: "x" * 128))
            for each in plan.given
        ]
        return replace(plan, given=given)

    with_doors = next(run.seed for run in runs(20, 20) if run.has_doors)
    simulation = Simulation(saga=replace(SAGA, load=load))
    with closing(simulation), pytest.raises(SagaError, match="PlaceOrder takes no value"):
        simulation.run(with_doors)


def test_neither_the_process_nor_the_seed_of_its_hashes_makes_a_difference() -> None:
    command = ["-m", "saga.cli", "verify", "--simulate", "--seed", "20", "--seeds", "3", "--json"]
    printed = subprocess.run(
        [sys.executable, *command],
        env=os.environ | {"PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    assert json.loads(printed)["digest"] == Summary(runs(20, 3), 1.0).digest


# --- broken kernels ------------------------------------------------------------------------------


class AcknowledgesFirst(Deliveries):
    """Acknowledges before the commit."""

    def _take(self, intake: _Intake, delivery: Delivery) -> None:
        super()._settle(intake, delivery)
        super()._take(intake, delivery)

    def _settle(self, intake: _Intake, delivery: Delivery) -> None:
        pass


class AcknowledgesAllBelow(Deliveries):
    """Acknowledges, with a delivery that is done, those before it that are not."""

    def _settle(self, intake: _Intake, delivery: Delivery) -> None:
        below = intake.acknowledger
        for tag in range(below._floor + 1, delivery.tag + 1):
            if tag not in below._above:
                below.resolve(tag)


class SetsAsideUnconfirmed(Deliveries):
    """Acknowledges before the copy that waits, or is dead, is confirmed."""

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        copying = super()._set_aside(delivery, failure, wait_ms, traceparent)
        self._copying = asyncio.create_task(copying)


class ForgetsTries(Deliveries):
    """Sets a message aside as if it had failed for the first time."""

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        values, _ = frames.split(delivery.raw)
        fields, _ = frames.fields_in(values.pop("headers", b""))
        kept = [field for field in fields if field.name != ATTEMPTS.encode()]
        delivery.raw = frames.join({**values, "headers": frames.table_of(kept)})
        delivery._properties = None
        await super()._set_aside(delivery, failure, wait_ms, traceparent)


class PublishesFirst(Kernel):
    """Publishes before the commit."""

    def _decide(
        self, group: Any, confirmed: Sequence[str], connection: Connection, *, pessimistic: bool
    ) -> Any:
        results, outgoing = super()._decide(group, confirmed, connection, pessimistic=pessimistic)
        self._outbox.publish(outgoing)
        return results, []


class KeepsInboxRows(Kernel):
    """Keeps the inbox row of a message whose question to the provider then fails."""

    def _decide(
        self, group: Any, confirmed: Sequence[str], connection: Connection, *, pessimistic: bool
    ) -> Any:
        results, outgoing = super()._decide(group, confirmed, connection, pessimistic=pessimistic)
        asking = {
            work.envelope.key: work.digest
            for work, result in zip(group, results, strict=True)
            if isinstance(result, Decision) and result.intent is not None
        }
        with writing(connection) as writes:
            self._tables.mark_done(writes, asking, self._clock())
        return results, outgoing


class LooksIntoNoInbox(Kernel):
    """Decides on a message as if it had never come before."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tables = copy(self._tables)
        self._tables.already_done = lambda *_: {}  # type: ignore[method-assign]  # that is it


class KeepsNoInbox(LooksIntoNoInbox):
    """Does not note which messages it has decided on either."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tables.mark_done = lambda *_: None  # type: ignore[method-assign]  # that is it


class ForgetsTheOthers(Kernel):
    """Of a group whose data was refused, tries only the first message again."""

    _whole: Sequence[Any] = ()

    async def _commit(self, group: Any, confirmed: Sequence[str]) -> None:
        if self._whole:
            if group[0] is self._whole[0]:
                await super()._commit(group, confirmed)
            return
        self._whole = group
        try:
            await super()._commit(group, confirmed)
        finally:
            self._whole = ()


class BlamesTheMessage(Kernel):
    """Takes a database that is away for a message that cannot be handled."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._database = copy(self._database)
        self._database.is_away = lambda error: False  # type: ignore[method-assign]  # that is it


class DoesNothingThatIsDue(Timekeeper):
    """Cancels no order whose deadline has passed."""

    async def _fire(self, found: DueState) -> None:
        pass


class TakesItForDue(Kernel):
    """Does what was found to be due without asking whether it is."""

    async def fire(self, firing: Firing) -> Done | Duplicate:
        return await self._done_locally(firing.envelope(self._participant.name, self._clock()))


class DoesItAnew(TakesItForDue):
    """Takes each look of each replica at what is due for another one."""

    async def fire(self, firing: Firing) -> Done | Duplicate:
        return await super().fire(replace(firing, sequence=self._new_id().int))


class DoesItTwice(DoesItAnew):
    """Does again what it has just done."""

    async def fire(self, firing: Firing) -> Done | Duplicate:
        await super().fire(firing)
        return await super().fire(firing)


class LooksAhead(Timekeeper):
    """Finds due what will be in an hour."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        kept = self._clock
        self._clock = lambda: kept() + timedelta(hours=1)


class TakesItsTime(Timekeeper):
    """Gives others time to be faster."""

    async def _fire(self, found: DueState) -> None:
        await asyncio.sleep(3.0)
        await super()._fire(found)


class ForgetsWhatIsDue(Kernel):
    """Writes no row that says when something is due."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._tables = copy(self._tables)
        self._tables.states = {kind: copy(t) for kind, t in self._tables.states.items()}
        for table in self._tables.states.values():
            if table.has_dues:
                table._row = partial(self._without, table._row)  # type: ignore[method-assign]  # that is it

    def _without(self, row: Any, *arguments: Any) -> dict[str, Any]:
        return {**row(*arguments), DUE_AT: None}


class KeepsWhatWasDue(ForgetsWhatIsDue):
    """Leaves in a row what was due about its state first."""

    def _without(self, row: Any, *arguments: Any) -> dict[str, Any]:
        state, _ = arguments
        first = getattr(state, "deadline", None)
        return {**row(*arguments), DUE_AT: first}


class TakesAnyAnswerForAConfirm(BrokerPublisher):
    """Takes an event for published whatever becomes of it."""

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        await super().publish_events(events)
        return [None] * len(events)


class TrustsInTheHistory(BrokerPublisher):
    """Publishes without looking whether the broker has its streams back."""

    async def _check_history(self) -> None:
        pass


class ForgetsUnconfirmed(Outbox):
    """Removes the rows of events that are not confirmed yet."""

    def publish(self, rows: Sequence[Outgoing]) -> None:
        super().publish(rows)
        self.give_back([row.event_id for row in rows])


class LooksForNothingLeft(Outbox):
    """Publishes nothing that a crash has left."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lease.take_over = lambda *_, **__: 0  # type: ignore[method-assign]  # that is it


class PublishesEachOnce(Outbox):
    """Never tries again what the broker did not confirm."""

    async def _sweep(self) -> None:
        self._swept = True


class KeepsTooLittle(Kept):
    """Keeps only the first event of each transaction."""

    def store(self, writes: WriteSet, bodies: Sequence[bytes], position: int, owner: str) -> None:
        super().store(writes, bodies[:1], position, owner)


class KeepsNothing(Kept):
    """Trusts in the broker, and in the history."""

    def store(self, writes: WriteSet, bodies: Sequence[bytes], position: int, owner: str) -> None:
        pass


class AcknowledgesTwice(Deliveries):
    """Acknowledges each delivery a second time."""

    def _settle(self, intake: _Intake, delivery: Delivery) -> None:
        super()._settle(intake, delivery)
        asyncio.get_running_loop().call_later(0.1, self._again, intake, delivery.tag)

    def _again(self, intake: _Intake, tag: int) -> None:
        with contextlib.suppress(ChannelLost):
            intake.channel.ack(tag)


class GivesUpWithTheDatabase(Outbox):
    """Ends where the database is away, and leaves it to its supervisor to start it again."""

    async def _patiently(self, attempt: Any, loop: RetryLoop) -> Any:
        return await attempt()


class StumblesOverTheBroker(BrokerPublisher):
    """Makes a mistake of its own of a broker that is away."""

    async def open(self, patience_seconds: float = 0.0) -> PublishChannel:
        try:
            return await super().open(patience_seconds)
        except BrokerError:
            raise ZeroDivisionError("tries per second, in no seconds")  # noqa: B904 - without a cause


class NeverRests(Kernel):
    """Looks for work again and again, and takes none."""

    def _take(self) -> list[Work]:
        self._wake.set()
        return []

    async def _woken(self) -> bool:
        return True


class TurnsForEver(Kernel):
    """Waits for work without letting anything else happen."""

    async def handle(self, *arguments: Any, **options: Any) -> Outcome:
        while True:
            self._wake.set()


class TakesMoreThanItPublishes(Outbox):
    """Is never too busy for more."""

    @property
    def busy(self) -> bool:
        return False


class ForgetsWhatItHasNoRoomFor(Outbox):
    """Counts only what is in memory as waiting for the broker."""

    @property
    def backlog(self) -> int:
        return len(self._queue)


class TakesAllForNormal(Kernel):
    """Takes messages as they come, urgent or not."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        lanes = self._lanes
        lanes._line = lambda priority: lanes._normal  # type: ignore[method-assign]  # that is it


class TakesUrgentOnly(Kernel):
    """Takes normal messages only where none is urgent."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._lanes._share.of = lambda places, first, second: (  # type: ignore[method-assign]  # that is it
            (min(places, first), 0) if first else (0, min(places, second))
        )


class ForgetsPriorities(Kernel):
    """Publishes all that comes of a message as normal."""

    def take(self, envelope: Envelope[Any], *arguments: Any, **options: Any) -> Work:
        normal = envelope.model_copy(update={"priority": Priority.NORMAL})
        return super().take(normal, *arguments, **options)


class HasOnePolicy(Deliveries):
    """Tries everything again as often as its participant does where nothing else is said."""

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        if failure.reason is Reason.FAILED:
            tries = attempts_in(ours_in(delivery, failure.queue)) + 1
            wait_ms = self._participant.retry_of(None).wait_ms(tries, failure.error)
        await super()._set_aside(delivery, failure, wait_ms, traceparent)


class TriesInTheSameRhythm(Deliveries):
    """Waits as long after each try."""

    async def _set_aside(
        self,
        delivery: Delivery,
        failure: Failure,
        wait_ms: int | None = None,
        traceparent: str | None = None,
    ) -> None:
        wait_ms = wait_ms and RUNGS_MS[1]
        await super()._set_aside(delivery, failure, wait_ms, traceparent)


def with_payment(compensation: Any) -> Saga:
    """The saga in which payments are compensated so, and patiently: by a policy of its own."""
    policies = {compensation: Retry(max_calls=12, delay=15.0, max_delay=300.0)}
    payment = Participant(
        PAYMENT.name,
        charge,
        record_charge,
        compensation,
        record_refund,
        retry=Retry(max_calls=4, delay=0.5, max_delay=5.0),
        retries=policies,
        package=PAYMENT.package,
    )
    return SAGA.with_(payment)


def forgets_a_refund_that_was_cut_short(
    event: OrderCancelled, payment: Payment
) -> PaymentVoided | SettleCharge | Refund | None:
    return None if payment.phase is Phase.UNDOING else compensate(event, payment)


def forgets_a_charge_that_was_cut_short(
    event: OrderCancelled, payment: Payment
) -> PaymentVoided | SettleCharge | Refund | None:
    return None if payment.phase is Phase.SETTLING else compensate(event, payment)


def forgets_every_refund(
    event: OrderCancelled, payment: Payment
) -> PaymentVoided | SettleCharge | Refund | None:
    decided = compensate(event, payment)
    return None if isinstance(decided, Refund) else decided


class AsksTwice(Kernel):
    """Asks the outside again where it has just answered."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._ask = {intent: partial(self._twice, ask) for intent, ask in self._ask.items()}

    async def _twice(self, ask: Ask, intent: Intent) -> Answer:
        with contextlib.suppress(Exception):
            await ask(intent)
        return await ask(intent)


class KeepsForEver(Kept):
    """Removes nothing."""

    async def _prune(self) -> int:
        return 0


class TakesInClear(Deliveries):
    """Seals no command from outside."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._intake_seal = None


class SetsAsideInClear(Deliveries):
    """Sets a message aside as it came, and not as it was sealed."""

    async def _fail(
        self,
        delivery: Delivery,
        intake: _Intake,
        envelope: Envelope[Any],
        attempts: int,
        outcome: Failed,
        sealed: SealedCommand | None,
    ) -> None:
        await super()._fail(delivery, intake, envelope, attempts, outcome, None)


class BuriesInClear(Deliveries):
    """Looks for no names in what it cannot read."""

    async def _bury(self, delivery: Delivery, failure: Failure) -> None:
        seal, self._intake_seal = self._intake_seal, None
        try:
            await super()._bury(delivery, failure)
        finally:
            self._intake_seal = seal


class SealsUnderItsOwn(KeyStore):
    """Seals under the key that it has made, also where another was faster."""

    def _make(self, digests: Sequence[bytes]) -> list[PersonKey]:
        database = self._database
        made: list[PersonKey] = []

        def add(rows: Sequence[NewPerson]) -> list[PersonKey] | None:
            made.extend(PersonKey(r.digest, r.person_id, r.wrapped, r.wrapped_by) for r in rows)
            return database.add(rows)

        self._database = cast(KeyDatabase, SimpleNamespace(add=add))
        try:
            super()._make(digests)
        finally:
            self._database = database
        return made


class KnowsNobodyAgain(KeyStore):
    """Looks for each value as no process has before."""

    def _digest(self, value: str) -> bytes:
        return super()._digest(value + str(self._random_bytes(4)))


class RemembersKeysForEver(KeyStore):
    """Goes on using a key for as long as its process lives."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for cache in (self._known, self._clear, self._sealed):
            cache._seconds = math.inf


class BelievesAnyText(Persons):
    """Takes what looks sealed for sealed."""

    def _opens_at_once(self, value: str) -> bool:
        return True

    async def open_now(self, value: str) -> str:
        return value if sealed(value) else await super().open_now(value)


class ForgetsAtOnce(Forgetter):
    """Destroys a key whatever is open."""

    async def _until_nothing_is_open(self, *_: object) -> None:
        pass


class TakesForgottenForForged(Persons):
    """Says of a text whose key is gone that it is none."""

    async def open_now(self, value: str) -> str:
        try:
            return await super().open_now(value)
        except Forgotten as error:
            raise Unsealable(str(error)) from error


TURNS = itertools.cycle((True, False))


def with_mails(**reactions: Any) -> Saga:
    """The saga whose notification service reacts so."""
    functions = [
        reactions.get(reaction.name, reaction.function) for reaction in NOTIFICATION.reactions
    ]
    mails = Participant(
        NOTIFICATION.name,
        *functions,
        retry=NOTIFICATION.retry_of(None),
        package=NOTIFICATION.package,
    )
    return SAGA.with_(mails)


def knows_of_no_mail_whether_it_was_sent(
    answer: SendAnswered, notification: Notification
) -> NotificationSent | PutOff | NotificationUnconfirmed | NotificationDismissed | None:
    unknown = answer.model_copy(update={"result": Result.UNKNOWN})
    return record(unknown, notification)


def sends_no_mail(
    event: OrderConfirmed, notification: Notification
) -> tuple[NotificationBegun, Send] | tuple[NotificationBegun, NotificationUnconfirmed] | None:
    decided = tell_confirmed(event, notification)
    if not isinstance(decided, tuple):
        return None
    begun, _ = decided
    return begun, NotificationUnconfirmed(order_id=event.order_id, detail="was not tried")


def resends_nothing(command: ResendNotification, notification: Notification) -> Resend | None:
    return None


def dismisses_now_and_then(
    command: DismissNotification, notification: Notification
) -> NotificationDismissed | None:
    return dismiss(command, notification) if next(TURNS) else None


def dismisses_nothing(
    command: DismissNotification, notification: Notification
) -> NotificationDismissed | None:
    return None


@dataclass(frozen=True)
class Twin:
    """A broken kernel, and the rules that catch it, each within so many seeds."""

    parts: PartsUnderTest
    rules: frozenset[str]
    seeds: int = SOON
    saga: Saga | None = None

    @classmethod
    def of(cls, *rules: str, seeds: int = SOON, saga: Saga | None = None, **parts: Any) -> Twin:
        return cls(PartsUnderTest(**parts), frozenset(rules), seeds, saga)

    @property
    def name(self) -> str:
        kinds: list[type] = [getattr(self.parts, part.name) for part in fields(self.parts)]
        return next(kind.__name__ for kind in reversed(kinds) if kind.__module__ == __name__)

    def missed(self) -> Collection[str]:
        """The rules that have not caught it within its seeds."""
        missing = set(self.rules)
        simulated = Simulation(self.parts, self.saga, stuck_seconds=STUCK_SECONDS)
        with closing(simulated) as simulation:
            for seed in range(self.seeds):
                missing -= {found.rule for found in simulation.run(seed).violations}
                if not missing:
                    break
        return missing


BROKEN = [
    Twin.of("saga_lost", deliveries=AcknowledgesFirst),
    Twin.of("unhandled", deliveries=AcknowledgesTwice),
    Twin.of("published_uncommitted", kernel=PublishesFirst),
    Twin.of("payment_unsettled", kernel=KeepsInboxRows),
    Twin.of("lost", kernel=KeepsNoInbox),
    Twin.of("infrastructure_blamed", kernel=BlamesTheMessage),
    Twin.of("process_ended", outbox=GivesUpWithTheDatabase),
    Twin.of("no_progress", kernel=NeverRests),
    Twin.of("no_progress", kernel=TurnsForEver),
    Twin.of("unpublished", publisher=TakesAnyAnswerForAConfirm),
    Twin.of("unpublished", publisher=TrustsInTheHistory),
    Twin.of("unpublished", outbox=ForgetsUnconfirmed),
    Twin.of("never_at_rest", outbox=LooksForNothingLeft),
    Twin.of("event_in_no_book", seeds=3 * SOON, kept=KeepsNothing),
    Twin.of("due_in_vain", "wrong_ending", seeds=2 * SOON, kernel=DoesItTwice),
    Twin.of("due_in_vain", kernel=TakesItForDue, timekeeper=TakesItsTime),
    Twin.of("due_early", kernel=TakesItForDue, timekeeper=LooksAhead),
    Twin.of("due_lost", kernel=KeepsWhatWasDue),
    Twin.of("tries_not_counted", seeds=2 * SOON, deliveries=ForgetsTries),
    Twin.of("taken_while_busy", outbox=TakesMoreThanItPublishes),
    Twin.of("normal_starves", kernel=TakesUrgentOnly),
    Twin.of("priority_changed", kernel=ForgetsPriorities),
    Twin.of("effect_twice", kernel=AsksTwice),
    Twin.of("kept_too_long", kept=KeepsForEver),
    Twin.of("retried_otherwise", deliveries=TriesInTheSameRhythm),
    Twin.of("in_clear", deliveries=TakesInClear),
    Twin.of("in_clear", deliveries=BuriesInClear),
    Twin.of("sealed_otherwise", key_store=KnowsNobodyAgain),
    Twin.of("opened_after", key_store=RemembersKeysForEver),
    Twin.of("forgotten_while_open", seeds=2 * SOON, forgetter=ForgetsAtOnce),
    Twin.of("forgotten_unsettled", persons=TakesForgottenForForged, forgetter=ForgetsAtOnce),
    Twin.of("forged_taken", persons=BelievesAnyText),
]
RARELY_BROKEN = [
    # Found soon, but not as soon as another one that breaks the same rule.
    Twin.of("process_ended", publisher=StumblesOverTheBroker),
    Twin.of("never_at_rest", outbox=PublishesEachOnce),
    Twin.of("due_in_vain", seeds=2 * SOON, kernel=DoesItAnew),
    Twin.of("taken_while_busy", seeds=2 * SOON, outbox=ForgetsWhatItHasNoRoomFor),
    Twin.of("retried_otherwise", saga=with_payment(compensate), deliveries=HasOnePolicy),
    Twin.of("due_late", seeds=LATER, timekeeper=DoesNothingThatIsDue),
    Twin.of("due_late", seeds=LATER, kernel=ForgetsWhatIsDue),
    Twin.of("urgent_waits", seeds=LATER, kernel=TakesAllForNormal),
    Twin.of("lost", seeds=LATER, deliveries=AcknowledgesAllBelow),
    Twin.of("lost", seeds=LATER, deliveries=SetsAsideUnconfirmed),
    Twin.of("lost", seeds=LATER, kernel=LooksIntoNoInbox),
    Twin.of("never_at_rest", seeds=LATER, kernel=ForgetsTheOthers),
    Twin.of("event_in_no_book", seeds=LATER, kept=KeepsTooLittle),
    Twin.of("in_clear", seeds=LATER, deliveries=SetsAsideInClear),
    Twin.of("cannot_be_opened", seeds=LATER, key_store=SealsUnderItsOwn),
]


TO_SEALED_NAMES = Twin.of(
    "named_otherwise",
    saga=SAGA.with_(replace(MAIL_SERVER, opens=lambda desk, _: MAIL_SERVER.ask(desk))),
)
"""A notification service that opens no name."""


def test_a_mail_to_a_sealed_name_is_noticed() -> None:
    assert not TO_SEALED_NAMES.missed()


@pytest.mark.parametrize("twin", BROKEN, ids=attrgetter("name"))
def test_a_broken_kernel_is_caught_by_the_rules_for_it(twin: Twin) -> None:
    assert not twin.missed()


@pytest.mark.long
@pytest.mark.parametrize("twin", RARELY_BROKEN, ids=attrgetter("name"))
def test_a_kernel_is_caught_that_is_broken_only_when_several_things_go_wrong(twin: Twin) -> None:
    assert not twin.missed()


MAILS = [
    ({"record": knows_of_no_mail_whether_it_was_sent}, "left_unexplained"),
    ({"tell_confirmed": sends_no_mail}, "left_unexplained"),
    ({"resend": resends_nothing}, "decided_in_vain"),
    ({"dismiss": dismisses_nothing}, "decided_in_vain"),
    ({"dismiss": dismisses_now_and_then}, "impure"),
]
"""What is wrong with how a service deals with mails, and the rule that finds it."""


@pytest.mark.parametrize(("reactions", "rule"), MAILS)
def test_what_is_left_to_people_has_a_reason_and_an_end(
    reactions: dict[str, Any], rule: str
) -> None:
    assert not Twin.of(rule, seeds=2 * SOON, saga=with_mails(**reactions)).missed()


@pytest.mark.parametrize(
    "compensation",
    [
        forgets_a_refund_that_was_cut_short,
        forgets_a_charge_that_was_cut_short,
        forgets_every_refund,
    ],
)
def test_a_refund_that_never_happened_is_missed_soon(compensation: Any) -> None:
    with closing(Simulation(saga=with_payment(compensation))) as simulation:
        assert any(simulation.run(seed).violations for seed in range(2 * SOON))


def test_each_rule_of_the_simulation_catches_a_broken_kernel() -> None:
    shown = {rule for twin in (*BROKEN, *RARELY_BROKEN, TO_SEALED_NAMES) for rule in twin.rules}
    shown |= {rule for _, rule in MAILS}
    assert not set(RULES) - shown


def test_a_rule_that_has_no_name_is_no_verdict() -> None:
    with pytest.raises(KeyError, match="never_heard_of"):
        violation("never_heard_of", "", "")


REACHED: set[str] = set()
"""The limits that the parts below have come to."""


class SpiedOutbox(Outbox):
    """Tells which of its limits it has come to."""

    @property
    def busy(self) -> bool:
        if super().busy:
            REACHED.add("backlog")
        return super().busy

    def publish(self, rows: Sequence[Outgoing]) -> None:
        if len(self._held) + len(rows) > self._held_max:
            REACHED.add("held")
        super().publish(rows)

    def _publish_waiting(self) -> None:
        super()._publish_waiting()
        if self._queue and len(self._batches) == self._batches_max:
            REACHED.add("batches")

    async def _publish_batch(self, batch: Sequence[Outgoing]) -> None:
        if self._queue and len(batch) == self._batch_max:
            REACHED.add("batch")
        await super()._publish_batch(batch)


class SpiedKernel(Kernel):
    """Tells which of its limits it has come to."""

    def _take(self) -> list[Work]:
        group = super()._take()
        if self._lanes and len(group) == self._group_max:
            REACHED.add("group")
        return group

    async def _ask_outside(self, work: Work, intent: Intent) -> None:
        if self._asking.locked():
            REACHED.add("asking")
        await super()._ask_outside(work, intent)


class SpiedKept(Kept):
    """Tells which of its limits it has come to."""

    async def _prune(self) -> int:
        too_much = self._size > self._bytes_max
        removed = await super()._prune()
        if removed:
            REACHED.add("kept bytes" if too_much else "kept minutes")
        if removed == self._pruned_max:
            REACHED.add("removed at once")
        return removed


def test_every_limit_is_reached() -> None:
    limits = {"backlog", "held", "batches", "batch", "group", "asking"}
    limits |= {"kept bytes", "kept minutes", "removed at once"}
    REACHED.clear()
    spied = PartsUnderTest(kernel=SpiedKernel, outbox=SpiedOutbox, kept=SpiedKept)
    with closing(Simulation(spied)) as simulation:
        for seed in range(SOON):
            assert simulation.run(seed).violations == ()
            if limits == REACHED:
                return
    assert limits - REACHED == set()


@pytest.fixture(scope="module")
def broken() -> Run:
    simulation = Simulation(PartsUnderTest(kernel=PublishesFirst))
    return next(run for run in map(simulation.run, range(SOON)) if run.violations)


def test_what_is_wrong_is_shown_with_the_way_to_see_all_of_it(
    broken: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    again = f"saga verify --simulate --seed {broken.seed} --seeds 1"

    show(Summary([broken, replace(broken, violations=())], 1.0))
    shown = capsys.readouterr().out
    assert broken.trace[-1] in shown
    assert broken.trace[0] not in shown
    assert "published_uncommitted" in shown
    assert again in shown
    assert f"1 of them are broken: {broken.seed}" in shown

    show(Summary([broken], 1.0))
    assert broken.trace[0] in capsys.readouterr().out


def test_what_is_wrong_is_in_the_json_document(broken: Run) -> None:
    document = summary_as_json(Summary([broken], 1.0))
    assert document["ok"] is False
    (found,) = document["broken"]
    assert found["seed"] == broken.seed
    assert found["violations"][0]["rule"] == "published_uncommitted"
    assert found["trace"] == broken.trace


@pytest.mark.parametrize(
    "options",
    [
        ["--seeds", "3"],
        ["--simulate", "--scenario", "one order"],
        ["--simulate", "--seeds", "0"],
        ["--simulate", "--seed", "some"],
        ["--simulate", "--jobs", "1000"],
    ],
)
def test_what_makes_no_run_is_wrong_usage(options: list[str]) -> None:
    assert CliRunner().invoke(app, ["verify", *options]).exit_code == 2


async def test_no_channel_is_opened_on_a_connection_that_is_lost() -> None:
    trace = SimpleNamespace(note=lambda *_: None)
    network = SimpleNamespace(world=None, trace=trace, _connections={})
    connection = network_module.SimulatedConnection(
        cast(Network, network), cast(SimulatedProcess, SimpleNamespace(name="order")), "consumer"
    )
    connection._lose(ChannelLost("the connection was reset"))

    with pytest.raises(ChannelLost):
        await asyncio.wait_for(connection.open_channel(), 1)


def test_a_fault_explains_what_is_raised_from_it_and_not_what_comes_while_it_is_handled() -> None:
    def meets_it(*, names_it: bool) -> Exception:
        try:
            try:
                raise fault(ConnectionError("the broker is away"))
            except ConnectionError as error:
                if names_it:
                    raise BrokerError("cannot connect") from error
                raise ZeroDivisionError  # noqa: B904 - what this is about
        except Exception as error:
            return error

    assert is_fault(meets_it(names_it=True))
    assert not is_fault(meets_it(names_it=False))
    assert not is_fault(None)


def test_a_lease_has_no_versions_so_it_meets_no_other_replicas() -> None:
    named = ("database_away", "conflict", "data_refused", "commit_unknown")
    weather = SimpleNamespace(
        rates=SimpleNamespace(**{name: name for name in named}),
        strikes=lambda kind, where, what: kind == "conflict",
    )
    store = SimpleNamespace(run=lambda work: "done")
    trace = SimpleNamespace(note=lambda *_: None)
    parts: list[Any] = [store, "replica", None, weather, trace]
    database: Any = SimulatedDatabase(*parts, shared=True)
    tables = Tables(sa.MetaData())
    lease = Lease(tables, "replica", shared=True, seconds=10.0, clock=utc_now)

    assert database._commit(partial(lease.take_over, lapsed=True)) == "done"
    with pytest.raises(VersionConflict):
        database._commit(partial(print))
