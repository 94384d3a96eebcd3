"""The books of a system that runs: its services' databases, and its history's."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import Fact, Stray
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.discovery import tables_of
from saga.envelope import MessageKey, source_of
from saga.history import pages
from saga.history.archive import Archive
from saga.reconcile.databases import sequences_in
from saga.recovery import RecoveryError
from saga.recovery.owed import Publications
from saga.runtime.kernel.kept import kept_events
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables


class DatabaseEvidence:
    """See `saga.recovery.owed.Evidence`. Raises `RecoveryError`, `DatabaseError` and
    `HistoryError`."""

    def __init__(self, deployment: Deployment, graph: Choreography) -> None:
        self._deployment = deployment
        self._history_url = Archive(deployment).url
        self._tables: dict[str, Tables] = {p.name: tables_of(p.name) for p in graph.in_python}

    def kept(self, participant: str) -> Publications:
        if participant not in self._tables:  # What it keeps is not known here.
            return Publications(source_of(participant), {})
        tables = self._tables[participant]

        def read(connection: Connection) -> Publications:
            there = sa.select(sa.literal(1)).select_from(tables.inbox).limit(1)
            kept = Publications(
                source_of(participant),
                sequences_in(connection, tables),
                has_inbox=connection.execute(there).first() is not None,
            )
            for bodies in kept_events(connection, tables):
                kept.take(bodies, lambda keys: pages.known_among(self._history_url, keys))
            return kept

        return read_database(self._url(participant), read)

    def done(self, participant: str, keys: Collection[MessageKey]) -> Collection[MessageKey]:
        if not keys:
            return ()
        if participant not in self._tables:
            causes = pages.causes_among(self._history_url, source_of(participant), keys)
            return [key for key in keys if key.id in causes]
        tables = self._tables[participant]
        return read_database(self._url(participant), lambda c: tables.already_done(c, keys).keys())

    def recorded(self, since: datetime) -> Iterator[Sequence[Fact | Stray]]:
        url = self._history_url
        up_to = pages.last_position(url)
        yield from pages.by_position(url, up_to, after=pages.last_before(url, since))
        for strays in pages.strays_of(url):
            yield [s for s in strays if s.recorded_at is not None and s.recorded_at >= since]

    def began(self) -> datetime | None:
        return pages.began(self._history_url)

    def last_recorded(self, participant: str) -> Mapping[str, int]:
        return pages.last_sequences(self._history_url, source_of(participant))

    def bodies(self, keys: Collection[MessageKey]) -> Mapping[MessageKey, bytes]:
        return {fact.attributes.key: fact.body for fact in pages.with_keys(self._history_url, keys)}

    def _url(self, participant: str) -> str:
        url = self._deployment.database_urls.get(participant)
        if url is None:
            raise RecoveryError(
                f"the deployment names no database of {participant}; add its URL to database_urls"
            )
        return url
