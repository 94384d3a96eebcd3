"""Finding the participants: every package named `*_service` beside this one that has a domain."""

from __future__ import annotations

import importlib
import pkgutil

from common.choreography import Choreography, ChoreographyError, Participant


def packages() -> list[str]:
    """The names of the services' packages."""
    return [
        module.name
        for module in pkgutil.iter_modules()
        if module.ispkg and module.name.endswith("_service")
    ]


def participants() -> dict[str, Participant]:
    """Each participating package's name and its `domain.PARTICIPANT`."""
    found: dict[str, Participant] = {}
    for package in packages():
        domain = importlib.import_module(f"{package}.domain")
        participant = getattr(domain, "PARTICIPANT", None)
        if not isinstance(participant, Participant):
            raise ChoreographyError(f"{package}.domain defines no PARTICIPANT")
        found[package] = participant
    return found


def choreography() -> Choreography:
    """The graph of all participants."""
    return Choreography(participants().values())
