"""Which messages belong to one saga: those that may be about the same subject.

A reaction's results have its cause's subject, so everything that a command leads to is about what
the command is about. So is what another command leads to that is taken with a state which the first
one's reactions keep: `task.complete` is about the task that `task.create` was about. A participant
that takes part in two sagas joins them only for commands of its own about the state they share.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

from saga.choreography import State
from saga.graph.flow import Flow, Node, Step
from saga.message import Command

_Kind = tuple[str, type[State]]
"""A participant, and a kind of its states."""


@dataclass(frozen=True)
class Extent:
    """What may happen about the subject of one command, whatever else is asked for about it.

    `subject` is the kind of state that the command is taken with.
    """

    command: type[Command]
    subject: type[State]
    nodes: Set[Node]


def extents_of(flow: Flow) -> tuple[Extent, ...]:
    """The extent of each command from outside, in their order."""
    commands = (*flow.commands, *flow.dues)
    led_to: Mapping[type[Command], Set[Node]] = {c: flow.reachable([c]) for c in commands}
    taken_with = {command: _own(flow.takers(command)[0]) for command in commands}
    return tuple(
        Extent(command, taken_with[command][1], _extent(command, led_to, taken_with))
        for command in flow.given
    )


def _extent(
    command: type[Command],
    led_to: Mapping[type[Command], Set[Node]],
    taken_with: Mapping[type[Command], _Kind],
) -> Set[Node]:
    nodes: set[Node] = set()
    rest = set(led_to)
    joining = {command}
    while joining:
        rest -= joining
        nodes.update(*(led_to[one] for one in joining))
        kinds = {_own(node) for node in nodes if isinstance(node, Step)}
        joining = {one for one in rest if taken_with[one] in kinds}
    return nodes


def _own(step: Step) -> _Kind:
    return step.participant.name, step.reaction.own
