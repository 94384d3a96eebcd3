"""All services together in one process, over a simulated clock, broker and database."""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import signal
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial

from saga import discovery
from saga.branches import Branch
from saga.declaration import Saga
from saga.personal.marks import personal_fields
from saga.simulation.scene import Scene
from saga.simulation.server import PartsUnderTest
from saga.simulation.stuck import STUCK_SECONDS
from saga.simulation.trace import digest_of
from saga.simulation.verdict import violations
from saga.simulation.world import World
from saga.view import Violation

__all__ = ["PartsUnderTest", "Run", "Simulation", "Violation", "run_seeds"]

SEEDS_AT_ONCE = 5
"""Seeds that a process is given at a time."""

_here: Simulation | None = None
"""A process of a pool has one."""


@dataclass(frozen=True, slots=True)
class Run:
    """One seed's run. Two runs of a seed have the same `digest`."""

    seed: int
    digest: str
    violations: tuple[Violation, ...]
    trace: tuple[str, ...]
    simulated_seconds: float
    steps: int
    happened: frozenset[str] = frozenset()
    """The types of events that were published, and the names of questions that were asked."""
    took: frozenset[Branch] = frozenset()
    """What reactions decided on, whatever became of it."""
    has_doors: bool = False
    """Whether personal data was sealed and opened in it, and persons forgotten."""
    faults: frozenset[str] = frozenset()
    """The kinds of fault that there were, as `saga.simulation.weather.Rates` names them."""


def uncovered(saga: Saga, happened: Collection[str]) -> Iterator[str]:
    """What was not looked at in runs in which just this happened: lines for people."""
    yield from saga.unwatched()
    for message in saga.choreography.recorded:
        if message.type not in happened:
            yield f"the load never comes to {message.type}"
    for outside in saga.outside:
        if outside.opens is None and any(map(personal_fields, outside.intents)):
            yield f"what {outside.name} is told of persons: its declaration has no `opens`"
        for intent in sorted(outside.intents, key=lambda intent: intent.__name__):
            if intent.__name__ not in happened:
                yield f"the load never has {outside.name} asked {intent.__name__}"


def run_seeds(first: int, count: int, *, jobs: int = 1) -> Iterator[Run]:
    """Run so many seeds from the first on, in so many processes; the runs come in their order,
    with a trace where something is wrong."""
    seeds = range(first, first + count)
    if jobs == 1:
        with contextlib.closing(Simulation()) as simulation:
            yield from map(partial(_run, simulation), seeds)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        yield from pool.map(_run_here, seeds, chunksize=SEEDS_AT_ONCE)
    finally:
        pool.shutdown(cancel_futures=True)


def _run(simulation: Simulation, seed: int) -> Run:
    run = simulation.run(seed)
    return run if run.violations else replace(run, trace=())


def _begin() -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one.
    _here = Simulation()


def _run_here(seed: int) -> Run:
    assert _here is not None  # noqa: S101 - the pool begins with that
    return _run(_here, seed)


class Simulation:
    """Runs seeds, one after the other; databases are made once for all of them."""

    def __init__(
        self,
        parts: PartsUnderTest | None = None,
        saga: Saga | None = None,
        *,
        stuck_seconds: float = STUCK_SECONDS,
    ) -> None:
        """Of the project's saga, or of another one. A step that takes longer than `stuck_seconds`
        of CPU time ends its run. Raises `SagaError`."""
        self._stuck_seconds = stuck_seconds
        self._parts = parts or PartsUnderTest()
        self._scene = Scene(saga or discovery.saga())

    def run(self, seed: int) -> Run:
        """Run a seed. Blocks, for some tens of milliseconds."""
        with silence(), _garbage_collected_at_the_end():
            troubles, run = self._play(seed)
        # All errors that no task has looked at are reported by now.
        return replace(run, violations=tuple(troubles))

    def _play(self, seed: int) -> tuple[list[Violation], Run]:
        """What is wrong, to which more may come, and the run; nothing else is left of the world."""
        world = World(seed, self._scene, self._parts, self._stuck_seconds)
        world.run()
        found, happened = violations(world)
        world.troubles.extend(found)
        lines = world.trace.lines
        return world.troubles, Run(
            seed,
            digest_of(lines),
            violations=(),
            trace=tuple(lines),
            simulated_seconds=world.loop.time(),
            steps=world.loop.steps,
            happened=happened,
            took=frozenset(self._scene.sample.took),
            has_doors=world.doors is not None,
            faults=frozenset(world.weather.struck),
        )

    def close(self) -> None:
        self._scene.close()


@contextlib.contextmanager
def _garbage_collected_at_the_end() -> Iterator[None]:
    """When Python collects garbage by itself depends on more than the seed. What was there before
    is not looked through: that would take longer than a run."""
    gc.disable()
    gc.freeze()
    try:
        yield
    finally:
        gc.collect(0)  # All that came since is in the youngest generation.
        gc.unfreeze()
        gc.enable()


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without what the services log: a run is full of faults, and its trace tells of them."""
    log = logging.getLogger("saga")
    level = log.level
    log.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        log.setLevel(level)
