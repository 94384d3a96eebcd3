"""One archive against the reactions of this working tree."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from saga.archive import queries
from saga.choreography import Choreography, Participant
from saga.declaration import Saga
from saga.deployment import dead_letters_url_in
from saga.envelope import source_of
from saga.history import pages
from saga.history.archive import Archive
from saga.history.letters import letters_in
from saga.history.rebuild import CATCH_UP_SECONDS
from saga.history.sources import Sources
from saga.history.whereabouts import Place, in_store, look
from saga.past.again import OnTheirWay, Reviewer
from saga.past.findings import PastFindings
from saga.past.onward import Onward
from saga.past.recorded import RecordedSubject, RecordReader
from saga.past.shared import SharedPast
from saga.runtime.kernel.fold import is_shared
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.trust import EDITOR_SOURCE

Progress = Callable[[int], None]


@dataclass
class Against:
    """What came of one archive. `subjects` of `total` were looked at."""

    saga: Saga
    total: int
    subjects: int = 0
    events: int = 0
    findings: PastFindings = field(default_factory=PastFindings)
    onward: Onward | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing differs, nothing can go wrong, and all that can be looked at was."""
        found = self.findings
        wrong = found.differences() or found.not_looked_at or not found.compared
        return not wrong and (self.onward is None or self.onward.ok)

    @property
    def whole(self) -> bool:
        """Whether it was all subjects, all reactions and all fields, no message came late, and
        nobody outside is asked."""
        found = self.findings
        left = found.not_told or found.late() or self.subjects < self.total or self.asked()
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


async def on_their_way(sources: Sources, graph: Choreography, folder: Path) -> OnTheirWay:
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
    return OnTheirWay(found.keys() - settled, settled, looked_at, ready)


def compare(
    saga: Saga,
    url: str,
    *,
    sample: int | None = None,
    seed: int = 0,
    way: OnTheirWay | None = None,
    states_max: int | None = None,
    scenarios: bool = True,
    subjects: Progress = lambda _: None,
    scenario: Callable[[str], None] = lambda _: None,
) -> Against:
    """Decide again what the archive at that URL has, and explore on from where its sagas are.

    With a `sample`, so many subjects are drawn by the seed. `subjects` is told of each that was
    looked at, `scenario` of the name of each scenario before it is explored. Blocks. Raises
    `DatabaseError`.
    """
    graph = saga.choreography
    reader = RecordReader(url, graph, pages.last_position(url))
    run = Against(saga, reader.count())
    chosen = reader.sample(sample, seed) if sample is not None and sample < run.total else None
    with contextlib.ExitStack() as files:
        shared = {
            p.name: files.enter_context(_shared(reader, p))
            for p in graph.in_python
            if any(map(is_shared, p.states))
        }
        reached = reader.reached()
        reviewers = [
            Reviewer(
                participant,
                graph,
                saga.asked_by(participant.name),
                run.findings,
                reached,
                shared=shared.get(participant.name),
                way=way,
            )
            for participant in graph.in_python
        ]
        for gap in pages.read_at_once(url, queries.known_gaps):
            run.findings.miss(f"the history lacks the stream's offsets {gap}", "")
        onward = Onward(saga, shared, reached, states_max=states_max)
        sources = {source_of(p.name) for p in graph.participants} | {EDITOR_SOURCE}
        foreign = [p for p in graph.participants if p.foreign]
        for page in reader.told(chosen):
            for told in page:
                reviews = {r.participant.name: r.review(told) for r in reviewers}
                _note_the_rest(run.findings, told, sources, foreign)
                onward.take(told, reviews)
                run.events += len(told.events) + len(told.unreadable)
            run.subjects += len(page)
            subjects(len(page))
        onward.finish(scenarios=scenarios, tell_of=scenario)
        run.onward = onward
    return run


@contextlib.contextmanager
def _shared(reader: RecordReader, participant: Participant) -> Iterator[SharedPast]:
    """The shared states of a participant, by all that it published."""
    past = SharedPast(participant)
    try:
        for page in reader.published_by(participant):
            past.take(page, reader.one)
        yield past
    finally:
        past.close()


def _note_the_rest(
    findings: PastFindings,
    told: RecordedSubject,
    sources: Collection[str],
    foreign: Sequence[Participant],
) -> None:
    """Note what no participant's part is: what nobody here can read, or published."""
    for source, type_ in told.unreadable:
        if source in sources:
            findings.miss(f"this version cannot read {type_}", told.subject)
        else:
            findings.miss(f"{source} is no participant of this version", told.subject)
    by = {participant.name: source_of(participant.name) for participant in foreign}
    for event in told.events:
        source = event.envelope.source
        if source not in sources:
            findings.miss(f"{source} is no participant of this version", told.subject)
        for name, its_source in by.items():
            if source == its_source:
                findings.leave(f"what {name} decided, which is in another language", told.subject)
