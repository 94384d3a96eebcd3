"""The people in a run: callers, who ask until they are answered, and an operator."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq import letters
from saga.envelope import Envelope, source_of, wrap
from saga.load.plan import Given, Plan
from saga.message import Command, Event, Priority
from saga.personal.forgetting import Forgetter
from saga.personal.marks import personal_fields
from saga.personal.persons import SealingAway
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.step import Firing, ForwardRequest
from saga.runtime.kernel.tables import Tables
from saga.runtime.kernel.work import Done, Duplicate
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import Reason
from saga.runtime.messaging.publisher import posting_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, dead_letter_queue, intake_queue
from saga.runtime.personal import seal_given
from saga.simulation.broker import EPOCH
from saga.simulation.doors import Doors
from saga.simulation.forgetting import ForgettingOperator
from saga.simulation.loop import SimulatedProcess, settle
from saga.simulation.network import delivered
from saga.simulation.server import SimulatedReplica

if TYPE_CHECKING:
    from saga.simulation.world import World

REPLY_TIMEOUT_SECONDS = 5.0
"""How long a caller waits for the answer to a request before trying again."""
IN_ITS_COURSE_SHARE = 0.7
"""How often a command about a saga that has begun is given in its course instead of at its time:
most take much less time than a plan can aim at."""
COURSE_MESSAGES = 5
"""Within so many messages."""
MALFORMED_SHARE = 0.2
"""Runs in which unreadable messages are published."""
OPERATOR_SECONDS = 4.0
"""How often the operator looks for dead letters."""
DECIDE_SHARE = 0.03
"""How often people look, in a storm, at what is left to them, and decide at once."""
STRANGE = (0, 1, 3)
"""How many commands that must not be carried out are sent in a run with doors."""
HURRY_SHARE = 0.05
"""How often an operator who looks has something done now that is due later."""


def envelope_of(given: Given, seconds: float) -> Envelope[Command]:
    """A command as it is sent over the broker, at that time of a run."""
    return wrap(
        given.command,
        id=given.key,
        source=source_of("caller"),
        time=EPOCH + timedelta(seconds=seconds),
        priority=given.priority,
    )


class Clients:
    """They do what the plan says, whatever else happens."""

    def __init__(
        self,
        world: World,
        plan: Plan,
        chance: random.Random,
        forgetter: type[Forgetter] = Forgetter,
    ) -> None:
        self._world = world
        self._plan = plan
        self._chance = chance
        self._callers = 0
        self._looked = False
        self._decisions = 0
        self._decided: dict[str, Command] = {}
        """Keyed by subject: what an operator decided on it after the storm."""
        self._in_vain: set[str] = set()
        self._moments: dict[str, list[tuple[int, asyncio.Event]]] = {}
        """Keyed by subject: after how many messages a client gives a command about it."""
        self._messages: Counter[str] = Counter()
        """Keyed by subject."""
        self._sent: list[Given] = []
        """Commands that were sent over the broker."""
        self.forgetting = (
            None
            if world.doors is None
            else ForgettingOperator(world, world.doors, forgetter, world.doors.chance)
        )
        """Who forgets some of them, in a run with doors."""
        self.told: dict[str, str] = {}
        """Keyed by subject: the end that a client was told of."""

    @property
    def busy(self) -> bool:
        """Whether a client still wants something."""
        return self._callers > 0 or self._letters_left()

    async def prepare(self) -> None:
        for given in self._plan.before:
            await self._ask(given)

    def begin(self) -> None:
        """Give all commands, and replay whatever fails."""
        begun: set[str] = set()
        for given in sorted(self._plan.given, key=lambda given: given.after_seconds):
            moment = None
            if given.command.subject in begun and self._chance.random() < IN_ITS_COURSE_SHARE:
                moment = self._moment(given.command.subject)
            begun.add(given.command.subject)
            self._begin(partial(self._give, given, moment))
        if self._chance.random() < MALFORMED_SHARE:
            event = self._chance.choice(self._world.choreography.events)
            key = f"{event.type}.{self._chance.choice(list(Priority))}"
            self._publish(
                EVENTS_EXCHANGE, key, b"{", frames.join({"message_id": frames.short("malformed")})
            )
        self._world.loop.spawn(self._world.process, self._operate())
        if self._world.doors is not None:
            self._begin(partial(self._send_strange, self._world.doors))
        if self.forgetting is not None:
            for name, at_seconds in self.forgetting.draw().items():
                self._begin(partial(self.forgetting.forget, name, at_seconds))

    def wait_for(self, process: SimulatedProcess, work: Coroutine[Any, Any, None]) -> None:
        """Give a process something to do that the run waits for."""

        async def waited() -> None:
            await asyncio.wait((task,))

        task = self._world.loop.spawn(process, work)
        self._begin(waited)

    def _begin(self, work: Callable[[], Awaitable[Any]]) -> None:
        async def begun() -> None:
            await work()
            self._callers -= 1

        self._callers += 1
        self._world.loop.spawn(self._world.process, begun())

    def _moment(self, subject: str) -> asyncio.Event:
        """A moment in the course of a saga: when so many messages about it have been delivered."""
        moment = asyncio.Event()
        count = self._chance.randint(1, COURSE_MESSAGES)
        self._moments.setdefault(subject, []).append((count, moment))
        return moment

    def hear(self, subject: str) -> None:
        """A message about a subject is delivered."""
        self._messages[subject] += 1
        for count, moment in self._moments.get(subject, ()):
            if self._messages[subject] >= count and not moment.is_set():
                # In its process: the task that waits there goes on there.
                self._world.loop.call_soon(moment.set, context=self._world.process.context)

    async def _give(self, given: Given, moment: asyncio.Event | None) -> None:
        """A client gives a command, at its time or at that moment if it comes before, and looks
        whether that was the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(given.after_seconds):
                await (moment or asyncio.Event()).wait()
        command = given.command
        self._world.watch.given(given.key, given.priority)
        self._world.trace.note("caller", f"gives {command.type} {command.subject}")
        if given.over_broker:
            self._sent.append(given)
            if self._world.doors is not None:
                given = await self._as_published(given, self._world.doors)
            self._command(given)
            return
        outcome = await self._ask(given)
        for event in outcome.events if isinstance(outcome, Done) else ():
            if isinstance(event.data, Event) and event.data.role.terminal:
                self._world.trace.note("caller", f"is told: {event.data.outcome}")
                self.told[event.subject] = event.data.outcome

    def _command(self, given: Given) -> None:
        """Send a command over the broker, twice if the confirm is lost."""
        envelope = envelope_of(given, self._world.loop.time())
        body = envelope.to_bytes()
        for _ in range(2 if self._world.weather.hits("reset") else 1):
            self._send_body(given, body)

    def _send_body(self, given: Given, body: bytes) -> None:
        posting = posting_of(body, intake_queue(given.participant, given.priority))
        self._publish("", posting.routing_key, body, posting.properties)

    async def _as_published(self, given: Given, doors: Doors) -> Given:
        """A command as its publisher sends it: sealed, once the key store is there, if it does."""
        while not doors.in_clear_by_chance():
            try:
                return replace(given, command=await doors.here.as_given(given.command))
            except SealingAway:
                await asyncio.sleep(self._world.weather.seconds(1.0))
        return given

    async def _send_strange(self, doors: Doors) -> None:
        """Send commands that must not be carried out: with texts that only look sealed, and one
        that names a person and cannot be read."""
        named = [given for given in self._plan.given if personal_fields(type(given.command))]
        for number in range(self._chance.choice(STRANGE) if named else 0):
            await asyncio.sleep(self._chance.random() * self._world.weather.storm_seconds / 2)
            given = replace(self._chance.choice(named), key=f"strange {number}")
            self._world.trace.note("stranger", f"sends {given.command.type}")
            if self._chance.random() < 0.3:
                body = doors.unreadable(envelope_of(given, self._world.loop.time()).to_bytes())
                if given.command.intake:
                    self._send_body(given, body)
                continue
            given = replace(given, command=doors.forge(given.command))
            if given.command.intake and self._chance.random() < 0.5:
                self._command(given)
            else:
                await self.ask_once(given)

    def send_again(self) -> None:
        """The broker was lost: who sent a command over it that is in no book does so again."""
        for given in self._sent:
            tables = self._world.scene.tables[given.participant]
            known = partial(_knows, tables, given.command.subject)
            if not self._world.stores[given.participant].read(known):
                if self._world.doors is None:
                    self._command(given)
                else:
                    # A copy of the context: what is begun there enters it itself.
                    self._world.loop.call_soon(
                        self._begin,
                        partial(self._seal_and_send, given, self._world.doors),
                        context=self._world.process.context.copy(),
                    )

    async def _seal_and_send(self, given: Given, doors: Doors) -> None:
        self._command(await self._as_published(given, doors))

    def _publish(self, exchange: str, key: str, body: bytes, properties: bytes) -> None:
        self._world.trace.note("broker", f"{key} from outside")
        self._world.broker.publish(exchange, key, body, properties)

    async def _ask(self, given: Given) -> Done | Duplicate | None:
        """Send a command over HTTP, again until there is an answer; None where the command that was
        to begin it all names who was forgotten before it was done."""
        doors = self._world.doors
        while doors is None or given.command.subject not in doors.turned_away:
            outcome = await self.ask_once(given)
            if outcome is not None:
                return outcome
            await asyncio.sleep(self._world.weather.seconds(1.0))
        return None

    async def ask_once(self, given: Given) -> Done | Duplicate | None:
        """Send a command over HTTP to any replica that is there; None without an answer, or for a
        refusal."""
        servers = [s for s in self._world.replicas(given.participant) if s.kernel is not None]
        if not servers:
            return None
        answer: asyncio.Future[Any] = self._world.loop.create_future()
        server = self._chance.choice(servers)
        self._world.loop.spawn(server.process, self._serve(server, given, answer))
        try:
            async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                outcome = await answer
        except TimeoutError:
            return None
        return outcome if isinstance(outcome, Done | Duplicate) else None

    async def _serve(
        self, server: SimulatedReplica, given: Given, answer: asyncio.Future[Any]
    ) -> None:
        """A request's way through a service."""
        kernel, persons, command = server.kernel, server.persons, given.command
        assert kernel is not None  # noqa: S101 - it was asked for that
        try:
            if self._world.doors is not None and persons is not None:
                command = await seal_given(persons, command)
                self._world.doors.begins(persons, command.subject)
            outcome: Any = await kernel.give(command, id=given.key, priority=given.priority)
        except Exception as error:  # refused, or the service knows nothing of it yet
            self._world.trace.note(server.name, f"refuses {given.command.type}: {error}")
            outcome = None
        self._world.loop.call_later(
            self._world.weather.latency(),
            settle,
            answer,
            outcome,
            context=self._world.process.context,
        )

    async def _operate(self) -> None:
        """Replay dead letters, over and over; leave those that cannot be read."""
        while True:
            await asyncio.sleep(OPERATOR_SECONDS)
            for participant in self._world.choreography.participants:
                self._replay(participant.name)
            if self._world.weather.calm:
                continue
            if self._chance.random() < HURRY_SHARE:
                self._hurry()
            if self._chance.random() < DECIDE_SHARE:
                for _, name, ways in self._world.left.open():
                    self._begin_to_decide(name, self._chance.choice(ways))

    def decide(self) -> bool:
        """Decide on all that is left to people, once the storm is over; whether there is anything
        to decide. As nothing goes wrong then, what is left again has been decided in vain."""
        if not self._world.weather.calm:
            return any(True for _ in self._world.left.open())
        self.look()
        began = False
        for subject, participant, ways in self._world.left.open():
            if subject not in self._decided:
                self._decided[subject] = self._chance.choice(ways)
                self._begin_to_decide(participant, self._decided[subject])
                began = True
            elif subject not in self._in_vain:
                self._in_vain.add(subject)
                self._world.trouble(
                    "decided_in_vain",
                    f"{subject}: it is left to people after {self._decided[subject].type} as it "
                    f"was before",
                )
        return began

    def look(self) -> None:
        """See whether there is a reason for all that is left to people, before they decide."""
        if not self._looked:
            for subject, why in self._world.left.unexplained():
                self._world.trouble("left_unexplained", f"{subject}: {why}")
        self._looked = True

    def _begin_to_decide(self, participant: str, command: Command) -> None:
        self._decisions += 1
        key = f"decision {self._decisions}"
        self._world.trace.note("person", f"decides: {command.type} {command.subject}")
        self._begin(partial(self._ask, Given(participant, command, key)))

    def _hurry(self) -> None:
        """Bring forward what is due about some state."""
        scene = self._world.scene
        found = [
            (name, table, key)
            for name, tables in scene.tables.items()
            for table in tables.with_dues
            for key, _ in self._world.stores[name].read(table.due)
        ]
        if not found:
            return
        name, table, key = self._chance.choice(found)
        servers = [s for s in self._world.replicas(name) if s.kernel is not None]
        state = self._world.stores[name].read(lambda connection: table.find(connection, key))
        firing = state and Firing.of(
            state, brought_forward=ForwardRequest("operator", "in a hurry")
        )
        if not servers or not firing:
            return
        server = self._chance.choice(servers)
        if server.kernel is not None:
            self._world.trace.note("operator", f"brings forward what is due about {key}")
            self._world.loop.spawn(server.process, self._bring_forward(server.kernel, firing))

    async def _bring_forward(self, kernel: Kernel, firing: Firing) -> None:
        with contextlib.suppress(sa.exc.IntegrityError):
            await kernel.fire(firing)

    def _replay(self, participant: str) -> None:
        channel = self._world.broker.channel()
        while (delivery := channel.get(dead_letter_queue(participant))) is not None:
            message = delivery.message
            copy = letters.copy_of(delivered(message), participant, EPOCH)
            if copy.reason != Reason.FAILED:
                continue
            self._world.trace.note(
                "operator", f"replays {copy.type} {copy.key[:8]} to {copy.queue}"
            )
            again = letters.posting_of(copy, copy.replays + 1)
            self._world.broker.publish("", copy.queue, again.body, again.properties)
            if self._world.weather.happens(0.1):
                self._world.trace.note("operator", "is killed before the acknowledgement")
                break
            channel.ack(delivery.tag)
        channel.close()

    def _letters_left(self) -> bool:
        """Whether there is a dead letter to replay."""
        return any(
            letters.copy_of(delivered(message), participant.name, EPOCH).reason == Reason.FAILED
            for participant in self._world.choreography.participants
            for message in self._world.broker.messages_in(dead_letter_queue(participant.name))
        )


def _knows(tables: Tables, subject: str, connection: Connection) -> bool:
    """Whether a participant has any state about a subject."""
    return any(table.load(connection, [subject]) for table in tables.states.values())
