"""One run: the services and the people who use them, in whatever weather the seed brings."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Collection, Iterator
from datetime import timedelta
from functools import partial
from uuid import UUID

from saga.archive.store import Fact, Stray
from saga.declaration import SagaError
from saga.envelope import Attributes
from saga.load.plan import Plan
from saga.message import Priority
from saga.retry import RUNGS_MS
from saga.runtime.kernel.timer import due_by
from saga.runtime.messaging.topology import HISTORY_STREAM, intake_queue, undivided, wait_queue
from saga.simulation.broker import EPOCH, PublishedMessage
from saga.simulation.clients import Clients
from saga.simulation.doors import DOORS_SHARE, ROLLED_MAX_SECONDS, Doors
from saga.simulation.doubt import UnclearAnswers
from saga.simulation.loop import SimulatedLoop, SimulatedProcess, current_process
from saga.simulation.network import Network
from saga.simulation.outside import SimulatedOutside
from saga.simulation.recovery import SPREAD_SECONDS, as_read, recover
from saga.simulation.rules import violation
from saga.simulation.scene import PARTITIONS, Scene
from saga.simulation.server import Capacities, PartsUnderTest, SimulatedReplica
from saga.simulation.stuck import STUCK_SECONDS, EndlessStep, watched
from saga.simulation.trace import SimulationTrace
from saga.simulation.unruly import UnrulyBroker
from saga.simulation.watch import Watch
from saga.simulation.weather import FREEZE_MAX_SECONDS, FaultSchedule
from saga.view import Violation
from saga.wording import counted

SAGAS = (1, 4, 6)
"""How many sagas a run may have."""
RESTART_MAX_SECONDS = 5.0
STARTING_SHARE = 0.1
"""How likely a process is killed while it starts, compared to when it has."""
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
LOSSES_MAX = 2
"""How often the broker may be lost."""
KILLED_SHARE = 0.3
"""Recoveries that are killed, and begun again."""
RECOVERY_MAX_SECONDS = 10.0
"""How long an empty broker may be there before it is rebuilt."""
FAR_SECONDS = 300.0
"""So far ahead, the clock jumps to what is due if nothing else is left."""
STEPS_MAX = 30_000
"""Steps after which a run is given up, counted from where the clock has jumped last: one that goes
well takes up to 10,000."""
LOOKED_AT_STEPS = 100
"""So many steps more of a run that is given up are looked at."""
TROUBLES_MAX = 20
"""Troubles after which a run is given up."""


class World:
    """A run, from the first command until everything is at rest."""

    def __init__(
        self,
        seed: int,
        scene: Scene,
        parts: PartsUnderTest,
        stuck_seconds: float = STUCK_SECONDS,
        *,
        with_doors: bool = True,
    ) -> None:
        """`with_doors`, some seeds have doors, and messages then hold sealed texts. Raises
        `SagaError` for a load whose personal values cannot be told apart."""
        self.seed = seed
        self._stuck_seconds = stuck_seconds
        self.scene = scene
        self.choreography = scene.choreography
        self.stores = scene.stores
        scene.begin(seed)
        chance = _stream(seed, "schedule")
        self.loop = SimulatedLoop(chance)
        self.trace = SimulationTrace(self.loop)
        at_doors = _stream(seed, "doors")
        has_doors = with_doors and scene.is_personal and at_doors.random() < DOORS_SHARE
        self.weather = FaultSchedule(_stream(seed, "weather"), at_doors if has_doors else None)
        self.process = SimulatedProcess("world")
        self.broker = UnrulyBroker(self.loop, self.weather, self.trace)
        partitions = _stream(seed, "partitions").choice(PARTITIONS)
        self.broker.apply(scene.topologies[partitions])
        self.network = Network(self.loop, self.broker, self.weather, self.trace, self.process)
        draw = _stream(seed, "plan")
        self.plan: Plan = scene.load(draw, draw.choice(SAGAS))
        self._intakes = {
            intake_queue(p.name, priority)
            for p in self.choreography.participants
            for priority in Priority
        }
        self.doors = self._doors(parts, at_doors) if has_doors else None
        if self.doors is not None:
            try:
                self.plan = self.doors.marked(self.plan)
            except SagaError:
                self.loop.close()
                raise
        self.outsides = [
            SimulatedOutside(
                outside,
                self.loop,
                self.weather,
                self.trace,
                self.process,
                chance,
                self.plan.decisions.get(outside.name),
                self._doom,
                self.trouble,
                self.doors,
            )
            for outside in scene.saga.outside
        ]
        self.troubles: list[Violation] = []
        """What must not happen, and did."""
        self.left = UnclearAnswers(scene, self.outsides, self.loop)
        self.clients = Clients(self, self.plan, chance, parts.forgetter)
        self.at_rest = False
        self._has_looked = False
        """Whether it was looked what can be opened of who was forgotten."""
        self._ends_seconds = self.weather.storm_seconds + PATIENCE_SECONDS
        """When the run is given up."""
        self._steps_max = STEPS_MAX
        self._jumps = 0
        self.steady_since_seconds = self.weather.storm_seconds
        """Since when the storm is over, and the clock has not jumped."""
        self._jump_to: float | None = None
        """The time of what is due next, where nothing else is left to happen in this run."""
        self._chance = chance
        self._servers = self._build(scene, parts)
        self._until_crash = self.weather.steps_until("crash")
        self._until_freeze = self.weather.steps_until("freeze")
        self._doomed: set[SimulatedProcess] = set()
        self._recorded: dict[bytes, Fact | Stray] = {}
        """Keyed by body: what the history had read when the broker was lost last."""
        self.losses = 0
        """How often the broker was lost."""
        self.recovering = 0
        """Losses that it has still to recover from."""
        self.network.on_crash = self._doom
        self.network.on_loss = self._lose_broker
        self.loop.before_step = self._before_step
        self.loop.on_error = self._on_error
        self.watch = Watch(self._servers, self.stores, self.trouble)
        self.watch.on_message = self._on_message
        self.network.on_publish = self._on_publish
        if self.doors is not None:
            self.watch.same = self.doors.same
            self.watch.waits_before = self._is_intake
        self.network.on_taken = self.watch.taken
        self.network.on_deliver = self.watch.delivered
        self.network.on_channel_lost = self.watch.channel_lost

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
            with watched(self.loop, self._stuck_seconds, self._is_stuck):
                self.loop.run(self._ends_seconds, self._steps_max)
                while self._jump_to is not None:
                    self._jump(self._jump_to)
                    self.loop.run(self._ends_seconds, self._steps_max)
                self._look_back()
        finally:
            # All of it, also where one of these raises: or Python would run what cleans up when it
            # collects the garbage, without a loop.
            with contextlib.ExitStack() as ending:
                ending.callback(self.loop.close)
                if self.doors is not None:
                    ending.callback(self.doors.close)
                processes = (self.process, *(server.process for server in self.servers))
                for process in reversed(processes):
                    ending.callback(self.loop.end, process)

    def _is_stuck(self, where: str) -> None:
        """A step does not end."""
        self.trouble(
            "no_progress",
            f"a step of {current_process().name} has not ended within "
            f"{self._stuck_seconds:g} s of CPU time; it runs {where}",
        )
        self.loop.stop()

    def _look_back(self) -> None:
        """Say why a run was given up that needs too many steps."""
        if self.loop.steps >= self._steps_max and not self.at_rest:
            steps, seconds = self.loop.steps, self.loop.time()
            what = self.loop.most_of(LOOKED_AT_STEPS, math.inf)
            self.trouble(
                "no_progress",
                f"it was given up after {counted(steps, 'step')}, at {seconds:.0f} s; {what}",
            )

    # --- services ----------------------------------------------------------------------------

    def _build(self, scene: Scene, parts: PartsUnderTest) -> dict[str, SimulatedReplica]:
        ids = _stream(self.seed, "ids")
        replicas = self._chance.choice((1, 1, 2))
        skewed = self._chance.random() < 0.3
        forgets = self.weather.rates.broker_forgets > 0
        limits = Capacities.draw(self._chance, forgets=forgets)
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
                    limits=limits,
                    on_group=lambda process, group: self.watch.group_begun(process, group),
                    on_commit=lambda process, rows: self.watch.committed(process, rows),
                    on_doubt=partial(self.left.interrupted, participant.name),
                    lease_seconds=lease_seconds,
                    skew_seconds=skew,
                    new_id=lambda: UUID(int=ids.getrandbits(128), version=4),
                    jitter=self._chance.uniform,
                    decoder=scene.taken[participant.name],
                    on_end=self._on_end,
                    doors=self.doors,
                )
        return servers

    def _doors(self, parts: PartsUnderTest, chance: random.Random) -> Doors | None:
        if self.scene.keys is None:
            return None
        doors = Doors(
            self.scene.keys,
            self.loop,
            self.weather,
            self.trace,
            chance,
            (parts.persons, parts.key_store),
            self._doom,
            self.trouble,
            self._ended,
        )
        doors.open(self.process, sealing=True)  # Callers'.
        return doors

    def _ended(self) -> Collection[str]:
        """The subjects that a committed event ends."""
        ends = {event.type for event in self.choreography.events if event.role.terminal}
        events = (Attributes.of(b) for store in self.stores.values() for b in store.committed())
        return {event.subject for event in events if event.type in ends}

    def _before_step(self, process: SimulatedProcess) -> None:
        """A process is about to run a callback: the storm may kill or freeze it."""
        if self.weather.calm or process is self.process:
            return
        server = self._servers.get(process.name)
        if server is None:
            return  # An operator's command, which is killed by itself.
        # One that is killed again and again while it starts shows little.
        self._until_crash -= 1.0 if server.kernel is not None else STARTING_SHARE
        self._until_freeze -= 1
        if process in self._doomed:
            self._crash(server, "is killed, having sent something")
        elif self._until_crash <= 0:
            self._until_crash = self.weather.steps_until("crash")
            self.weather.struck.add("crash")
            self._crash(server, "is killed")
        elif self._until_freeze <= 0:
            self._until_freeze = self.weather.steps_until("freeze")
            self.weather.struck.add("freeze")
            seconds = self.weather.seconds(FREEZE_MAX_SECONDS)
            self.trace.note(process.name, f"freezes for {seconds:.3f} s")
            self.loop.freeze(process, seconds)

    def _doom(self, process: SimulatedProcess) -> None:
        """Kill a process before it does anything more, if it is a service's."""
        if process.name not in self._servers:
            return
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
        self.left.interrupted(server.service.participant.name)
        server.kill()
        self.loop.call_later(away_seconds, server.start, context=self.process.context)

    def replicas(self, participant: str) -> list[SimulatedReplica]:
        """The replicas of one service."""
        return [s for s in self.servers if s.service.participant.name == participant]

    def _on_end(self, server: SimulatedReplica, error: Exception, explained: bool) -> None:
        if not explained:
            self.trouble("process_ended", f"{server.name} ended: {type(error).__name__}: {error}")
        self._crash(server, f"ends: {type(error).__name__}: {error}")

    # --- what must not happen ----------------------------------------------------------------

    def _on_error(self, message: str, error: BaseException | None) -> None:
        if isinstance(error, EndlessStep):
            return  # It is said better.
        self.trouble("unhandled", f"{message}: {error!r}" if error else message)

    def _on_message(self, process: SimulatedProcess, queue: str, subject: str) -> None:
        self.clients.hear(subject)
        server = self._servers[process.name]
        participant = server.service.participant
        self.left.meets(participant.name, process, subject)
        if self.doors is not None and self._is_intake(queue):
            self.doors.begins(server.persons, subject)

    def _is_intake(self, queue: str) -> bool:
        """Whether commands come by a queue."""
        return undivided(queue) in self._intakes

    def _on_publish(self, process: SimulatedProcess, message: PublishedMessage) -> None:
        self.watch.published(process, message)
        if self.doors is not None:
            self.doors.sent(process.name, message)

    def trouble(self, kind: str, detail: str) -> None:
        self.trace.note("TROUBLE", f"{kind}: {detail}")
        self.troubles.append(violation(kind, "", detail))
        if len(self.troubles) == TROUBLES_MAX:
            self.loop.stop()

    def queues(self) -> Iterator[str]:
        """The queues that are empty at rest."""
        for participant in self.choreography.participants:
            yield from self.broker.queues_of(participant)
        yield from map(wait_queue, RUNGS_MS)

    # --- its course --------------------------------------------------------------------------

    async def _live(self) -> None:
        await self.clients.prepare()
        self.trace.note("world", "the storm begins")
        self.weather.calm = False
        if self._chance.random() < OUTAGE_SHARE:
            begin = {given.participant for given in self.plan.given}
            others = [p.name for p in self.choreography.participants if p.name not in begin]
            self._take_away(self._chance.choice(others or sorted(begin)))
        self.clients.begin()
        if self.doors is not None and not self.doors.sealing:
            at_seconds = self._chance.random() * self.weather.storm_seconds
            self.loop.call_later(at_seconds, self._begin_to_seal, self.doors)
        self._look()
        await asyncio.sleep(self.weather.storm_seconds)
        self.trace.note("world", "the storm is over")
        self.weather.calm = True
        self.network.calm()

    def _begin_to_seal(self, doors: Doors) -> None:
        """An operator switches sealing on, and has one replica started again after the other."""
        self.trace.note("operator", "switches sealing on")
        doors.sealing = True
        for server in self.servers:
            self.loop.call_later(
                self._chance.random() * ROLLED_MAX_SECONDS, self._start_to_seal, server
            )

    def _start_to_seal(self, server: SimulatedReplica) -> None:
        if server.process.alive:  # Or it starts soon anyway.
            self._kill(server, "is started again to seal", 0.0)

    def _lose_broker(self, up_at: float) -> None:
        """It is gone, with all it held; an empty one lets clients in at that time."""
        self.losses += 1
        if self.losses == LOSSES_MAX:
            self.weather.rates.broker_forgets = 0.0
        messages = self.broker.messages_in(HISTORY_STREAM)
        read = self._chance.choice((len(messages), self._chance.randint(0, len(messages))))
        self._recorded |= {item.body: item for item in as_read(messages[:read], self.choreography)}
        recovered_at = up_at + self.weather.seconds(RECOVERY_MAX_SECONDS)
        self.broker.forgets(recovered_at)
        self.recovering += 1
        self.loop.call_at(recovered_at, self._recover, context=self.process.context)

    def _recover(self) -> None:
        """An operator rebuilds it, once it is there."""
        if not self.broker.has(HISTORY_STREAM):
            self.loop.call_later(REST_SECONDS, self._recover, context=self.process.context)
            return
        self.trace.note("operator", "recovers the broker")
        if self._chance.random() < KILLED_SHARE:
            recover(self, [*self._recorded.values()], share=self._chance.random())
            self.loop.call_later(SPREAD_SECONDS, self._recover, context=self.process.context)
            return
        recover(self, [*self._recorded.values()])
        self.clients.send_again()
        self.loop.call_later(SPREAD_SECONDS, self._recovered, context=self.process.context)

    def _recovered(self) -> None:
        self.recovering -= 1

    def _look(self) -> None:
        """End the run once it is at rest, or goes round in circles; or have the clock jump, if all
        that is left is due when the run would be over."""
        idle = self._idles() and not self.clients.decide()
        due_seconds = self._due_seconds() if idle else None
        if idle and due_seconds is None and self._looks_for_forgotten():
            idle = False
        self.at_rest = idle and due_seconds is None
        if self.at_rest:
            self.loop.stop()
        elif due_seconds is not None and self.weather.calm and self._is_far(due_seconds):
            if self._jumps < JUMPS_MAX:
                self._jump_to = due_seconds
            self.loop.stop()
        else:
            self.loop.call_later(REST_SECONDS, self._look)

    def _looks_for_forgotten(self) -> bool:
        """Once all is at rest, have each process try to open what is sealed of who was forgotten;
        whether there are any."""
        if self.doors is None or self._has_looked or not self.doors.anyone_forgotten:
            return False
        self._has_looked = True
        self.weather.calm = True  # If the storm is not over yet, there is nothing left for it.
        for server in self.servers:
            if server.persons is not None:
                look = self.doors.look_for_forgotten(server.name, server.persons)
                self.clients.wait_for(server.process, look)
        return True

    def _is_far(self, at_seconds: float) -> bool:
        """Whether it would take many steps of nothing to come there, or more than there are."""
        return at_seconds > min(self._ends_seconds, self.loop.time() + FAR_SECONDS)

    def _jump(self, to_seconds: float) -> None:
        """Go on at a later time, with as much patience as after the storm."""
        self.trace.note("world", f"nothing happens for {to_seconds - self.loop.time():.0f} s")
        self._jump_to = None
        self._jumps += 1
        self.steady_since_seconds = to_seconds
        self.loop.jump(to_seconds)
        self._ends_seconds = to_seconds + PATIENCE_SECONDS
        self._steps_max = self.loop.steps + STEPS_MAX
        # A copy of it: what is begun there enters it itself.
        self.loop.call_later(REST_SECONDS, self._look, context=self.process.context.copy())

    def _idles(self) -> bool:
        """Whether nothing will happen any more, but for what is due."""
        return (
            not self.clients.busy
            and not self.recovering
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
            for _, _, at in self.stores[server.service.participant.name].read(
                partial(due_by, tables=server.service.tables.with_dues, until=until, limit=1)
            )
        ]
        return min(times, default=None)


def _stream(seed: int, name: str) -> random.Random:
    """Random numbers of their own for each purpose."""
    return random.Random(f"{seed}/{name}")
