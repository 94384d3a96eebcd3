"""Going over the recorded subjects, a batch at a time, in this process or in several."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import Final

from saga import discovery
from saga.choreography import Choreography, Participant
from saga.declaration import Saga
from saga.envelope import source_of
from saga.history import HistoryError
from saga.past.again import review
from saga.past.findings import PastFindings
from saga.past.onward import Shapes, UnderWay, under_way
from saga.past.recorded import PendingMessages, Reached, RecordedSubject, RecordReader
from saga.past.shared import HandedOver, SharedPast
from saga.past.steps import ParticipantPast
from saga.runtime.kernel.fold import is_shared
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.wording import counted

AHEAD: Final = 3
"""Batches for each process that wait for it, or for what came of earlier ones to be counted."""


@dataclass
class BatchReview:
    """What came of a batch of subjects."""

    findings: PastFindings
    subjects: int = 0
    events: int = 0
    waiting: list[UnderWay] = field(default_factory=list)
    shapes: Shapes = field(default_factory=Shapes)


class GoingOver:
    """Decides again what all participants of a saga have decided."""

    def __init__(
        self,
        saga: Saga,
        reader: RecordReader,
        reached: Reached,
        shared: Mapping[str, SharedPast],
        way: PendingMessages,
    ) -> None:
        self._reader = reader
        self._graph = saga.choreography
        self._reached = reached
        self._shared = shared
        self._way = way
        self._findings = PastFindings()
        self._pasts = [
            ParticipantPast(
                participant,
                self._graph,
                saga.asked_by(participant.name),
                self._findings,
                reached,
                way,
                shared.get(participant.name),
            )
            for participant in self._graph.in_python
        ]
        self._sources = {source_of(p.name) for p in self._graph.participants} | {EDITOR_SOURCE}
        self._foreign = {source_of(p.name): p.name for p in self._graph.participants if p.foreign}

    def batches(self, chosen: Sequence[str] | None, jobs: int) -> Iterator[BatchReview]:
        """What came of the chosen subjects, or of all, in their order. Raises `DatabaseError`, and
        `HistoryError` if a process ends."""
        if jobs == 1:
            yield from map(self.over, self._reader.told(self._reader.batches(chosen)))
            return
        given = {name: past.handed_over() for name, past in self._shared.items()}
        beginning = self._reader.url, self._reader.up_to, self._reached, given, self._way
        # Threads, such as that of a progress bar, are no good in a process that is a copy.
        spawned = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(jobs, spawned, initializer=_begin, initargs=beginning)
        try:
            waiting: deque[Future[BatchReview]] = deque()
            for batch in self._reader.batches(chosen):
                waiting.append(pool.submit(_over_here, batch))
                if len(waiting) > AHEAD * jobs:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise HistoryError(
                f"one of {counted(jobs, 'process')} has ended, perhaps for want of memory, so "
                f"not all was "
                f"looked at; allow fewer with --jobs"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)

    def read_over(self, batch: Sequence[str]) -> BatchReview:
        """What came of these subjects. Raises `DatabaseError`."""
        return self.over(self._reader.these(batch))

    def over(self, batch: Iterable[RecordedSubject]) -> BatchReview:
        """What came of a batch."""
        done = BatchReview(self._findings)
        for told in batch:
            reviews = {past.name: review(past, told) for past in self._pasts}
            self._note_the_rest(told)
            done.shapes.take(told.subject, reviews)
            if (waiting := under_way(self._graph, told, reviews)) is not None:
                done.waiting.append(waiting)
            done.subjects += 1
            done.events += len(told.events) + len(told.unreadable)
        done.findings = self._findings.drain()
        return done

    def _note_the_rest(self, told: RecordedSubject) -> None:
        """Note what is no participant's part: what cannot be read here, or was not published
        here."""
        for source, type_ in told.unreadable:
            if source in self._sources:
                self._findings.miss(f"this version cannot read {type_}", told.subject)
            else:
                self._miss_participant(source, told.subject)
        for event in told.events:
            source = event.envelope.source
            if source not in self._sources:
                self._miss_participant(source, told.subject)
            elif (name := self._foreign.get(source)) is not None:
                what = f"what {name} decided, which is in another language"
                self._findings.leave(what, told.subject)

    def _miss_participant(self, source: str, subject: str) -> None:
        self._findings.miss(f"{source} is no participant of this version", subject)


def sharing(graph: Choreography) -> Collection[Participant]:
    """The participants with states that several subjects share."""
    return [p for p in graph.in_python if any(map(is_shared, p.states))]


_here: GoingOver | None = None
"""What a process of several goes over subjects with."""


def _begin(
    url: str, up_to: int, reached: Reached, given: Mapping[str, HandedOver], way: PendingMessages
) -> None:
    global _here
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that began this one.
    saga = discovery.saga()
    graph = saga.choreography
    shared = {p.name: SharedPast(p, given[p.name]) for p in sharing(graph)}
    _here = GoingOver(saga, RecordReader(url, graph, up_to), reached, shared, way)


def _over_here(batch: Sequence[str]) -> BatchReview:
    assert _here is not None  # noqa: S101 - the pool begins with that
    return _here.read_over(batch)
