"""Archives of what was played or simulated, for what reads recorded sagas."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from saga.archive.store import Fact, events, gaps, row_of
from saga.declaration import Saga
from saga.envelope import Envelope
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.simulation import silence
from saga.simulation.recovery import as_read
from saga.simulation.scene import Scene
from saga.simulation.server import PartsUnderTest
from saga.simulation.world import World


def facts_of(envelopes: Iterable[Envelope[Any]]) -> list[Fact]:
    """The events as the archive takes them."""
    return [Fact(envelope, envelope.to_bytes()) for envelope in envelopes]


def archive_with(folder: Path, facts: Sequence[Fact], name: str = "history.db") -> str:
    """The URL of an archive with these events, in this order."""
    url = f"sqlite:///{folder / name}"
    engine = sa.create_engine(url)
    rows = [row_of(f.attributes.id, f, n, utc_now()) for n, f in enumerate(facts, start=1)]
    with engine.begin() as connection:
        for table in (events, gaps):
            table.create(connection)
        if rows:
            connection.execute(events.insert(), rows)
    engine.dispose()
    return url


def simulated(saga: Saga, seeds: Iterable[int]) -> Iterator[tuple[int, list[Fact]]]:
    """What the history would have of simulated runs, full of faults, each with its seed."""
    with closing(Scene(saga)) as scene:
        for seed in seeds:
            world = World(seed, scene, PartsUnderTest())
            with silence():
                world.run()
            found = as_read(world.broker.messages_in(HISTORY_STREAM), saga.choreography)
            facts = {one.attributes.key: one for one in found if isinstance(one, Fact)}
            yield seed, list(facts.values())
