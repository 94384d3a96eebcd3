"""Where dead letters are kept: one SQLite file, with every replay and an audit record.

A letter is inserted, and that committed, before its message leaves the queue. Everything else is
done on the store. Any number of commands may use it at the same time; all of it blocks.
"""

from __future__ import annotations

import getpass
import json
import os
import socket
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq import DlqError, InputError
from saga.dlq.letters import (
    HERE,
    SETTLED,
    Copy,
    DeadLetter,
    LetterState,
    digest_of,
    from_text,
    raw_of,
    to_json,
)
from saga.runtime.kernel.sqlite import BUSY_TIMEOUT_SECONDS, sqlite_engine
from saga.runtime.kernel.tables import Utc, Word, utc_now
from saga.runtime.messaging.dead_letters import key_of
from saga.runtime.urls import printable, sqlite_path

AT_ONCE: Final = 500
"""Values in one IN (...); SQLite takes a limited number."""


class ItemState(StrEnum):
    """What became of one letter of a replay.

    `sent` is not yet heard of, `unanswered` was not heard of in time, `skipped` was not sent and
    `refused` was not taken by the broker.
    """

    WAITING = "waiting"
    SENDING = "sending"
    SENT = "sent"
    DONE = "done"
    FAILED = "failed"
    UNANSWERED = "unanswered"
    SKIPPED = "skipped"
    REFUSED = "refused"


OPEN: Final = (ItemState.WAITING, ItemState.SENDING, ItemState.SENT)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: those that fit everything that is given. Ages are in seconds, since the last
    failure; `queue` is an origin queue or a dead-letter queue, `error` a part of the error."""

    numbers: tuple[int, ...] = ()
    queue: str | None = None
    service: str | None = None
    type: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    subject: str | None = None
    older_than: float | None = None
    newer_than: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is asked for in particular."""
        return self == Selection()

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was not."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value not in (None, ())
        }


@dataclass(frozen=True, slots=True)
class Replay:
    """One replay: what was selected, how it is to be done, and how it ended."""

    number: int
    selection: dict[str, Any]
    settings: dict[str, Any]
    started_at: datetime
    ended_at: datetime | None
    outcome: str


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One line of the audit record."""

    number: int
    at: datetime
    who: str
    action: str
    reason: str
    selection: dict[str, Any]
    result: dict[str, Any]


_metadata = sa.MetaData()

letters = sa.Table(
    "letters",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("participant", sa.String(64), nullable=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("state", Word(LetterState), nullable=False),
    sa.Column("event_id", sa.String(255)),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("subject", sa.String(255)),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error_type", sa.String(255), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("replays", sa.Integer, nullable=False),
    sa.Column("copies", sa.Integer, nullable=False),
    sa.Column("copy", sa.Integer, nullable=False),  # The newest one's id.
    sa.Column("first_failed_at", Utc, nullable=False),
    sa.Column("last_failed_at", Utc, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.UniqueConstraint("participant", "key"),
    sa.Index("letters_by_state", "state", "first_failed_at"),
    sa.Index("letters_by_subject", "subject"),
    sqlite_autoincrement=True,  # A number is never given twice.
)
copies = sa.Table(
    "copies",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), nullable=False),
    sa.Column("died", sa.String(64), nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("properties", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary),  # Not of copies from before it was kept.
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("collected_at", Utc, nullable=False),
    sa.UniqueConstraint("letter", "died"),
)
runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("started_at", Utc, nullable=False),
    sa.Column("ended_at", Utc),
    sa.Column("outcome", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
items = sa.Table(
    "items",
    _metadata,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", Word(ItemState), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
edits = sa.Table(
    "edits",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # The copy's message id.
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), nullable=False),
    sa.Column("at", Utc, nullable=False),
    sa.Column("diff", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("sent", sa.Boolean, nullable=False),
)
audit = sa.Table(
    "audit",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", Utc, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
for _change in ("UPDATE", "DELETE"):
    sa.event.listen(
        audit,
        "after_create",
        sa.DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy gives it no types
            f"CREATE TRIGGER IF NOT EXISTS audit_no_{_change.lower()} BEFORE {_change} ON audit "
            f"BEGIN SELECT RAISE(ABORT, 'the audit record is only appended to'); END"
        ),
    )

_of_letter = (
    letters.c.number,
    letters.c.participant,
    letters.c.key,
    letters.c.state,
    letters.c.event_id,
    letters.c.type,
    letters.c.subject,
    letters.c.queue,
    letters.c.reason,
    letters.c.error_type,
    letters.c.error,
    letters.c.fingerprint,
    letters.c.attempts,
    letters.c.replays,
    letters.c.copies,
    letters.c.first_failed_at,
    letters.c.last_failed_at,
    letters.c.note,
)


class Store:
    """The dead letters of one system. Raises `DlqError` where the file cannot be used."""

    def __init__(self, url: str) -> None:
        """Open the store, and make it where there is none."""
        self.path = path_of(url)
        self._engine = sqlite_engine(url)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            _make_tables(self._engine)
        except (OSError, sa.exc.DBAPIError) as error:
            self._engine.dispose()
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error.strerror
            raise DlqError(
                f"cannot keep dead letters in {self.path}: {reason}; make that a file that can be "
                f"written, or name another folder with --data-dir or DATA_DIR"
            ) from error

    def close(self) -> None:
        self._engine.dispose()

    # --- collecting --------------------------------------------------------------------------

    def take(self, found: Sequence[Copy], now: datetime) -> int:
        """Keep what one participant's queue held; returns how many copies were not known yet."""
        if not found:
            return 0
        with self._engine.begin() as connection:
            return _take(connection, found, now)

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
        with self._reading() as connection:
            for part in _chunks(selection.numbers) if selection.numbers else [()]:
                query = _query(replace(selection, numbers=tuple(part)), states, contents, now)
                found += (_letter(row, contents) for row in connection.execute(query))
        return sorted(found, key=lambda letter: (letter.first_failed_at, letter.number))

    def get(self, number: int) -> DeadLetter:
        """One letter. Raises `InputError`."""
        found = self.find(Selection(numbers=(number,)))
        if not found:
            raise InputError(f"there is no dead letter {number}; `saga dlq list` names those known")
        return found[0]

    def numbers_known(self, numbers: Collection[int]) -> set[int]:
        """Those of the numbers that letters have."""
        with self._reading() as connection:
            return {
                number
                for part in _chunks(numbers)
                for number in connection.scalars(
                    sa.select(letters.c.number).where(letters.c.number.in_(part))
                )
            }

    def number_of(self, key: str) -> list[int]:
        """The numbers of the letters with this message id."""
        with self._reading() as connection:
            query = sa.select(letters.c.number).where(
                (letters.c.key == key) | (letters.c.event_id == key)
            )
            return list(connection.scalars(query))

    def knows(self, subject: str) -> bool:
        with self._reading() as connection:
            query = sa.select(letters.c.number).where(letters.c.subject == subject).limit(1)
            return connection.scalar(query) is not None

    def copies_of(self, number: int) -> list[tuple[str, dict[str, Any]]]:
        """The dead-letter time and headers of each copy of a letter, in order of arrival."""
        with self._reading() as connection:
            query = sa.select(copies.c.died, copies.c.headers).where(copies.c.letter == number)
            rows = connection.execute(query.order_by(copies.c.id))
            return [(row.died.partition(" ")[0], from_text(row.headers)) for row in rows]

    def states_of(self, numbers: Collection[int]) -> dict[int, LetterState]:
        with self._reading() as connection:
            return {
                row.number: row.state
                for part in _chunks(numbers)
                for row in connection.execute(
                    sa.select(letters.c.number, letters.c.state).where(letters.c.number.in_(part))
                )
            }

    # --- changing ----------------------------------------------------------------------------

    def settle_done(self, numbers: Collection[int]) -> None:
        """What was sent is known to be done."""
        with self._engine.begin() as connection:
            for part in _chunks(numbers):
                connection.execute(
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state != LetterState.DISCARDED)
                    .values(state=LetterState.DONE)
                )

    def discard(self, selection: Selection, reason: str) -> list[int]:
        """Set dead letters aside for good; `restore` brings them back. Returns their numbers."""
        return self._turn(selection, LetterState.DEAD, LetterState.DISCARDED, reason, "discard")

    def restore(self, selection: Selection, reason: str) -> list[int]:
        """Make discarded letters dead letters again. Returns their numbers."""
        return self._turn(selection, LetterState.DISCARDED, LetterState.DEAD, reason, "restore")

    def _turn(
        self, selection: Selection, old: LetterState, new: LetterState, reason: str, action: str
    ) -> list[int]:
        numbers = [letter.number for letter in self.find(selection, [old], contents=False)]
        turned: list[int] = []
        with self._engine.begin() as connection:
            for part in _chunks(numbers):
                statement = (
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state == old)
                    .values(state=new, note=reason if new is LetterState.DISCARDED else "")
                    .returning(letters.c.number)
                )
                turned += connection.scalars(statement)
            turned.sort()
            _append(connection, action, reason, selection.to_json(), {"letters": turned})
        return turned

    def purge(self, older_than_seconds: float, reason: str) -> list[int]:
        """Delete letters that nothing is owed of, last failed longer ago than that, with all that
        is known of them; returns their numbers. Those of a replay that never ended stay."""
        open_run = sa.select(runs.c.number).where(runs.c.ended_at.is_(None))
        replaying = sa.select(items.c.letter).where(items.c.run.in_(open_run))
        old = (
            letters.c.state.in_((LetterState.SENT, LetterState.DONE, *SETTLED)),
            letters.c.last_failed_at <= utc_now() - timedelta(seconds=older_than_seconds),
            letters.c.number.not_in(replaying),
        )
        with self._engine.begin() as connection:
            numbers = sorted(connection.scalars(sa.select(letters.c.number).where(*old)))
            for part in _chunks(numbers):
                for column in (copies.c.letter, items.c.letter, edits.c.letter, letters.c.number):
                    connection.execute(column.table.delete().where(column.in_(part)))
            _append(
                connection,
                "purge",
                reason,
                {"older_than": older_than_seconds},
                {"letters": numbers},
            )
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
            _append(connection, "edit", reason, {"numbers": [number]}, result)
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
            _append(connection, "edit", reason, {"numbers": [number]}, result)

    def edits_of(self, number: int) -> list[dict[str, Any]]:
        """The corrected copies of a letter, the oldest first."""
        with self._reading() as connection:
            query = sa.select(edits).where(edits.c.letter == number).order_by(edits.c.at)
            return [
                {"id": row.id, "at": row.at.isoformat(), "diff": row.diff, "sent": row.sent}
                for row in connection.execute(query)
            ]

    # --- replaying ---------------------------------------------------------------------------

    def unfinished_run(self) -> Replay | None:
        """The replay that was begun and never came to an end."""
        with self._reading() as connection:
            query = sa.select(runs).where(runs.c.ended_at.is_(None)).order_by(runs.c.number)
            row = connection.execute(query).first()
        return _run(row) if row else None

    def begin_run(
        self, selection: Selection, numbers: Sequence[int], settings: Mapping[str, Any], why: str
    ) -> Replay:
        """Freeze the selection: these letters, in this order."""
        with self._engine.begin() as connection:
            row = {
                "selection": json.dumps(selection.to_json()),
                "settings": json.dumps(dict(settings)),
                "started_at": utc_now(),
                "outcome": "",
            }
            run = connection.execute(runs.insert().returning(runs), row).one()
            rows = [
                {
                    "run": run.number,
                    "letter": number,
                    "position": position,
                    "state": ItemState.WAITING,
                    "detail": "",
                }
                for position, number in enumerate(numbers)
            ]
            if rows:
                connection.execute(items.insert(), rows)
            result = {"run": run.number, "state": "begun", "letters": len(rows)}
            _append(connection, "replay", why, selection.to_json(), result)
        return _run(run)

    def end_run(self, run: Replay, outcome: str, result: Mapping[str, Any], why: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(
                runs.update()
                .where(runs.c.number == run.number)
                .values(ended_at=utc_now(), outcome=outcome)
            )
            _append(connection, "replay", why, run.selection, {"run": run.number, **result})

    def open_items(self, run: Replay) -> list[tuple[int, ItemState]]:
        """The letters of a replay of which it is not known what became of them, in order."""
        with self._reading() as connection:
            query = (
                sa.select(items.c.letter, items.c.state)
                .where(items.c.run == run.number, items.c.state.in_(OPEN))
                .order_by(items.c.position)
            )
            return [(row.letter, row.state) for row in connection.execute(query)]

    def count_items(self, run: Replay) -> dict[ItemState, int]:
        with self._reading() as connection:
            query = (
                sa.select(items.c.state, sa.func.count())
                .where(items.c.run == run.number)
                .group_by(items.c.state)
            )
            return {row[0]: row[1] for row in connection.execute(query)}

    def items_of(self, run: Replay) -> list[tuple[int, ItemState, str]]:
        with self._reading() as connection:
            query = (
                sa.select(items.c.letter, items.c.state, items.c.detail)
                .where(items.c.run == run.number)
                .order_by(items.c.position)
            )
            return [(row.letter, row.state, row.detail) for row in connection.execute(query)]

    def replays_of(self, number: int) -> list[tuple[int, datetime, ItemState]]:
        """The replays that a letter was part of: number, start, and what became of it there."""
        with self._reading() as connection:
            query = (
                sa.select(runs.c.number, runs.c.started_at, items.c.state)
                .join(runs, runs.c.number == items.c.run)
                .where(items.c.letter == number)
                .order_by(runs.c.number)
            )
            return [(row.number, row.started_at, row.state) for row in connection.execute(query)]

    def mark_sending(self, run: Replay, replays: Mapping[int, int]) -> set[int]:
        """Before letters are sent: which of them, and that they will have been replayed so often.

        Returns those that may go: the others are no dead letters any more, somebody having dealt
        with them meanwhile.
        """
        going: set[int] = set()
        with self._engine.begin() as connection:
            for number, count in replays.items():
                turned = connection.execute(
                    letters.update()
                    .where(letters.c.number == number, letters.c.state.in_(HERE))
                    .values(state=LetterState.SENDING, replays=count)
                )
                if turned.rowcount:
                    going.add(number)
            _set_items(connection, run, going, ItemState.SENDING)
        return going

    def mark_sent(self, run: Replay, numbers: Collection[int]) -> None:
        """The broker has confirmed these. (One that is dead again already stays dead.)"""
        with self._engine.begin() as connection:
            for part in _chunks(numbers):
                connection.execute(
                    letters.update()
                    .where(letters.c.number.in_(part), letters.c.state == LetterState.SENDING)
                    .values(state=LetterState.SENT)
                )
            _set_items(connection, run, numbers, ItemState.SENT)

    def mark_items(
        self, run: Replay, numbers: Collection[int], state: ItemState, detail: str = ""
    ) -> None:
        """What became of letters of the replay; what is done is done for the letter too, and what
        was refused is dead as before."""
        if not numbers:
            return
        turned = {ItemState.DONE: LetterState.DONE, ItemState.REFUSED: LetterState.DEAD}.get(state)
        with self._engine.begin() as connection:
            if turned is not None:
                for part in _chunks(numbers):
                    connection.execute(
                        letters.update()
                        .where(
                            letters.c.number.in_(part),
                            letters.c.state.in_((*HERE, LetterState.SENT)),
                        )
                        .values(state=turned)
                    )
            _set_items(connection, run, numbers, state, detail)

    # --- the audit record --------------------------------------------------------------------

    def note(
        self, action: str, reason: str, selection: Mapping[str, Any], result: Mapping[str, Any]
    ) -> None:
        """Append to the audit record what changes nothing else in the store."""
        with self._engine.begin() as connection:
            _append(connection, action, reason, selection, result)

    def actions(self, limit: int) -> list[AuditEntry]:
        """The newest entries of the audit record, the newest first."""
        with self._reading() as connection:
            query = sa.select(audit).order_by(audit.c.number.desc()).limit(limit)
            return [
                AuditEntry(
                    row.number,
                    row.at,
                    row.who,
                    row.action,
                    row.reason,
                    json.loads(row.selection),
                    json.loads(row.result),
                )
                for row in connection.execute(query)
            ]

    @contextmanager
    def _reading(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(reads=True) as connection:
            yield connection


# --- for those who only look --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """What others need to know of a letter in the store."""

    participant: str
    key: str
    subject: str | None
    reason: str


def look(url: str | None) -> tuple[list[KeptLetter], list[KeptLetter]]:
    """The letters whose message is in the store and nowhere else, corrected copies that were not
    sent included; and those that a person has settled. Makes no store where there is none."""
    if url is None or not path_of(url).is_file():
        return [], []
    engine = sqlite_engine(url)
    columns = (letters.c.participant, letters.c.subject, letters.c.reason)
    try:
        with engine.connect().execution_options(reads=True) as connection:
            query = sa.select(*columns, letters.c.key, letters.c.state).where(
                letters.c.state.in_((*HERE, *SETTLED))
            )
            here: list[KeptLetter] = []
            settled: list[KeptLetter] = []
            for row in connection.execute(query):
                kept = KeptLetter(row.participant, row.key, row.subject, row.reason)
                (here if row.state in HERE else settled).append(kept)
            unsent = sa.select(*columns, edits.c.id).join(letters).where(~edits.c.sent)
            here += (
                KeptLetter(row.participant, row.id, row.subject, row.reason)
                for row in connection.execute(unsent)
            )
    except sa.exc.DBAPIError as error:
        raise DlqError(f"cannot read the dead letters in {path_of(url)}: {error.orig}") from error
    finally:
        engine.dispose()
    return here, settled


def path_of(url: str) -> Path:
    """The store's file. Raises `DlqError`."""
    try:
        path = sqlite_path(url)
    except ValueError as error:
        raise DlqError(f"dead_letters_url {printable(url)!r} cannot be used: {error}") from None
    if path is None:
        raise DlqError(f"dead_letters_url {printable(url)!r} names no file")
    return path


def who() -> str:
    """Who acts, for the audit record: `user@host`."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # A container's user may have no name.
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


# --- statements ---------------------------------------------------------------------------------


def _take(connection: Connection, found: Sequence[Copy], now: datetime) -> int:
    participant = found[0].participant
    found = _apart(connection, found)
    keys = sorted({copy.key for copy in found})
    known = _by_key(connection, participant, keys)
    fresh: dict[str, Copy] = {}
    for copy in found:
        if copy.key not in known:
            fresh.setdefault(copy.key, copy)
    if fresh:
        connection.execute(letters.insert(), [_row(copy) for copy in fresh.values()])
        known = _by_key(connection, participant, keys)
    numbers = {key: row.number for key, row in known.items()}
    new = _new_copies(connection, found, numbers)
    if not new:
        return 0
    connection.execute(
        copies.insert(),
        [
            {
                "letter": number,
                "died": died,
                "headers": to_json(copy.headers),
                "properties": to_json(copy.properties),
                "raw": copy.raw,
                "body": copy.body,
                "collected_at": now,
            }
            for (number, died), copy in new.items()
        ],
    )
    ids: dict[tuple[int, str], int] = {}
    for part in _chunks(numbers.values()):
        query = sa.select(copies.c.letter, copies.c.died, copies.c.id).where(
            copies.c.letter.in_(part)
        )
        ids.update(((row.letter, row.died), row.id) for row in connection.execute(query))
    by_letter: defaultdict[int, list[tuple[Copy, int]]] = defaultdict(list)
    for (number, died), copy in new.items():
        by_letter[number].append((copy, ids[number, died]))
    changes = [
        _changed(known[group[0][0].key], group) | {"old_number": number}
        for number, group in by_letter.items()
    ]
    connection.execute(_update_letter, changes)
    return len(new)


def _apart(connection: Connection, found: Sequence[Copy]) -> list[Copy]:
    """The copies, with another key where the id that a publisher gave is another message's too.

    Of what cannot be decoded, that is all the name there is; nothing else keeps a publisher from
    giving it to all of its messages, each of which is a letter to be replayed.
    """
    named = {copy.key for copy in found if not copy.named_by_event}
    bodies: dict[str, bytes] = {}
    for part in _chunks(sorted(named)):
        query = sa.select(letters.c.key, copies.c.body).join(copies, copies.c.id == letters.c.copy)
        of_these = letters.c.participant == found[0].participant, letters.c.key.in_(part)
        bodies.update((row.key, row.body) for row in connection.execute(query.where(*of_these)))
    return [
        copy
        if copy.named_by_event or bodies.setdefault(copy.key, copy.body) == copy.body
        else replace(copy, key=key_of(None, copy.body))
        for copy in found
    ]


def _new_copies(
    connection: Connection, found: Sequence[Copy], numbers: Mapping[str, int]
) -> dict[tuple[int, str], Copy]:
    """Those that are not kept yet, by their letter's number and what tells them apart from its
    other copies: when they died, and where that is the same, what is in them as well."""
    there: dict[tuple[int, str], str | None] = {}
    for part in _chunks(numbers.values()):
        query = sa.select(copies.c.letter, copies.c.died).where(copies.c.letter.in_(part))
        there.update(((row.letter, row.died), None) for row in connection.execute(query))
    new: dict[tuple[int, str], Copy] = {}
    for copy in found:
        number = numbers[copy.key]
        first = number, copy.died
        if first in there:
            if there[first] is None:
                there[first] = _digest_in(connection, *first)
            if there[first] == copy.digest:
                continue
            first = number, f"{copy.died} {copy.digest}"
        if first not in there:
            there[first] = copy.digest
            new[first] = copy
    return new


def _digest_in(connection: Connection, number: int, died: str) -> str | None:
    """What is in a copy that is kept; None where too little is known of it to say."""
    query = sa.select(copies.c.raw, copies.c.body).where(
        copies.c.letter == number, copies.c.died == died
    )
    row = connection.execute(query).one()
    return None if row.raw is None else digest_of(row.raw, row.body)


_CHANGING = (
    "state",
    "queue",
    "reason",
    "error_type",
    "error",
    "fingerprint",
    "attempts",
    "replays",
    "copies",
    "copy",
    "first_failed_at",
    "last_failed_at",
)
_update_letter = (
    letters.update()
    .where(letters.c.number == sa.bindparam("old_number"))
    .values({name: sa.bindparam(name) for name in _CHANGING})
)


def _changed(row: sa.Row[Any], group: Sequence[tuple[Copy, int]]) -> dict[str, Any]:
    """The letter after these copies of it, each with its id, have come.

    One that was replayed as often as the letter has failed again. One that was replayed less often
    is from before, and says nothing of where the letter stands now.
    """
    values = {name: getattr(row, name) for name in _CHANGING}
    for copy, id in sorted(group, key=lambda item: item[0].last_failed_at):
        values["copies"] += 1
        values["first_failed_at"] = min(values["first_failed_at"], copy.first_failed_at)
        if copy.replays < values["replays"]:
            continue
        if values["state"] in (LetterState.SENDING, LetterState.SENT, LetterState.DONE):
            values["state"] = LetterState.DEAD
        values |= {
            "queue": copy.queue,
            "reason": copy.reason,
            "error_type": copy.error_type,
            "error": copy.error,
            "fingerprint": copy.fingerprint,
            "attempts": copy.attempts,
            "replays": copy.replays,
            "copy": id,
            "last_failed_at": copy.last_failed_at,
        }
    return values


def _row(copy: Copy) -> dict[str, Any]:
    """A letter no copy of which has been counted yet."""
    return {
        "participant": copy.participant,
        "key": copy.key,
        "state": LetterState.DEAD,
        "event_id": copy.event_id,
        "type": copy.type,
        "subject": copy.subject,
        "queue": copy.queue,
        "reason": copy.reason,
        "error_type": copy.error_type,
        "error": copy.error,
        "fingerprint": copy.fingerprint,
        "attempts": copy.attempts,
        "replays": copy.replays,
        "copies": 0,
        "copy": 0,
        "first_failed_at": copy.first_failed_at,
        "last_failed_at": copy.last_failed_at,
        "note": "",
    }


def _by_key(
    connection: Connection, participant: str, keys: Sequence[str]
) -> dict[str, sa.Row[Any]]:
    found: dict[str, sa.Row[Any]] = {}
    for part in _chunks(keys):
        query = sa.select(letters).where(
            letters.c.participant == participant, letters.c.key.in_(part)
        )
        found.update((row.key, row) for row in connection.execute(query))
    return found


def _query(
    selection: Selection, states: Collection[LetterState], contents: bool, now: datetime | None
) -> sa.Select[Any]:
    c = letters.c
    query = sa.select(*_of_letter)
    if contents:
        joined = letters.join(copies, copies.c.id == c.copy)
        query = sa.select(
            *_of_letter, copies.c.headers, copies.c.properties, copies.c.raw, copies.c.body
        ).select_from(joined)
    if selection.numbers:
        query = query.where(c.number.in_(selection.numbers))
    if states:
        query = query.where(c.state.in_(states))
    if selection.queue is not None:
        dlq = c.participant + ".dlq"
        query = query.where((c.queue == selection.queue) | (dlq == selection.queue))
    for column, value in (
        (c.participant, selection.service),
        (c.type, selection.type),
        (c.fingerprint, selection.fingerprint),
        (c.subject, selection.subject),
    ):
        if value is not None:
            query = query.where(column == value)
    if selection.error is not None:
        both = c.error_type + ": " + c.error
        query = query.where(both.icontains(selection.error, autoescape=True))
    moment = now or utc_now()
    if selection.older_than is not None:
        query = query.where(c.last_failed_at <= moment - timedelta(seconds=selection.older_than))
    if selection.newer_than is not None:
        query = query.where(c.last_failed_at >= moment - timedelta(seconds=selection.newer_than))
    return query


def _letter(row: sa.Row[Any], contents: bool) -> DeadLetter:
    values = row._mapping
    plain = {column.name: values[column.name] for column in _of_letter}
    if not contents:
        return DeadLetter(**plain, properties={}, headers={}, raw=b"", body=b"")
    return DeadLetter(
        **plain,
        properties=(properties := from_text(row.properties)),
        headers=(headers := from_text(row.headers)),
        raw=row.raw if row.raw is not None else raw_of(properties, headers),
        body=row.body,
    )


def _run(row: sa.Row[Any]) -> Replay:
    return Replay(
        row.number,
        json.loads(row.selection),
        json.loads(row.settings),
        row.started_at,
        row.ended_at,
        row.outcome,
    )


def _set_items(
    connection: Connection,
    run: Replay,
    numbers: Collection[int],
    state: ItemState,
    detail: str = "",
) -> None:
    for part in _chunks(numbers):
        connection.execute(
            items.update()
            .where(items.c.run == run.number, items.c.letter.in_(part))
            .values(state=state, detail=detail)
        )


def _append(
    connection: Connection,
    action: str,
    reason: str,
    selection: Mapping[str, Any],
    result: Mapping[str, Any],
) -> None:
    connection.execute(
        audit.insert(),
        {
            "at": utc_now(),
            "who": who(),
            "action": action,
            "reason": reason,
            "selection": json.dumps(dict(selection)),
            "result": json.dumps(dict(result)),
        },
    )


def _chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    everything = list(values)
    for start in range(0, len(everything), AT_ONCE):
        yield everything[start : start + AT_ONCE]


_AT_THE_SAME_TIME: Final = ("locked", "already exists", "duplicate column")


def _add_raw(engine: sa.Engine) -> None:
    """Have a column that files from before lack."""
    if all(
        column["name"] != copies.c.raw.name for column in sa.inspect(engine).get_columns("copies")
    ):
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE copies ADD COLUMN raw BLOB")


def _make_tables(engine: sa.Engine) -> None:
    """Make what is missing. Commands that make the same file at the same time get in each other's
    way while they switch it to WAL, where SQLite does not heed the busy timeout."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            _metadata.create_all(engine)
            return _add_raw(engine)
        except sa.exc.OperationalError as error:
            if not any(word in str(error.orig) for word in _AT_THE_SAME_TIME):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)
