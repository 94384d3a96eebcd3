"""Which states need not be looked at, as another one stands for them: partial order and symmetry.

Both are exact. Whatever rules say of a state that is left out, they say of the one that stands for
it, and of that one's images.
"""

from __future__ import annotations

from collections.abc import Sequence

from saga.verify.machine import Machine
from saga.verify.symmetry import Symmetry


class Reduction:
    """None: each state stands for itself."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def stands_for(self, state: int) -> int:
        """The state that stands for this."""
        return state

    def images(self, state: int) -> Sequence[int]:
        """The states that rules have to judge where this one stands for others."""
        return (state,)


class Settled(Reduction):
    """What has settled stands for what will; see `Machine.settled`."""

    def stands_for(self, state: int) -> int:
        return self.machine.settled(state)


class Alike(Settled):
    """Beside that, one state stands for those with other names for subjects that are alike.

    Rules may tell such subjects apart, so they judge each of these states.
    """

    def __init__(self, machine: Machine, symmetry: Symmetry) -> None:
        super().__init__(machine)
        self._symmetry = symmetry

    def stands_for(self, state: int) -> int:
        return min(self._symmetry.images(super().stands_for(state)))

    def images(self, state: int) -> Sequence[int]:
        return self._symmetry.images(state)


def reduction_of(machine: Machine) -> Reduction:
    """The one for a model."""
    symmetry = Symmetry(machine)
    return Alike(machine, symmetry) if symmetry.alike > 1 else Settled(machine)
