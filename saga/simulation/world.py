"""One run: the services and the people who use them, in whatever weather the seed brings."""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import partial
from uuid import UUID

from saga.archive.store import Fact, Stray
from saga.load.plan import Plan
from saga.retry import RUNGS_MS
from saga.runtime.kernel.timer import due_by
from saga.runtime.messaging.dead_letters import ERROR_TYPE, attempts_in
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM, queues_of, wait_queue
from saga.simulation.broker import EPOCH, PublishedMessage
from saga.simulation.loop import SimulatedLoop, SimulatedProcess
from saga.simulation.network import Network
from saga.simulation.outside import SimulatedOutside
from saga.simulation.people import People
from saga.simulation.recovery import SPREAD_SECONDS, as_read, recover
from saga.simulation.scene import Scene
from saga.simulation.server import PartsUnderTest, SimulatedReplica
from saga.simulation.trace import SimulationTrace
from saga.simulation.unruly import UnrulyBroker, describe
from saga.simulation.weather import Weather
from saga.view import Violation

SAGAS = (1, 4, 6)
"""How many sagas a run may have."""
RESTART_MAX_SECONDS = 5.0
STARTING_SHARE = 0.1
"""How likely a process is killed while it starts, compared to when it has."""
FREEZE_MAX_SECONDS = 20.0
SKEW_MAX_SECONDS = 2.0
OUTAGE_SHARE = 0.15
"""Runs in which a service that others wait for is away for `OUTAGE_SECONDS`."""
OUTAGE_SECONDS = 120.0
REST_SECONDS = 1.0
"""How often is looked whether everything has come to rest."""
PATIENCE_SECONDS = 1_000.0
"""How long after the storm, or after the clock has jumped, everything must have come to rest: the
longest wait for another try is 300 s."""
DUE_MAX_SECONDS = 3 * 86_400.0
"""What is due later than so long after the beginning is not waited for."""
JUMPS_MAX = 20
"""How often the clock may jump to what is due, before a run is given up."""
INFRASTRUCTURE_ERRORS = ("OperationalError", "VersionConflict", "ConnectionError", "TimeoutError")
"""What is nobody's fault and must not use up a message's tries."""
LOSSES_MAX = 2
"""How often the broker may be lost."""
KILLED_SHARE = 0.3
"""Recoveries that are killed, and begun again."""
RECOVERY_MAX_SECONDS = 10.0
"""How long an empty broker may be there before it is made again."""
FAR_SECONDS = 300.0
"""So far ahead, the clock jumps to what is due if nothing else is left."""
STEPS_MAX = 30_000
"""Steps after which a run is given up, counted from where the clock has jumped last: one that goes
well takes up to 10,000."""
TROUBLES_MAX = 20
"""Troubles after which a run is given up."""


class World:
    """A run, from the first command until everything is at rest."""

    def __init__(self, seed: int, scene: Scene, parts: PartsUnderTest) -> None:
        self.seed = seed
        self.scene = scene
        self.choreography = scene.choreography
        self.stores = scene.stores
        scene.begin(seed)
        chance = _stream(seed, "schedule")
        self.loop = SimulatedLoop(chance)
        self.trace = SimulationTrace(self.loop)
        self.weather = Weather(_stream(seed, "weather"))
        self.process = SimulatedProcess("world")
        self.broker = UnrulyBroker(self.loop, self.weather, self.trace)
        self.broker.apply(scene.topology)
        self.network = Network(self.loop, self.broker, self.weather, self.trace, self.process)
        draw = _stream(seed, "plan")
        self.plan: Plan = scene.load(draw, draw.choice(SAGAS))
        self.outsides = [
            SimulatedOutside(
                outside,
                self.loop,
                self.weather,
                self.trace,
                self.process,
                chance,
                self.plan.decisions.get(outside.name),
            )
            for outside in scene.saga.outside
        ]
        self.troubles: list[Violation] = []
        """What must not happen, and did."""
        self.people = People(self, self.plan, chance)
        self.at_rest = False
        self._ends_seconds = self.weather.storm_seconds + PATIENCE_SECONDS
        """When the run is given up."""
        self._steps_max = STEPS_MAX
        self._jumps = 0
        self._jump_to: float | None = None
        """The time of what is due next, where nothing else is left to happen in this run."""
        self._chance = chance
        self._servers = self._build(scene, parts)
        self._until_crash = self.weather.steps_until(self.weather.rates.crash)
        self._until_freeze = self.weather.steps_until(self.weather.rates.freeze)
        self._doomed: set[SimulatedProcess] = set()
        self._tries: defaultdict[tuple[SimulatedProcess, bytes], set[int]] = defaultdict(set)
        """How often the messages that a process has got had failed before, by their bodies."""
        self._recorded: dict[bytes, Fact | Stray] = {}
        """Keyed by body: what the history had read when the broker was lost last."""
        self._losses = 0
        self._recovering = 0
        self.network.on_crash = self._doom
        self.network.on_loss = self._lose_broker
        self.loop.before_step = self._before_step
        self.loop.on_error = self._on_error
        self.network.on_publish = self._on_publish
        self.network.on_deliver = self._on_deliver

    @property
    def servers(self) -> Collection[SimulatedReplica]:
        """All replicas of all services."""
        return self._servers.values()

    def run(self) -> None:
        """Run to the end."""
        for server in self._servers.values():
            server.start()
        self.loop.spawn(self.process, self._live())
        try:
            self.loop.run(self._ends_seconds)
            while self._jump_to is not None:
                self._jump(self._jump_to)
                self.loop.run(self._ends_seconds)
        finally:
            for process in (self.process, *(server.process for server in self.servers)):
                self.loop.end(process)
            self.loop.close()

    # --- services ----------------------------------------------------------------------------

    def _build(self, scene: Scene, parts: PartsUnderTest) -> dict[str, SimulatedReplica]:
        ids = _stream(self.seed, "ids")
        replicas = self._chance.choice((1, 1, 2))
        skewed = self._chance.random() < 0.3
        prefetch = self._chance.choice((1, 3, 300))
        group_max = self._chance.choice((2, 128))
        # Renewing it is most of what replicas do when there is nothing to do.
        lease_seconds = self._chance.choice((10.0, 30.0))
        servers = {}
        asks = {intent: ask for each in self.outsides for intent, ask in each.asks.items()}
        for service in scene.services(asks):
            participant = service.participant
            for number in range(1, replicas + 1):
                name = participant.name if replicas == 1 else f"{participant.name}-{number}"
                skew = self._chance.uniform(-1, 1) * SKEW_MAX_SECONDS if skewed else 0.0
                servers[name] = SimulatedReplica(
                    name,
                    service,
                    self.stores[participant.name],
                    self.network,
                    parts=parts,
                    shared=replicas > 1,
                    prefetch=prefetch,
                    group_max=group_max,
                    lease_seconds=lease_seconds,
                    skew_seconds=skew,
                    new_id=lambda: UUID(int=ids.getrandbits(128), version=4),
                    jitter=self._chance.uniform,
                    on_end=self._on_end,
                )
        return servers

    def _before_step(self, process: SimulatedProcess) -> None:
        """A process is about to run a callback: the storm may kill or freeze it."""
        if self.weather.calm or process is self.process:
            return
        server = self._servers[process.name]
        # One that is killed again and again while it starts shows little.
        self._until_crash -= 1.0 if server.kernel is not None else STARTING_SHARE
        self._until_freeze -= 1
        if process in self._doomed:
            self._crash(server, "is killed, having sent something")
        elif self._until_crash <= 0:
            self._until_crash = self.weather.steps_until(self.weather.rates.crash)
            self._crash(server, "is killed")
        elif self._until_freeze <= 0:
            self._until_freeze = self.weather.steps_until(self.weather.rates.freeze)
            seconds = self.weather.seconds(FREEZE_MAX_SECONDS)
            self.trace.note(process.name, f"freezes for {seconds:.3f} s")
            self.loop.freeze(process, seconds)

    def _doom(self, process: SimulatedProcess) -> None:
        """Have a process killed before it does anything more."""
        if self._servers[process.name].kernel is not None or self._chance.random() < STARTING_SHARE:
            self._doomed.add(process)

    def _crash(self, server: SimulatedReplica, how: str) -> None:
        seconds = 0.0 if self.weather.calm else self.weather.seconds(RESTART_MAX_SECONDS)
        self._kill(server, how, seconds)

    def _take_away(self, participant: str) -> None:
        for server in self.replicas(participant):
            self._kill(server, "is killed, and away for minutes", OUTAGE_SECONDS)

    def _kill(self, server: SimulatedReplica, how: str, away_seconds: float) -> None:
        self.trace.note(server.name, how)
        server.kill()
        self.loop.call_later(away_seconds, server.start, context=self.process.context)

    def replicas(self, participant: str) -> list[SimulatedReplica]:
        """The replicas of one service."""
        return [s for s in self.servers if s.service.participant.name == participant]

    def _on_end(self, server: SimulatedReplica, error: Exception) -> None:
        self._crash(server, f"ends: {type(error).__name__}: {error}")

    # --- what must not happen ----------------------------------------------------------------

    def _on_error(self, message: str, error: BaseException | None) -> None:
        self.trouble("unhandled", f"{message}: {error!r}" if error else message)

    def _on_deliver(self, process: SimulatedProcess, message: PublishedMessage) -> None:
        self._tries[process, message.body].add(attempts_in(message.properties.headers or {}))

    def _on_publish(self, process: SimulatedProcess, message: PublishedMessage) -> None:
        """A message of a service arrives at the broker."""
        if message.exchange == EVENTS_EXCHANGE:
            self._check_event(self._servers[process.name], message)
        else:
            self._check_copy(process, message)

    def _check_event(self, server: SimulatedReplica, message: PublishedMessage) -> None:
        """An event must have been committed before it is published."""
        event_id = message.properties.message_id or ""
        if not self.stores[server.service.participant.name].has_committed(event_id, message.body):
            self.trouble(
                "published_uncommitted",
                f"{message.routing_key} {event_id} of {server.name} was published, "
                f"and never committed so",
            )

    def _check_copy(self, process: SimulatedProcess, message: PublishedMessage) -> None:
        """What is set aside must be a copy of what was delivered, with one try more, and not for
        something that no message can help."""
        headers = message.properties.headers or {}
        tries = attempts_in(headers)
        if tries - 1 not in self._tries[process, message.body]:
            self.trouble(
                "tries_not_counted", f"{describe(message)} was set aside after try {tries}"
            )
        if headers.get(ERROR_TYPE) in INFRASTRUCTURE_ERRORS:
            self.trouble(
                "infrastructure_blamed",
                f"{describe(message)} was set aside for {headers[ERROR_TYPE]!r}",
            )

    def trouble(self, kind: str, detail: str) -> None:
        self.trace.note("TROUBLE", f"{kind}: {detail}")
        self.troubles.append(Violation(kind, "", detail))
        if len(self.troubles) == TROUBLES_MAX:
            self.loop.stop()

    def queues(self) -> Iterator[str]:
        """The queues that are empty at rest."""
        for participant in self.choreography.participants:
            yield from queues_of(participant)
        yield from map(wait_queue, RUNGS_MS)

    # --- its course --------------------------------------------------------------------------

    async def _live(self) -> None:
        await self.people.prepare()
        self.trace.note("world", "the storm begins")
        self.weather.calm = False
        if self._chance.random() < OUTAGE_SHARE:
            begin = {given.participant for given in self.plan.given}
            others = [p.name for p in self.choreography.participants if p.name not in begin]
            self._take_away(self._chance.choice(others or sorted(begin)))
        self.people.begin()
        self._look()
        await asyncio.sleep(self.weather.storm_seconds)
        self.trace.note("world", "the storm is over")
        self.weather.calm = True
        self.network.calm()

    def _lose_broker(self, up_at: float) -> None:
        """It is gone, with all it held; an empty one lets clients in at that time."""
        self._losses += 1
        if self._losses == LOSSES_MAX:
            self.weather.rates.broker_forgets = 0.0
        messages = self.broker.messages_in(HISTORY_STREAM)
        read = self._chance.choice((len(messages), self._chance.randint(0, len(messages))))
        self._recorded |= {item.body: item for item in as_read(messages[:read], self.choreography)}
        recovered_at = up_at + self.weather.seconds(RECOVERY_MAX_SECONDS)
        self.broker.forgets(recovered_at)
        self._recovering += 1
        self.loop.call_at(recovered_at, self._recover, context=self.process.context)

    def _recover(self) -> None:
        """An operator has it made again, once it is there."""
        if not self.broker.has(HISTORY_STREAM):
            self.loop.call_later(REST_SECONDS, self._recover, context=self.process.context)
            return
        self.trace.note("operator", "recovers the broker")
        if self._chance.random() < KILLED_SHARE:
            recover(self, [*self._recorded.values()], share=self._chance.random())
            self.loop.call_later(SPREAD_SECONDS, self._recover, context=self.process.context)
            return
        recover(self, [*self._recorded.values()])
        self.people.send_again()
        self.loop.call_later(SPREAD_SECONDS, self._recovered, context=self.process.context)

    def _recovered(self) -> None:
        self._recovering -= 1

    def _look(self) -> None:
        """End the run once it is at rest, or goes round in circles; or have the clock jump, if all
        that is left is due when the run would be over."""
        idle = self._idles()
        due_seconds = self._due_seconds() if idle else None
        self.at_rest = idle and due_seconds is None
        if self.at_rest or self.loop.steps > self._steps_max:
            self.loop.stop()
        elif due_seconds is not None and self.weather.calm and self._is_far(due_seconds):
            if self._jumps < JUMPS_MAX:
                self._jump_to = due_seconds
            self.loop.stop()
        else:
            self.loop.call_later(REST_SECONDS, self._look)

    def _is_far(self, at_seconds: float) -> bool:
        """Whether it would take many steps of nothing to come there, or more than there are."""
        return at_seconds > min(self._ends_seconds, self.loop.time() + FAR_SECONDS)

    def _jump(self, to_seconds: float) -> None:
        """Go on at a later time, with as much patience as after the storm."""
        self.trace.note("world", f"nothing happens for {to_seconds - self.loop.time():.0f} s")
        self._jump_to = None
        self._jumps += 1
        self.loop.jump(to_seconds)
        self._ends_seconds = to_seconds + PATIENCE_SECONDS
        self._steps_max = self.loop.steps + STEPS_MAX
        self.loop.call_later(REST_SECONDS, self._look, context=self.process.context)

    def _idles(self) -> bool:
        """Whether nothing will happen any more, but for what is due."""
        return (
            not self.people.busy
            and not self._recovering
            and not any(map(self.broker.load_of, self.queues()))
            and all(server.kernel and server.kernel.idle for server in self._servers.values())
            and not any(store.unpublished() for store in self.stores.values())
        )

    def _due_seconds(self) -> float | None:
        """When something is due about a state next; None if nothing is that is waited for."""
        until = EPOCH + timedelta(seconds=DUE_MAX_SECONDS)
        times = [
            (at - EPOCH).total_seconds()
            for server in self.servers
            for _, _, at in self.stores[server.service.participant.name].run(
                partial(due_by, tables=server.service.tables.with_dues, until=until, limit=1)
            )
        ]
        return min(times, default=None)


def _stream(seed: int, name: str) -> random.Random:
    """Random numbers of their own for each purpose."""
    return random.Random(f"{seed}/{name}")
