"""The states that a group reads and changes, all under one transaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from sqlalchemy.engine import Connection

from saga.choreography import State
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.step import StateId
from saga.runtime.kernel.tables import Tables


class RestsOnBlank(Exception):
    """A decision has read a state that does not exist, and does not write it: nothing can be
    checked of that when the decision is written."""


class GroupStates:
    """The states of one group, as its decisions so far leave them.

    They are read with one statement per table and, with `lock`, locked.
    """

    def __init__(self, connection: Connection, tables: Tables, *, lock: bool) -> None:
        self._connection = connection
        self._tables = tables
        self._lock = lock
        self._states: dict[StateId, State] = {}
        self._versions: dict[StateId, int] = {}
        self._changed: set[StateId] = set()

    def load(self, ids: set[StateId]) -> None:
        """Read states with one statement per table; what does not exist is blank.

        With `lock`, replicas cannot deadlock over what is read by one call.
        """
        by_kind: defaultdict[type[State], list[str]] = defaultdict(list)
        for kind, key in ids - self._states.keys():
            by_kind[kind].append(key)
        for kind, table in self._tables.states.items():  # in one order, so as not to deadlock
            if not (keys := by_kind[kind]):
                continue
            found = table.load(self._connection, keys, lock=self._lock)
            for key in keys:
                state, version = found.get(key) or (kind(key), 0)
                self._states[kind, key] = state
                self._versions[kind, key] = version

    def find(self, state_id: StateId) -> State:
        """The state as the group has it by now."""
        if state_id not in self._states:
            self.load({state_id})
        return self._states[state_id]

    def change(self, changes: Mapping[StateId, State]) -> None:
        """Take in what a decision changed."""
        self._states.update(changes)
        self._changed.update(changes)

    def check(self, writes: WriteSet) -> None:
        """Queue a check that everything is still what was read. Raises `RestsOnBlank`."""
        for kind, table in self._tables.states.items():  # in one order, so as not to deadlock
            read = {key: version for (of, key), version in self._versions.items() if of is kind}
            existing = {key: version for key, version in read.items() if version}
            if any((kind, key) not in self._changed for key in read.keys() - existing.keys()):
                raise RestsOnBlank
            table.check(writes, existing)

    def save(self, writes: WriteSet) -> None:
        """Queue what changed for writing."""
        for kind, table in self._tables.states.items():
            changed = sorted(id for id in self._changed if id[0] is kind)
            table.save(writes, [(self._states[id], self._versions[id]) for id in changed])
