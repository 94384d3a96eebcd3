"""Messages as a simulated system sends them: the examples that contracts begin with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from saga.declaration import Saga
from saga.runtime.messaging.topology import COMMANDS_EXCHANGE, EVENTS_EXCHANGE
from saga.simulation import silence
from saga.simulation.broker import Message
from saga.simulation.scene import Scene
from saga.simulation.server import Parts
from saga.simulation.world import World

SEEDS: Final = 20
"""Runs in which one of each message is looked for."""


def messages_of(saga: Saga) -> Iterator[bytes]:
    """Bodies of what is sent, the same every time. Blocks, for some tens of milliseconds a run.
    Raises `SagaError`."""
    scene = Scene(saga)
    try:
        for seed in range(SEEDS):
            heard: list[bytes] = []
            world = World(seed, scene, Parts())
            world.broker.on_publish = lambda message, to=heard: _hear(message, to)
            with silence():
                world.run()
            yield from heard
    finally:
        scene.close()


def _hear(message: Message, heard: list[bytes]) -> None:
    if message.exchange in (EVENTS_EXCHANGE, COMMANDS_EXCHANGE):
        heard.append(message.body)
