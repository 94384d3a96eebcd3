"""Finding the services: every package named `*_service` beside this one that has a domain."""

from __future__ import annotations

import importlib
import pkgutil

from common.choreography import Choreography, ChoreographyError, Observer, Participant


def packages() -> list[str]:
    """The names of the services' packages."""
    return [
        module.name
        for module in pkgutil.iter_modules()
        if module.ispkg and module.name.endswith("_service")
    ]


def participants() -> dict[str, Participant]:
    """Each participating package's name and its `domain.PARTICIPANT`."""
    found = services().items()
    return {package: service for package, service in found if isinstance(service, Participant)}


def observers() -> dict[str, Observer]:
    """Each observing package's name and its `domain.OBSERVER`."""
    found = services().items()
    return {package: service for package, service in found if isinstance(service, Observer)}


def services() -> dict[str, Participant | Observer]:
    """Each service's package and what its domain says that it is."""
    found: dict[str, Participant | Observer] = {}
    for package in packages():
        domain = importlib.import_module(f"{package}.domain")
        service = getattr(domain, "PARTICIPANT", None) or getattr(domain, "OBSERVER", None)
        if not isinstance(service, Participant | Observer):
            raise ChoreographyError(f"{package}.domain defines no PARTICIPANT and no OBSERVER")
        found[package] = service
    return found


def choreography() -> Choreography:
    """The graph of all participants, and who observes them."""
    return Choreography(participants().values(), observers().values())
