"""Messages as a simulated system sends them: the examples that contracts begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from saga.declaration import Saga
from saga.simulation import silence
from saga.simulation.clients import envelope_of
from saga.simulation.scene import Scene
from saga.simulation.server import PartsUnderTest
from saga.simulation.world import World

SEEDS: Final = 20
"""Runs in which one of each message is looked for."""


def messages_of(saga: Saga) -> Iterator[bytes]:
    """Bodies of what is sent, copies among them, the same every time. Blocks, for some tens of
    milliseconds a run. Raises `SagaError`."""
    scene = Scene(saga)
    try:
        for seed in range(SEEDS):
            heard: list[bytes] = []
            world = World(seed, scene, PartsUnderTest(), with_doors=False)
            world.broker.on_publish = heard.append
            with silence():
                world.run()
            yield from heard
            for given in world.plan.given:  # Over HTTP, they have no envelope.
                if given.command.intake:
                    yield envelope_of(given, given.after_seconds).to_bytes()
    finally:
        scene.close()
