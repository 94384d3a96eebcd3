"""States that several subjects share, such as how many rooms are free, as they were at each moment.

They change by events about other subjects, so they cannot be told from one subject's events. All
that their participant has published is folded once, in the order in which it was recorded, and each
state that came of it is kept in a file.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from saga.choreography import Participant, State
from saga.envelope import source_of
from saga.past.recorded import RecordedEvent, RecordedSubject
from saga.runtime.kernel.fold import Fold, is_shared
from saga.runtime.kernel.step import StateId, evolved

OWN_MAX: Final = 20_000
"""States of single subjects that are held meanwhile; others are folded again when they are needed.
"""
NEAR: Final = 16
"""Changes of a state before and after a moment that may have been the other way round: what was
published at the same time by several replicas is in one order in the database, and may be in
another one in the history."""


class _Versions:
    """The states that one state came to: where in the history, and where in the file."""

    __slots__ = ("lengths", "offsets", "positions")

    def __init__(self) -> None:
        self.positions = array("q")
        self.offsets = array("q")
        self.lengths = array("l")


class HandedOver(NamedTuple):
    """Shared states on their way to another process: the file and its size, and what is in it."""

    path: str
    latest: dict[StateId, State]
    versions: dict[StateId, _Versions]
    size: int


class SharedPast:
    """The shared states of one participant. To be closed; its file ends with it."""

    def __init__(self, participant: Participant, given: HandedOver | None = None) -> None:
        """With what is `given`, those that another process has taken; it must not be closed there
        before it is closed here. Raises `OSError`."""
        self.kinds = frozenset(filter(is_shared, participant.states))
        self._participant = participant
        self._source = source_of(participant.name)
        self._fold = Fold(participant)
        self._own: OrderedDict[StateId, State] = OrderedDict()
        self._map: mmap.mmap | None = None
        """What is written, once something was read; nothing is written any more then."""
        self._file: IO[bytes]
        self._latest: dict[StateId, State]
        self._versions: dict[StateId, _Versions]
        if given is None:
            self._file = tempfile.NamedTemporaryFile(prefix="saga-shared-")  # noqa: SIM115
            self._latest, self._versions, self._size = {}, {}, 0
        else:
            self._file = Path(given.path).open("rb")  # noqa: SIM115 - see `close`
            self._latest, self._versions, self._size = given.latest, given.versions, given.size

    def close(self) -> None:
        if self._map is not None:
            self._map.close()
        self._file.close()

    def handed_over(self) -> HandedOver:
        """What another process needs to read the same, for as long as this is not closed."""
        self._file.flush()
        return HandedOver(self._file.name, self._latest, self._versions, self._size)

    def take(
        self, events: Iterable[RecordedEvent], again: Callable[[str], RecordedSubject]
    ) -> None:
        """Fold what the participant published next; `again` reads a subject once more. All is to be
        taken before anything is asked for."""
        assert self._map is None  # noqa: S101 - a fault of ours
        for event in events:
            envelope = event.envelope
            kind = self._fold.kind_of(envelope.type)
            if kind is None:
                continue
            own_id = kind, envelope.subject
            if own_id not in self._own and kind not in self.kinds and (envelope.sequence or 1) > 1:
                self._own[own_id] = self._own_before(own_id, event, again)

            def find(id: StateId) -> State:
                return self._latest.get(id) or self._own.get(id) or id[0](id[1])

            changes = evolved(self._participant, own_id, envelope.data, find, envelope.time)
            own = changes.get(own_id) or find(own_id)
            changes[own_id] = replace(own, sequence=envelope.sequence or own.sequence + 1)
            for id, state in changes.items():
                if id[0] in self.kinds:
                    self._keep(id, state, event.position)
                else:
                    self._own[id] = state
                    self._own.move_to_end(id)
            while len(self._own) > OWN_MAX:
                self._own.popitem(last=False)

    def _own_before(
        self, own_id: StateId, event: RecordedEvent, again: Callable[[str], RecordedSubject]
    ) -> State:
        """A subject's own state before one of its events."""
        fold = Fold(self._participant)
        told = again(own_id[1]).events
        before = [
            e.envelope
            for e in told
            if e.envelope.source == self._source
            and fold.kind_of(e.envelope.type) is not None
            and (e.envelope.sequence or 0) < (event.envelope.sequence or 0)
        ]
        for envelope in sorted(before, key=lambda envelope: envelope.sequence or 0):
            fold.take(envelope)
        return fold.find(own_id)

    def _keep(self, id: StateId, state: State, position: int) -> None:
        versions = self._versions.setdefault(id, _Versions())
        versions.positions.append(position)
        body = pickle.dumps(state, pickle.HIGHEST_PROTOCOL)
        versions.offsets.append(self._size)
        versions.lengths.append(len(body))
        self._file.write(body)
        self._size += len(body)
        self._latest[id] = state

    def at(self, id: StateId, position: int) -> State:
        """The state right before the event at that position of the history."""
        versions = self._versions.get(id)
        number = 0 if versions is None else bisect_left(versions.positions, position)
        return self._read(id, versions, number)

    def latest(self, id: StateId) -> State:
        """The state by the end of the history."""
        return self._latest.get(id) or id[0](id[1])

    def near(self, ids: Iterable[StateId], position: int) -> Iterator[int]:
        """The positions about that one at which one of these states was another, nearest first."""
        found: set[int] = set()
        for id in ids:
            versions = self._versions.get(id)
            if versions is not None:
                number = bisect_left(versions.positions, position)
                # After a change of it, or before that.
                found.update(
                    p + 1 for p in versions.positions[max(0, number - NEAR) : number + NEAR]
                )
                found.update(versions.positions[max(0, number - NEAR) : number + NEAR])
        found.discard(position)
        return iter(sorted(found, key=lambda other: abs(other - position)))

    def _read(self, id: StateId, versions: _Versions | None, number: int) -> State:
        if versions is None or number == 0:
            return id[0](id[1])
        if number == len(versions.positions):
            return self._latest[id]
        if self._map is None:
            # What is read of it needs no system call, which would give way to the reading thread.
            self._own.clear()
            if self._file.writable():
                self._file.flush()
            self._map = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        start = versions.offsets[number - 1]
        body = self._map[start : start + versions.lengths[number - 1]]
        state: Any = pickle.loads(body)  # noqa: S301 - this process has written it
        assert isinstance(state, State)  # noqa: S101 - nothing else is in the file
        return state
