"""Where dead letters are kept: one SQLite file, with every replay and an audit record.

A letter is inserted, and that committed, before its message leaves the queue. Everything else is
done on the store. Any number of commands may use it at the same time; all of it blocks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq import DlqError, SelectionChanged
from saga.dlq.arrivals import take
from saga.dlq.audit import AuditEntry, append, newest
from saga.dlq.groups import LetterGroup, deaths_in, groups_in
from saga.dlq.letters import Copy, DeadLetter, from_text
from saga.dlq.quotations import masked_error
from saga.dlq.replays import Replays
from saga.dlq.selection import (
    FrozenSelection,
    Selection,
    conditions_of,
    letter_of,
    query_of,
    states_there,
)
from saga.dlq.states import SETTLED, LetterState
from saga.dlq.tables import (
    chunks,
    copies,
    edits,
    items,
    letters,
    make_tables,
    path_of,
    reading,
    runs,
)
from saga.errors import InputError, NotFound
from saga.personal.masks import without_names
from saga.runtime.kernel.sqlite import scrub, sqlite_engine
from saga.runtime.kernel.tables import utc_now
from saga.wording import counted


class Store:
    """The dead letters of one system. Raises `DlqError` where the file cannot be used."""

    def __init__(self, url: str) -> None:
        """Open the store, and make it where there is none."""
        self.path = path_of(url)
        self._engine = sqlite_engine(url)
        self.names_in: Callable[[bytes], frozenset[str]] | None = None
        """Whom a message names, for conditions on errors that do not; see `Selection`."""
        sa.event.listen(self._engine, "connect", self._know_masking)
        self.replays = Replays(self._engine)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            make_tables(self._engine)
        except (OSError, sa.exc.DBAPIError) as error:
            self._engine.dispose()
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error.strerror
            raise DlqError(
                f"cannot keep dead letters in {self.path}: {reason}; make that a file that can be "
                f"written, or name another folder with --data-dir or DATA_DIR"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    def _know_masking(self, connection: Any, _: Any) -> None:
        """Let conditions ask for what is left of an error, as who searches is shown it."""
        connection.create_function("masked_error", 1, masked_error, deterministic=True)
        connection.create_function("nameless_error", 2, self._nameless_error)

    def _nameless_error(self, error: str, body: bytes) -> str:
        """The error without whom its message names; where nothing here tells names, without
        anything that it quotes."""
        if self.names_in is None:
            return masked_error(error)
        return without_names(error, self.names_in(body))

    # --- collecting --------------------------------------------------------------------------

    def take(self, found: Sequence[Copy], now: datetime) -> int:
        """Keep what one participant's queue held; returns how many copies were not known yet."""
        if not found:
            return 0
        with self._engine.begin() as connection:
            return take(connection, found, now)

    # --- reading -----------------------------------------------------------------------------

    def find(
        self,
        selection: Selection,
        states: Collection[LetterState] = (),
        *,
        contents: bool = True,
        now: datetime | None = None,
    ) -> list[DeadLetter]:
        """The letters selected, in any of these states, in order of their first failure.

        Without `contents` their headers, properties and bodies are left out, which is faster.
        """
        found: list[DeadLetter] = []
        with reading(self._engine) as connection:
            for part in chunks(selection.numbers) if selection.numbers else [()]:
                query = query_of(replace(selection, numbers=tuple(part)), states, contents, now)
                found += (letter_of(row, contents) for row in connection.execute(query))
        return sorted(found, key=lambda letter: (letter.first_failed_at, letter.number))

    def page(
        self,
        selection: Selection,
        states: Collection[LetterState],
        limit: int,
        after: tuple[datetime, int] | None = None,
        *,
        contents: bool = False,
    ) -> list[DeadLetter]:
        """So many of the letters selected, in the order of `find`, those behind the one with that
        first failure and number."""
        first, number = letters.c.first_failed_at, letters.c.number
        with reading(self._engine) as connection:
            # Which they are comes first, from an index: to sort whole rows of all would take long.
            wanted = conditions_of(selection, states_there(connection, states), None)
            which = sa.select(number).where(*wanted).order_by(first, number).limit(limit)
            if after is not None:
                time, last = after
                which = which.where((first > time) | ((first == time) & (number > last)))
            query = query_of(Selection(), (), contents, None).where(number.in_(which))
            rows = connection.execute(query.order_by(first, number))
            return [letter_of(row, contents) for row in rows]

    def has(self, selection: Selection) -> bool:
        """Whether there is any such letter, in whatever state."""
        query = sa.select(letters.c.number).where(*conditions_of(selection, (), None)).limit(1)
        with reading(self._engine) as connection:
            return connection.scalar(query) is not None

    def count(self, selection: Selection, states: Collection[LetterState]) -> int:
        """How many letters are selected."""
        with reading(self._engine) as connection:
            return _count(connection, selection, states)

    def numbers(
        self,
        selection: Selection,
        states: Collection[LetterState],
        *,
        now: datetime | None = None,
    ) -> list[int]:
        """The numbers of all letters selected."""
        with reading(self._engine) as connection:
            return _numbers(connection, selection, states, now)

    def groups(
        self,
        selection: Selection,
        states: Collection[LetterState],
        by: str,
        *,
        limit: int | None = None,
        after: tuple[int, str] | None = None,
    ) -> list[LetterGroup]:
        """The letters selected, grouped by `fingerprint`, `type` or `service`, the largest group
        first; see `groups_in`."""
        with reading(self._engine) as connection:
            return groups_in(connection, selection, states, by, limit=limit, after=after)

    def deaths(
        self,
        selection: Selection,
        states: Collection[LetterState],
        by: str,
        groups: Sequence[LetterGroup],
        until: datetime,
        parts: int,
    ) -> dict[str, list[int]]:
        """How many letters of each group died last in each part of the time; see `deaths_in`."""
        with reading(self._engine) as connection:
            return deaths_in(connection, selection, states, by, groups, until, parts)

    def get(self, number: int) -> DeadLetter:
        """One letter. Raises `InputError`."""
        found = self.find(Selection(numbers=(number,)))
        if not found:
            raise NotFound(f"there is no dead letter {number}; `saga dlq list` names those known")
        return found[0]

    def numbers_known(self, numbers: Collection[int]) -> set[int]:
        """Those of the numbers that letters have."""
        with reading(self._engine) as connection:
            return {
                number
                for part in chunks(numbers)
                for number in connection.scalars(
                    sa.select(letters.c.number).where(letters.c.number.in_(part))
                )
            }

    def number_of(self, key: str) -> list[int]:
        """The numbers of the letters with this message id."""
        with reading(self._engine) as connection:
            query = sa.select(letters.c.number).where(
                (letters.c.key == key) | (letters.c.event_id == key)
            )
            return list(connection.scalars(query))

    def numbers_named(self, id: str) -> list[int]:
        """The letters with a number or a message id. Raises `InputError` if there are none."""
        if id.isdecimal() and len(id) < 16 and self.numbers_known([int(id)]):
            return [int(id)]
        found = self.number_of(id)
        if not found:
            raise NotFound(
                f"there is no dead letter {id!r}; `saga dlq list --by letter` names those known"
            )
        return found

    def number_named(self, id: str) -> int:
        """The one letter with a number or a message id. Raises `InputError`."""
        numbers = self.numbers_named(id)
        if len(numbers) > 1:
            raise InputError(
                f"{id!r} is dead at several services; name one of the letters "
                f"{', '.join(map(str, numbers))}"
            )
        return numbers[0]

    def knows(self, subject: str) -> bool:
        with reading(self._engine) as connection:
            query = sa.select(letters.c.number).where(letters.c.subject == subject).limit(1)
            return connection.scalar(query) is not None

    def copies_of(self, number: int) -> list[tuple[str, dict[str, Any]]]:
        """The dead-letter time and headers of each copy of a letter, in order of arrival."""
        with reading(self._engine) as connection:
            query = sa.select(copies.c.died, copies.c.headers).where(copies.c.letter == number)
            rows = connection.execute(query.order_by(copies.c.id))
            return [(row.died.partition(" ")[0], from_text(row.headers)) for row in rows]

    def states_of(self, numbers: Collection[int]) -> dict[int, LetterState]:
        with reading(self._engine) as connection:
            return {
                row.number: row.state
                for part in chunks(numbers)
                for row in connection.execute(
                    sa.select(letters.c.number, letters.c.state).where(letters.c.number.in_(part))
                )
            }

    # --- changing ----------------------------------------------------------------------------

    def settle_done(self, numbers: Collection[int]) -> None:
        """What was sent is known to be done."""
        with self._engine.begin() as connection:
            for part in chunks(numbers):
                connection.execute(
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state != LetterState.DISCARDED)
                    .values(state=LetterState.DONE)
                )

    def discard(
        self, selection: Selection, reason: str, *, confirmed: FrozenSelection | None = None
    ) -> list[int]:
        """Set dead letters aside for good; `restore` brings them back. Returns their numbers.

        If the letters that were `confirmed` are not all of that selection any more, nothing
        changes; others that came later stay as they are. Raises `SelectionChanged`.
        """
        old, new = LetterState.DEAD, LetterState.DISCARDED
        return self._turn(selection, old, new, reason, "discard", confirmed)

    def restore(
        self, selection: Selection, reason: str, *, confirmed: FrozenSelection | None = None
    ) -> list[int]:
        """Make discarded letters dead letters again. Returns their numbers. `confirmed` is as with
        `discard`."""
        old, new = LetterState.DISCARDED, LetterState.DEAD
        return self._turn(selection, old, new, reason, "restore", confirmed)

    def _turn(
        self,
        selection: Selection,
        old: LetterState,
        new: LetterState,
        reason: str,
        action: str,
        confirmed: FrozenSelection | None,
    ) -> list[int]:
        turned: list[int] = []
        with self._engine.begin() as connection:
            if confirmed is None:
                numbers = _numbers(connection, selection, [old])
            else:
                then = _numbers(connection, selection, [old], confirmed.at)
                numbers = confirmed.within(then)
                if not confirmed.are(numbers):
                    raise SelectionChanged(_count(connection, selection, [old]))
            for part in chunks(numbers):
                statement = (
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state == old)
                    .values(state=new, note=reason if new is LetterState.DISCARDED else "")
                    .returning(letters.c.number)
                )
                turned += connection.scalars(statement)
            turned.sort()
            append(connection, action, reason, selection.to_json(), {"letters": turned})
        return turned

    def purge(self, older_than_seconds: float, reason: str) -> list[int]:
        """Delete letters that nothing is owed of, last failed longer ago than that, with all that
        is known of them, and every byte of it; returns their numbers. Those of a replay that never
        ended stay. Raises `DlqError` where the bytes are still there."""
        open_run = sa.select(runs.c.number).where(runs.c.ended_at.is_(None))
        replaying = sa.select(items.c.letter).where(items.c.run.in_(open_run))
        old = (
            letters.c.state.in_((LetterState.SENT, LetterState.DONE, *SETTLED)),
            letters.c.last_failed_at <= utc_now() - timedelta(seconds=older_than_seconds),
            letters.c.number.not_in(replaying),
        )
        with self._engine.begin() as connection:
            numbers = sorted(connection.scalars(sa.select(letters.c.number).where(*old)))
            for part in chunks(numbers):
                for column in (copies.c.letter, items.c.letter, edits.c.letter, letters.c.number):
                    connection.execute(column.table.delete().where(column.in_(part)))
            append(
                connection,
                "purge",
                reason,
                {"older_than": older_than_seconds},
                {"letters": numbers},
            )
        try:
            scrub(self.path)
        except sqlite3.Error as error:
            raise DlqError(
                f"{counted(len(numbers), 'letter')} purged, but what they said is still in free "
                f"parts of {self.path}: {error}; run it again"
            ) from error
        return numbers

    # --- editing -----------------------------------------------------------------------------

    def begin_edit(
        self, number: int, copy_id: str, diff: str, body: bytes, reason: str
    ) -> LetterState | None:
        """Note a corrected copy before it is sent; the letter stays dead until it is. Notes nothing
        of a letter that is not dead any more; returns how it is, None if it is gone."""
        with self._engine.begin() as connection:
            query = sa.select(letters.c.state).where(letters.c.number == number)
            state: LetterState | None = connection.execute(query).scalar_one_or_none()
            if state is not LetterState.DEAD:
                return state
            connection.execute(edits.delete().where(edits.c.id == copy_id))
            connection.execute(
                edits.insert(),
                {
                    "id": copy_id,
                    "letter": number,
                    "at": utc_now(),
                    "diff": diff,
                    "body": body,
                    "sent": False,
                },
            )
            result = {"copy": copy_id, "state": "sending", "diff": diff}
            append(connection, "edit", reason, {"numbers": [number]}, result)
        return state

    def end_edit(self, number: int, copy_id: str, reason: str) -> None:
        """The corrected copy is on its way, in place of the letter."""
        with self._engine.begin() as connection:
            connection.execute(edits.update().where(edits.c.id == copy_id).values(sent=True))
            connection.execute(
                letters.update()
                .where(letters.c.number == number)
                .values(state=LetterState.REPLACED)
            )
            result = {"copy": copy_id, "state": "sent"}
            append(connection, "edit", reason, {"numbers": [number]}, result)

    def edits_of(self, number: int) -> list[dict[str, Any]]:
        """The corrected copies of a letter, the oldest first."""
        with reading(self._engine) as connection:
            query = sa.select(edits).where(edits.c.letter == number).order_by(edits.c.at)
            return [
                {"id": row.id, "at": row.at.isoformat(), "diff": row.diff, "sent": row.sent}
                for row in connection.execute(query)
            ]

    # --- the audit record --------------------------------------------------------------------

    def note(
        self, action: str, reason: str, selection: Mapping[str, Any], result: Mapping[str, Any]
    ) -> None:
        """Append to the audit record what changes nothing else in the store."""
        with self._engine.begin() as connection:
            append(connection, action, reason, selection, result)

    def actions(self, limit: int, before: int | None = None) -> list[AuditEntry]:
        """The newest entries of the audit record, the newest first; `before` one of that number."""
        with reading(self._engine) as connection:
            return newest(connection, limit, before)


def _count(connection: Connection, selection: Selection, states: Collection[LetterState]) -> int:
    wanted = conditions_of(selection, states, None)
    query = sa.select(sa.func.count()).select_from(letters).where(*wanted)
    return connection.execute(query).scalar_one()


def _numbers(
    connection: Connection,
    selection: Selection,
    states: Collection[LetterState],
    now: datetime | None = None,
) -> list[int]:
    found: list[int] = []
    for part in chunks(selection.numbers) if selection.numbers else [()]:
        wanted = conditions_of(replace(selection, numbers=tuple(part)), states, now)
        found += connection.scalars(sa.select(letters.c.number).where(*wanted))
    return sorted(found)
