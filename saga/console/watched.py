"""The system that a console shows: where its parts are by now, and who takes part in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import Connection

from saga.choreography import Choreography
from saga.declaration import Saga
from saga.deployment import FILE_NAME, Deployment
from saga.history.archive import Archive

T = TypeVar("T")


class Watched:
    """One system, which may be stopped and started again while it is watched."""

    def __init__(self, folder: Path, saga: Saga, *, spec: str = "") -> None:
        """`spec` is where the saga is declared, as `module:NAME`, if it is not the project's."""
        self.folder = folder
        self.saga = saga
        self.spec = spec
        self._read: tuple[int, Deployment] | None = None

    @property
    def graph(self) -> Choreography:
        return self.saga.choreography

    @property
    def deployment(self) -> Deployment:
        """Where its parts are. Raises `DeploymentError` while it does not run."""
        try:
            changed = (self.folder / FILE_NAME).stat().st_mtime_ns
        except OSError:
            return Deployment.load(self.folder)  # which says what to do
        if self._read is None or self._read[0] != changed:
            self._read = changed, Deployment.load(self.folder)
        return self._read[1]

    @property
    def archive(self) -> Archive:
        """Raises `HistoryError` and `DeploymentError`."""
        return Archive(self.deployment)

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on the archive. Raises `HistoryError`, `DeploymentError` and
        `DatabaseError`."""
        return await self.archive.read(query)
