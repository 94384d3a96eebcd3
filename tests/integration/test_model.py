"""The model of `saga verify` covers what it stands for.

Whatever is done to the real kernel, it comes to nothing that the model does not know; and the
model's provider answers as the sandbox does.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

import inventory_service.store
import order_service.store
import payment_service.store
from order_saga import SAGA
from order_saga.outsides import DeskGateway
from order_saga.scenarios import AFTER, BEFORE
from order_service.domain import CancelOrder, Order
from payment_service.app import build_with
from payment_service.gateway import Account, GatewayUnavailable, PaymentGateway, SandboxGateway
from payment_service.ledger import (
    ChargeOutcome,
    Decline,
    GatewayRefused,
    Ledger,
    LedgerCharge,
    Receipt,
)
from saga.choreography import Participant, State
from saga.envelope import Decoder, Envelope, source_of, wrap
from saga.message import Command, Priority
from saga.outside import Desk
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.step import Firing
from saga.runtime.kernel.tables import Tables
from saga.runtime.tasks import cancel_all
from saga.verify import Model, model_of, verify
from saga.view import View, Violation
from tests.polling import DEADLINE_SECONDS

TABLES: dict[str, Tables] = {
    "inventory": inventory_service.store.TABLES,
    "order": order_service.store.TABLES,
    "payment": payment_service.store.TABLES,
}
ORDER = UUID(int=1)

Visible = tuple[Hashable, ...]
"""What is known to whom, and what was published: all that the model's rules look at."""


def visible(
    states: Iterable[State], ledger: Iterable[LedgerCharge], events: Iterable[Envelope[Any]]
) -> Visible:
    return (
        frozenset(states),
        frozenset(ledger),
        frozenset((e.source, e.type, e.sequence, e.data) for e in events),
    )


def known_to(model: Model) -> set[Visible]:
    """Whatever the model says can be seen."""
    known: set[Visible] = set()

    def look(view: View, at_rest: bool) -> Iterable[Violation]:
        states = [state for of in view.known.values() for state in of.values()]
        events = view.events(*model.choreography.events)
        known.add(visible(states, view.books(Ledger) or (), events))
        return ()

    assert verify(replace(model, judge=look)).ok
    return known


class HeldProvider:
    """A provider that waits before it acts and before it answers, each time to be told to go on."""

    def __init__(self, decision: ChargeOutcome) -> None:
        self._desk = Desk(Ledger(), decision)
        self._provider = DeskGateway(self._desk)
        self.held: list[asyncio.Future[bool]] = []
        """Told False, it is unavailable."""

    @property
    def ledger(self) -> Iterable[LedgerCharge]:
        return self._desk.books

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        await self._wait()
        answer = await self._provider.charge(
            key, customer=customer, currency=currency, amount_cents=amount_cents
        )
        await self._wait()
        return answer

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        await self._wait()
        await self._provider.refund(key, currency=currency, amount_cents=amount_cents)
        await self._wait()

    async def close(self) -> None:
        pass

    async def _wait(self) -> None:
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.held.append(told)
        try:
            if not await told:
                raise GatewayUnavailable("held up for too long")
        finally:
            if told in self.held:
                self.held.remove(told)


def _books(tables: Tables, connection: Connection) -> tuple[list[State], list[bytes]]:
    """Every state there is, and the events in the outbox."""
    states: list[State] = []
    for table in tables.states.values():
        keys = list(connection.scalars(sa.select(*table.table.primary_key)))
        states += [state for state, _ in table.load(connection, keys).values()]
    return states, list(connection.scalars(sa.select(tables.outbox.c.body)))


class Process:
    """One service's kernel and outbox on its database: runs until it is killed."""

    def __init__(self, system: System, participant: Participant, database: Database) -> None:
        self.participant, self.database = participant, database
        outbox = Outbox(participant.name, database, TABLES[participant.name], system)
        ask = build_with(system.provider).ask if participant.name == "payment" else {}
        self.kernel = Kernel(
            participant,
            database,
            TABLES[participant.name],
            outbox,
            ask,
            clock=lambda: system.now,
        )
        self._running = [asyncio.create_task(work) for work in (self.kernel.run(), outbox.run())]
        self.handling: list[asyncio.Task[Any]] = []

    def take(self, work: Coroutine[Any, Any, object]) -> None:
        self.handling.append(asyncio.create_task(work))

    async def kill(self) -> None:
        """Leave everything as it is; what the database is just at, it still does, or not."""
        await cancel_all(*self._running, *self.handling)


class System:
    """Three services and the world, done to by chance; seeded."""

    def __init__(self, model: Model, seed: int) -> None:
        self.random = random.Random(seed)
        self.model = model
        self.provider = HeldProvider(
            self.random.choice([ChargeOutcome.CHARGED, ChargeOutcome.CARD_DECLINED])
        )
        self.now = BEFORE
        self.processes: dict[str, Process] = {}
        self.published: dict[str, Envelope[Any]] = {}
        self._decoder = Decoder(model.choreography.events)
        ((_, place),) = model.sent
        assert isinstance(place, Command)
        self._place = self._envelope(place, "place")

    async def start(self, folder: Path) -> None:
        for participant in self.model.choreography.participants:
            name = participant.name
            database = await open_database(f"sqlite:///{folder / name}.db", TABLES[name])
            self.processes[name] = Process(self, participant, database)
        (start,) = self.random.choices(list(self.model.starts.values()), [7, 1, 1, 1])
        for name, command in start:
            await self.processes[name].kernel.give(command)

    async def close(self) -> None:
        for name, process in self.processes.items():
            await self._kill(name)
            await process.database.close()

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """The broker: whatever comes is kept, and delivered when chance wants it."""
        for event in events:
            envelope = self._decoder.decode(event.body)
            self.published[envelope.id] = envelope
        return [None] * len(events)

    async def step(self) -> None:
        """Do something to the system, and wait until it waits for us."""
        weights = {
            self.deliver: 8,
            self.go_on: 8,
            self.kill: 2,
            self.kill_at_work: 2,
            self.empty_an_inbox: 2,
            self.cancel: 1,
            self.expire: 1,
        }
        (do,) = self.random.choices(list(weights), list(weights.values()))
        await do()
        await self.settle()

    async def settle(self) -> None:
        """Wait until whatever is being handled waits for the provider, or is a message again that
        does."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            while self._waiting() < sum(  # noqa: ASYNC110 - many may be the last
                not task.done() for process in self.processes.values() for task in process.handling
            ):
                await asyncio.sleep(0.001)

    def _waiting(self) -> int:
        again = (len(same) for p in self.processes.values() for same in p.kernel._asked.values())
        return len(self.provider.held) + sum(again)

    async def deliver(self) -> None:
        """Some messages, to whom they concern, all at once; most have been there before."""
        messages = [self._place, *self.published.values()]
        newer_more_often = range(1, len(messages) + 1)
        for message in self.random.choices(messages, newer_more_often, k=3):
            for participant in self._receivers(message):
                if self.random.random() < 0.7:
                    process = self.processes[participant.name]
                    process.take(process.kernel.handle(message))

    async def go_on(self) -> None:
        """The provider hears, answers or fails."""
        if self.provider.held:
            told = self.random.choice(self.provider.held)
            self.provider.held.remove(told)  # Now, not once it runs: it waits no more.
            told.set_result(self.random.random() < 0.8)

    async def cancel(self) -> None:
        if await self._order_is_known():
            await self.processes["order"].kernel.give(CancelOrder(order_id=ORDER))

    async def expire(self) -> None:
        if await self._order_is_known():
            self.now = self.random.choice([BEFORE, AFTER])
            order = await self._order()
            if order is not None and (firing := Firing.of(order)) is not None:
                await self.processes["order"].kernel.fire(firing)
            self.now = BEFORE

    async def kill(self) -> None:
        """A process dies, and is started again on what it has left."""
        name, process = self.random.choice(list(self.processes.items()))
        await self._kill(name)
        self.processes[name] = Process(self, process.participant, process.database)

    async def _kill(self, name: str) -> None:
        if name == "payment":
            for held in self.provider.held:
                held.cancel()
        await self.processes[name].kill()

    async def kill_at_work(self) -> None:
        await self.deliver()
        for _ in range(self.random.randint(0, 5)):
            await asyncio.sleep(0)
        await self.kill()

    async def empty_an_inbox(self) -> None:
        name, process = self.random.choice(list(self.processes.items()))
        inbox = TABLES[name].inbox
        await process.database.transaction(lambda connection: connection.execute(inbox.delete()))

    async def seen(self) -> Visible:
        """What rules would look at. Call it while nothing is being committed."""
        states: list[State] = []
        events: dict[str, Envelope[Any]] = {}
        for name, process in self.processes.items():
            kept, bodies = await process.database.read(partial(_books, TABLES[name]))
            states += kept
            for envelope in map(self._decoder.decode, bodies):
                events[envelope.id] = envelope
        events |= self.published  # Afterwards: what leaves an outbox meanwhile is here.
        return visible(states, self.provider.ledger, events.values())

    async def _order_is_known(self) -> bool:
        """As its HTTP routes would find out."""
        return await self._order() is not None

    async def _order(self) -> Order | None:
        return await self.processes["order"].database.read(
            lambda connection: order_service.store.ORDERS.find(connection, str(ORDER))
        )

    def _receivers(self, message: Envelope[Any]) -> Iterable[Participant]:
        if message is self._place:
            return [self.processes["order"].participant]
        return self.model.choreography.reacting_to(message.type)

    def _envelope(self, command: Command, id: str) -> Envelope[Any]:
        return wrap(
            command, id=id, source=source_of("world"), time=BEFORE, priority=Priority.NORMAL
        )


MODEL = model_of(SAGA, "one order")


async def met(seed: int, folder: Path, steps: int) -> list[Visible]:
    """What a system comes to, at the end of each step."""
    system = System(MODEL, seed)
    await system.start(folder)
    try:
        seen = [await system.seen()]
        for _ in range(steps):
            await system.step()
            seen.append(await system.seen())
        return seen
    finally:
        await system.close()


@pytest.mark.parametrize(
    "seeds", [range(20), pytest.param(range(20, 220), marks=pytest.mark.long)], ids=len
)
async def test_the_real_kernel_comes_to_nothing_that_the_model_does_not_know(
    seeds: range, tmp_path: Path
) -> None:
    known = known_to(MODEL)
    everything: set[Visible] = set()
    for seed in seeds:
        folder = tmp_path / str(seed)
        folder.mkdir()
        seen = await met(seed, folder, steps=40)
        strange = [step for step, state in enumerate(seen) if state not in known]
        assert not strange, f"the model does not know what seed {seed} led to in step {strange[0]}"
        everything.update(seen)

    assert len(everything) > 40, f"it has met only {len(everything)} of {len(known)}"


KEYS = ("A", "B")
PAYS, IS_BLOCKED = "ada", "bob"
Question = Callable[[PaymentGateway], Awaitable[Receipt | Decline | None]]


def question(chance: random.Random) -> Question:
    """A charge or a refund; the same again, or something else under the same key."""
    key, cents = chance.choice(KEYS), chance.choice([500, 500, 600])
    currency = chance.choice(["EUR", "EUR", "EUR", "CHF"])
    customer = chance.choice([PAYS, IS_BLOCKED])

    async def charge(gateway: PaymentGateway) -> Receipt | Decline:
        return await gateway.charge(key, customer=customer, currency=currency, amount_cents=cents)

    async def refund(gateway: PaymentGateway) -> None:
        await gateway.refund(key, currency=currency, amount_cents=cents)

    return chance.choice([charge, refund])


async def heard(question: Question, gateway: PaymentGateway) -> str:
    """What the gateway says, less the reference, which each makes up for itself."""
    try:
        said = await question(gateway)
    except GatewayRefused:
        return "refused"
    return said.reason if isinstance(said, Decline) else "done"


def books(ledger: Iterable[LedgerCharge]) -> set[LedgerCharge]:
    """What two ledgers can be compared by: no times, no references, no count of questions."""
    return {replace(c, reference="", charged_at_ms=0, asked=0, refunded_at_ms=None) for c in ledger}


async def test_the_models_provider_answers_as_the_sandbox_does(tmp_path: Path) -> None:
    said: set[str] = set()
    for seed in range(30):
        chance = random.Random(seed)
        sandbox = SandboxGateway(f"sqlite:///{tmp_path / f'{seed}.db'}")
        sandbox.set_accounts([Account(IS_BLOCKED, card_blocked=True)])
        ledger = Ledger()
        for _ in range(20):
            asked = question(chance)
            answer = await heard(asked, sandbox)
            said.add(answer)
            # A new charge may turn out either way in the model: one of them is the sandbox's.
            either = [Desk(ledger, d) for d in (ChargeOutcome.CHARGED, ChargeOutcome.CARD_DECLINED)]
            agreeing = [desk for desk in either if await heard(asked, DeskGateway(desk)) == answer]
            assert agreeing, f"seed {seed}: {answer}"
            ledger = agreeing[0].books
            assert books(ledger) == books(sandbox.ledger()), f"seed {seed}"
        await sandbox.close()

    assert said == {"done", "refused", "card_declined"}
