"""Participants with something else in the place of a reaction, or of a kind of state."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import GenericAlias
from typing import Any, get_type_hints

from saga.choreography import Participant, State


def swapped(participant: Participant, *instead: Callable[..., Any]) -> Participant:
    """The participant with these functions for the reactions of the same names."""
    names = {function.__name__: function for function in instead}
    assert names.keys() <= {reaction.name for reaction in participant.reactions}
    functions = [names.get(reaction.name, reaction.function) for reaction in participant.reactions]
    return Participant(participant.name, *functions, package=participant.package)


def retyped(participant: Participant, kind: type[State], instead: type[State]) -> Participant:
    """The participant with states of another kind for those of one."""

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reaction(*arguments: Any) -> Any:
            return function(*arguments)

        kinds: dict[Any, Any] = {
            kind: instead,
            GenericAlias(Mapping, (str, kind)): GenericAlias(Mapping, (str, instead)),
        }
        hints = get_type_hints(function)
        reaction.__annotations__ = {name: kinds.get(hint, hint) for name, hint in hints.items()}
        return reaction

    functions = (taking(r.function) for r in participant.reactions)
    return Participant(participant.name, *functions, package=participant.package)


def without(participant: Participant, name: str) -> Participant:
    """The participant without one of its reactions."""
    functions = [r.function for r in participant.reactions if r.name != name]
    assert len(functions) < len(participant.reactions)
    return Participant(participant.name, *functions, package=participant.package)
