"""An export of a history as an archive of its own, for as long as it is read."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import Fact, Stray, events, gaps, row_of
from saga.history import transfer
from saga.runtime.kernel.tables import inbox_key, utc_now
from saga.runtime.urls import sqlite_url

Progress = Callable[[int], None]


@contextmanager
def archive_of(file: Path, progress: Progress = lambda _: None) -> Iterator[str]:
    """The URL of a database with the events of an export. `progress` is told of each. Blocks.
    Raises `InputError` for a file that is none."""
    with tempfile.TemporaryDirectory(prefix="saga-export-") as folder:
        url = sqlite_url(Path(folder) / "history.db")
        # It is thrown away, so nothing waits for the disk.
        engine = sa.create_engine(url, hide_parameters=True)
        try:
            with engine.begin() as connection:
                connection.exec_driver_sql("PRAGMA synchronous=OFF")
                for table in (events, gaps):
                    table.create(connection)
                for first, last in transfer.gaps_in(file):
                    row = {"first": first, "last": last, "noticed_at": utc_now()}
                    connection.execute(gaps.insert(), [row])
                position = 0
                for batch in transfer.read(file):
                    position = _keep(connection, batch, position)
                    progress(len(batch))
        finally:
            engine.dispose()
        yield url


def _keep(connection: Connection, batch: Sequence[Fact | Stray], position: int) -> int:
    """Keep the events of a batch behind a position, each once; the position of the last one."""
    facts = [item for item in batch if isinstance(item, Fact)]
    ids = {id for f in facts for id in (f.attributes.id, inbox_key(f.attributes.key))}
    query = sa.select(events.c.event_id, events.c.source).where(events.c.event_id.in_(ids))
    sources = {row.event_id: row.source for row in connection.execute(query)}
    rows: list[dict[str, Any]] = []
    for fact in facts:
        source, id = fact.attributes.key
        if sources.get(id, source) != source:  # Another source's event has that id.
            id = inbox_key(fact.attributes.key)
        if id not in sources:
            sources[id] = source
            position += 1
            rows.append(row_of(id, fact, position, utc_now()))
    if rows:
        connection.execute(events.insert(), rows)
    return position
