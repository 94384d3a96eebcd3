"""One archive against the reactions of this working tree."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from saga.archive import queries
from saga.choreography import Choreography, Participant
from saga.declaration import Saga
from saga.deployment import dead_letters_url_in
from saga.history import pages
from saga.history.archive import Archive
from saga.history.letters import letters_in
from saga.history.rebuild import CATCH_UP_SECONDS
from saga.history.sources import Sources
from saga.history.whereabouts import Place, in_store, look
from saga.past.findings import PastFindings
from saga.past.onward import OpenSagaExplorer, Shapes, UnderWay
from saga.past.over import GoingOver, sharing
from saga.past.recorded import PendingMessages, RecordReader, count_published, count_subjects
from saga.past.shared import SharedPast
from saga.runtime.kernel.tables import utc_now

Progress = Callable[[int], None]
BARS: Final = ("shared", "subjects", "explored")
"""What takes long, one after the other."""


@dataclass
class Against:
    """What came of one archive. `subjects` of `total` were looked at."""

    saga: Saga
    total: int
    subjects: int = 0
    events: int = 0
    findings: PastFindings = field(default_factory=PastFindings)
    onward: OpenSagaExplorer | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs, nothing can go wrong, and all that can be looked at was."""
        found = self.findings
        wrong = found.differences() or found.not_looked_at or not found.compared
        return not wrong and (self.onward is None or self.onward.ok)

    @property
    def whole(self) -> bool:
        """Whether it was all subjects, all reactions and all fields, no message came late, no
        outside is asked, and what can still happen was taken for granted nowhere."""
        found = self.findings
        left = found.not_told or found.late() or self.subjects < self.total or self.asked()
        if self.onward is not None and self.onward.remarks:
            return False
        return not left and next(self.untouched(), None) is None

    def asked(self) -> list[str]:
        """The names of what is asked outside. What it holds is in no event."""
        participants = self.saga.choreography.in_python
        reactions = (reaction for p in participants for reaction in p.reactions)
        return sorted({intent.__name__ for each in reactions for intent in each.intends})

    def untouched(self) -> Iterator[str]:
        """The reactions to which nothing recorded came, as `participant.reaction`."""
        for participant in self.saga.choreography.in_python:
            for reaction in participant.reactions:
                if (participant.name, reaction.name) not in self.findings.ran:
                    yield f"{participant.name}.{reaction.name}"


async def on_their_way(sources: Sources, graph: Choreography, folder: Path) -> PendingMessages:
    """What of the system in a folder is known to be on its way, or put away: by its queues if it
    runs, and by the store of dead letters. The history has to have caught up with it.

    Raises `HistoryError`, `BrokerError` and `DlqError`.
    """
    deployment = sources.deployment
    url = dead_letters_url_in(folder) if deployment is None else deployment.dead_letters_url
    letters = await asyncio.to_thread(letters_in, url)
    looked_at, ready = None, {}
    if deployment is None:
        found = in_store(letters)
    else:
        await Archive(deployment).catch_up(CATCH_UP_SECONDS)
        looked_at = utc_now()
        seen = await look(deployment, graph, letters)
        found, ready = seen.found, seen.ready
    settled = frozenset(key for key, where in found.items() if where.place is Place.SETTLED)
    return PendingMessages(found.keys() - settled, settled, looked_at, ready)


def totals(saga: Saga, url: str, sample: int | None) -> dict[str, int | None]:
    """How far each bar goes: events that change what subjects share, subjects to decide again on,
    and subjects to explore from, which is not known before. Blocks. Raises `DatabaseError`."""
    shared = sum(count_published(url, each) for each in sharing(saga.choreography))
    total = count_subjects(url)
    subjects = total if sample is None else min(sample, total)
    return dict(zip(BARS, (shared, subjects, None), strict=True))


def compare(
    saga: Saga,
    url: str,
    *,
    sample: int | None = None,
    seed: int = 0,
    way: PendingMessages | None = None,
    states_max: int | None = None,
    scenarios: bool = True,
    jobs: int = 1,
    progress: Mapping[str, Progress] | None = None,
    scenario: Callable[[str], None] = lambda _: None,
) -> Against:
    """Decide again what the archive at that URL has, and explore on from where its sagas are.

    With a `sample`, so many subjects are drawn by the seed. With several `jobs`, processes decide
    again; the saga has to be the project's then. `progress` is told of each step, by the name of
    its bar, see `totals`; `scenario` of the name of each scenario before it is explored. Blocks.
    Raises `DatabaseError`, and `HistoryError` if a process ends.
    """
    tell = {name: lambda _: None for name in BARS} | dict(progress or {})
    graph = saga.choreography
    reader = RecordReader(url, graph, pages.last_position(url))
    run = Against(saga, reader.count())
    chosen = reader.sample(sample, seed) if sample is not None and sample < run.total else None
    with contextlib.ExitStack() as files:
        shared = {
            participant.name: files.enter_context(_shared(reader, participant, tell["shared"]))
            for participant in sharing(graph)
        }
        reached = reader.reached()
        for gap in pages.read_at_once(url, queries.known_gaps):
            run.findings.miss(f"the history lacks the stream's offsets {gap}", "")
        going_over = GoingOver(saga, reader, reached, shared, way or PendingMessages())
        waiting: dict[str, UnderWay] = {}
        shapes = Shapes()
        for found in going_over.batches(chosen, jobs):
            run.findings.add(found.findings)
            run.events += found.events
            run.subjects += found.subjects
            waiting |= {each.subject: each for each in found.waiting}
            shapes.add(found.shapes)
            tell["subjects"](found.subjects)
        onward = run.onward = OpenSagaExplorer(saga, shared, reached, states_max=states_max)
        for told in itertools.chain.from_iterable(reader.told(reader.batches([*waiting]))):
            onward.take(told, waiting[told.subject])
            tell["explored"](1)
        if scenarios:
            onward.compare_scenarios(shapes, scenario)
    return run


@contextlib.contextmanager
def _shared(
    reader: RecordReader, participant: Participant, progress: Progress
) -> Iterator[SharedPast]:
    """The shared states of a participant, by all that it published."""
    past = SharedPast(participant)
    try:
        for page in reader.published_by(participant):
            past.take(page, reader.one)
            progress(len(page))
        yield past
    finally:
        past.close()
