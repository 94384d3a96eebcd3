"""Where a system's books are, whether it runs or only its folder is left."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from saga.archive import OBSERVER
from saga.choreography import Choreography, Participant
from saga.deployment import Deployment, DeploymentError, outside_urls_in
from saga.discovery import saga, services
from saga.errors import InputError
from saga.history import HistoryError
from saga.runtime.urls import sqlite_url


@dataclass(frozen=True, slots=True)
class Sources:
    """The databases; `deployment` is None where the system does not run, and what waits on its
    broker is unknown."""

    history_url: str
    database_urls: dict[str, str]
    outside_urls: dict[str, str]
    deployment: Deployment | None

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Those of the system that runs in `folder`, or that ran there on SQLite. Raises
        `DeploymentError`."""
        try:
            deployment = Deployment.load(folder)
        except DeploymentError:
            names = [service.name for service in services().values()]
            urls = {name: sqlite_url(folder.resolve() / f"{name}.db") for name in names}
            if not (folder / f"{OBSERVER.name}.db").is_file():
                raise
            outsides = outside_urls_in(folder, saga().outside)
            return cls(urls[OBSERVER.name], urls, outsides, None)
        return cls.of_deployment(deployment)

    @classmethod
    def of_deployment(cls, deployment: Deployment) -> Self:
        """Those of a running system. Raises `HistoryError` if it has no history."""
        url = deployment.database_urls.get(OBSERVER.name)
        if url is None:
            raise HistoryError(
                "this system has no history service; start it again with this version of `saga up`"
            )
        return cls(url, deployment.database_urls, deployment.outside_urls, deployment)

    def database_url(self, participant: str) -> str:
        """The database of one participant. Raises `HistoryError`."""
        url = self.database_urls.get(participant)
        if url is None:
            raise HistoryError(f"the deployment names no database of {participant}")
        return url


def participant_named(graph: Choreography, name: str) -> Participant:
    """A participant of that name, whose database is known here. Raises `InputError`."""
    for participant in graph.in_python:
        if participant.name == name:
            return participant
    if any(participant.name == name for participant in graph.foreign):
        raise InputError(
            f"{name} is in another language: how its database is rebuilt is for its authors to "
            f"say; `saga history export` has the events to make it of"
        )
    names = ", ".join(participant.name for participant in graph.in_python)
    raise InputError(f"there is no participant {name!r}; there are {names}")
