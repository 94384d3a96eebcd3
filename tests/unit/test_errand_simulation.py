"""Commands between participants in the simulation: the real kernel and topology, whatever fails."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from saga.declaration import Saga
from saga.message import Command
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.simulation import Simulation
from tests.errands import GRAPH, SAGA
from tests.unit.test_errands import (
    a_join_has_one_leg_that_can_complete_it,
    a_leg_that_comes_first_is_forgotten,
    an_answer_to_a_command_is_dropped,
)

SEEDS = 40
"""Seeds of which each of the broken ones below breaks one, several times over."""


def is_caught(simulation: Simulation) -> bool:
    return any(simulation.run(seed).violations for seed in range(SEEDS))


def test_every_errand_ends_as_it_must_whatever_fails() -> None:
    with closing(Simulation(saga=SAGA)) as simulation:
        for seed in range(SEEDS):
            assert simulation.run(seed).violations == (), seed


@pytest.mark.parametrize(
    "twin",
    [
        a_join_has_one_leg_that_can_complete_it,
        a_leg_that_comes_first_is_forgotten,
        an_answer_to_a_command_is_dropped,
    ],
)
def test_a_broken_twin_is_caught_in_the_simulation(twin: Callable[[], Saga]) -> None:
    with closing(Simulation(saga=twin())) as simulation:
        assert is_caught(simulation)


@pytest.mark.parametrize("command", GRAPH.commands)
def test_a_command_that_no_binding_brings_to_its_receiver_is_missed(
    command: type[Command],
) -> None:
    with closing(Simulation(saga=SAGA)) as simulation:
        scene = simulation._scene
        for partitions, topology in scene.topologies.items():
            bindings = [
                binding
                for binding in topology.bindings
                if (binding.exchange, binding.key) != (EVENTS_EXCHANGE, f"{command.type}.normal")
            ]
            scene.topologies[partitions] = replace(topology, bindings=bindings)

        assert is_caught(simulation)
