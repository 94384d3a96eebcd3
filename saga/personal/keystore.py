"""Where the keys of persons are: one row each, in a database of its own.

Several processes may use one store, on a SQLite file or a PostgreSQL server. A person is found by
an HMAC of the clear value, whose key is random, so the store holds no names. It and the persons'
keys are wrapped by a master key that is no part of the store; see `saga.personal.master`.
"""

from __future__ import annotations

import hmac
import logging
import math
import os
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Final, Generic, Literal, NamedTuple, Protocol, Self, TypeVar

import sqlalchemy as sa
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from sqlalchemy.engine import Connection, RowMapping

from saga.errors import Explained
from saga.personal.master import MasterKeyError, MasterKeys
from saga.personal.seal import (
    KEY_BYTES,
    Forgotten,
    Unsealable,
    open_under,
    person_id_in,
    seal_under,
    sealed,
    text_of_bytes,
)
from saga.retry import TransientError
from saga.runtime.kernel.database import DatabaseError, is_postgresql
from saga.runtime.kernel.sqlite import (
    LACKING,
    QuickDisk,
    empty_log,
    file_identity,
    made_by_one,
    sqlite_engine,
    sqlite_file,
)
from saga.runtime.kernel.tables import Schema, Utc, microseconds_of
from saga.runtime.tasks import LoopThread
from saga.runtime.urls import printable

log = logging.getLogger(__name__)

CACHE_SECONDS: Final = 30.0
"""How long a process may go on using a key that it has read, by default."""
CACHED_MAX: Final = 5_000
"""Persons whose keys, and whose values, a process knows without asking: each takes some 500 bytes,
and is read again in 7 to 30 us of CPU."""
AT_ONCE: Final = 500
"""Persons looked up by one statement."""
AHEAD_MAX: Final = 100
AHEAD_SECONDS: Final = 60.0
"""Who looks up a person made within so many seconds reads those made right after them as well, at
most so many: their messages are next."""
REASON_MAX_CHARACTERS: Final = 255
_ID_RANDOM_BYTES: Final = 9
_INDEX: Final = "index"
_LIST_PAGE: Final = 500
LOCKED_SECONDS: Final = 4.0
"""How long sealing waits for another process that writes into the file. Who comes meanwhile waits
as long again, and hears why nothing was done before `HTTP_ANSWER_SECONDS`, by default, are over."""
_OTHERS_USE_IT: Final = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED: Final = (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT)
WIPE_SECONDS: Final = 5.0
"""How long what was destroyed is tried to be taken out of a log that is being read."""

T = TypeVar("T")
Column = Literal["digest", "person_id"]
"""What persons are looked up by."""
K = TypeVar("K")
V = TypeVar("V")

METADATA: Final = sa.MetaData()
secrets_table = sa.Table(
    "secrets",
    METADATA,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("wrapped_by", sa.String(32), nullable=False),
)
persons_table = sa.Table(
    "persons",
    METADATA,
    sa.Column("person_id", sa.String(22), primary_key=True),
    sa.Column("digest", sa.LargeBinary, unique=True),
    sa.Column("wrapped", sa.LargeBinary),
    sa.Column("wrapped_by", sa.String(32)),
    sa.Column("created_at", Utc, nullable=False),
    sa.Column("forgotten_at", Utc),
    sa.Column("reason", sa.String(REASON_MAX_CHARACTERS)),
    sqlite_with_rowid=False,
)


class WouldWait(Exception):
    """The answer takes waiting: ask in a thread."""


class KeyStoreError(Explained):
    """The key store cannot be used as it is. Says why, and the way out."""


class KeyStoreAway(TransientError, Explained):
    """The key store does not answer: nothing can be sealed or opened until it does."""


class UnknownPerson(Explained, LookupError):
    """The key store has no person of that id."""


@dataclass(frozen=True, slots=True)
class Person:
    """One row: whose key there is, or was."""

    person_id: str
    created_at: datetime
    forgotten_at: datetime | None
    reason: str


class _Cache(Generic[K, V]):
    """What was read lately: at most so many, and for so long. Threads may share one."""

    def __init__(self, seconds: float, at_most: int, monotonic: Callable[[], float]) -> None:
        self._seconds = seconds
        self._at_most = at_most
        self._monotonic = monotonic
        self._found: OrderedDict[K, tuple[float, V]] = OrderedDict()
        self._cleared_at = -math.inf
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        entry = self.entry(key)
        return None if entry is None else entry[1]

    def entry(self, key: K) -> tuple[float, V] | None:
        """What is known, and when reading it began."""
        entry = self._found.get(key)
        if entry is None or entry[0] + self._seconds < self._monotonic():
            return None
        return entry

    def put(self, key: K, value: V, read_at: float) -> None:
        """`read_at` is when reading it began: what was forgotten meanwhile is not known longer, and
        not at all once this was cleared."""
        with self._lock:
            if read_at <= self._cleared_at:
                return
            self._found[key] = read_at, value
            self._found.move_to_end(key)
            while len(self._found) > self._at_most:
                self._found.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._cleared_at = self._monotonic()
            self._found.clear()


class KeyDatabase(Protocol):
    """A database, as threads use it: calls block, and may come from several threads."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` in a transaction that is durable when this returns. Raises `KeyStoreAway`."""
        ...

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on what is committed. Raises `KeyStoreAway`."""
        ...

    def find(self, column: Column, values: Sequence[Any]) -> list[PersonKey]:
        """The rows with a key that have one of these values. Raises `KeyStoreAway`."""
        ...

    def since(self, person_id: str) -> list[PersonKey]:
        """The first `AHEAD_MAX` rows with a key from this id on. Raises `KeyStoreAway`."""
        ...

    def add(self, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
        """Insert the rows, in a transaction that is durable when this returns, but for those of
        digests that have one. Returns None if none had, else what is found by their digests then:
        not all, where another process forgets one meanwhile. Raises `KeyStoreAway`."""
        ...

    def at_once(self) -> AbstractContextManager[None]:
        """Within it, calls of this thread keep it waiting neither for others nor for a slow disk:
        they raise `WouldWait`, as this does where that is not known."""
        ...

    def wipe(self) -> None:
        """See to it that what was deleted is in no file any more."""
        ...

    def close(self) -> None: ...


class _File:
    """A SQLite file that several processes use.

    What sealing and opening ask for goes past SQLAlchemy, which took more of the processor than the
    ciphers do.
    """

    def __init__(self, url: str) -> None:
        self._path = sqlite_file(url)
        self._engine = sqlite_engine(url)

        @sa.event.listens_for(self._engine, "connect")
        def configure(connection: Any, _: Any) -> None:
            connection.execute("PRAGMA secure_delete=ON")

        try:
            _make_private(self._path)
            made_by_one(self._make_tables)
            self._held = self._engine.connect(), self._engine.connect()
            drivers: list[Any] = [held.connection.dbapi_connection for held in self._held]
            self._patient, self._hasty = drivers  # sqlite3's connections
            self._patient.execute(f"PRAGMA busy_timeout = {LOCKED_SECONDS * 1_000:.0f}")
            self._hasty.execute("PRAGMA busy_timeout = 0")  # As the event loop does not wait.
            self._asking = threading.Lock()
            self._hurry = threading.Lock()
            """Held by a thread that is not to wait."""
            self._hurried: int | None = None
            """The thread that holds it."""
            self._reads, self._commits = QuickDisk(), QuickDisk()
            self._identity = file_identity(self._path)
        except (sa.exc.DBAPIError, OSError) as error:
            said = f"cannot open the key store {self._path}: {_why(error)}"
            if way_out := _way_out(error):  # No waiting helps.
                raise KeyStoreError(f"{said}; {way_out}") from error
            raise KeyStoreAway(said) from error

    def write(self, work: Callable[[Connection], T]) -> T:
        self._check_patience()
        with self._there(), self._engine.begin() as connection:
            result = work(connection)
        self._check()
        return result

    def read(self, work: Callable[[Connection], T]) -> T:
        self._check_patience()
        with self._there(), self._engine.connect().execution_options(reads=True) as connection:
            return work(connection)

    def find(self, column: Column, values: Sequence[Any]) -> list[PersonKey]:
        with self._driver(self._reads, len(values)) as driver:
            return find_in(driver, column, values)

    def since(self, person_id: str) -> list[PersonKey]:
        with self._driver(self._reads, AHEAD_MAX) as driver:
            return since_in(driver, person_id)

    def add(self, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
        with self._driver(self._commits, len(rows)) as driver:
            known = add_to(driver, rows)
        self._check()
        return known

    @contextmanager
    def at_once(self) -> Iterator[None]:
        if not self._hurry.acquire(blocking=False):
            raise WouldWait
        self._hurried = threading.get_ident()
        try:
            yield
        finally:
            self._hurried = None
            self._hurry.release()

    def wipe(self) -> None:
        with self._there():
            raw = self._engine.raw_connection()
            try:
                if not empty_log(raw, WIPE_SECONDS):
                    log.warning(
                        "%s-wal is being read, so that keys which were replaced or destroyed are "
                        "still in it: restart what reads it, and rotate the master key once more "
                        "(saga persons rotate-key)",
                        self._path,
                    )
            finally:
                raw.close()

    def close(self) -> None:
        with self._asking, self._hurry:  # To close one that is in use ends the process.
            for connection in self._held:
                connection.close()
        self._engine.dispose()

    def _make_tables(self) -> None:
        """Make those that are missing. Where none is, wait for no other process that writes."""
        with self._engine.connect().execution_options(reads=True) as connection:
            known = {*sa.inspect(connection).get_table_names()}
        if not known >= METADATA.tables.keys():
            METADATA.create_all(self._engine)

    @contextmanager
    def _driver(self, disk: QuickDisk, rows: int) -> Iterator[Any]:
        """The connection of sqlite3's that this thread is to use, for so many rows."""
        if not self._is_hurried:
            with self._there(), self._asking:
                yield self._patient
            return
        if disk.go_aside():
            raise WouldWait
        with self._there():
            try:
                with disk.timed(rows):
                    yield self._hasty
            except sqlite3.OperationalError as error:
                # Some errors are the driver's own, and have no code.
                if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OTHERS_USE_IT:
                    raise WouldWait from error
                raise

    @property
    def _is_hurried(self) -> bool:
        """Whether this thread is not to wait."""
        return self._hurried == threading.get_ident()

    def _check_patience(self) -> None:
        if self._is_hurried:
            raise WouldWait

    @contextmanager
    def _there(self) -> Iterator[None]:
        self._check()
        try:
            yield
        except sa.exc.IntegrityError:
            raise
        except (sa.exc.DBAPIError, sqlite3.Error, OSError) as error:
            said = f"the key store {self._path} is away: {_why(error)}"
            if way_out := _way_out(error):
                said = f"{said}; {way_out}"
            raise KeyStoreAway(said) from error

    def _check(self) -> None:
        """What is written into a file that was removed is lost."""
        if file_identity(self._path) != self._identity:
            raise KeyStoreAway(
                f"the key store {self._path} is no longer the file that was opened: put it back, "
                f"or restart what uses it"
            )


class _Server:
    """A PostgreSQL database, used from threads: its client runs on an event loop of its own."""

    def __init__(self, url: str, patience_seconds: float) -> None:
        from saga.runtime.kernel.postgresql import PostgresDatabase

        self._loop = LoopThread("key-store")
        self._name = printable(url)
        try:
            self._database = self._loop.ask(
                PostgresDatabase.open(
                    url, Schema(METADATA), name="saga persons", patience_seconds=patience_seconds
                )
            )
        except BaseException as error:
            self._loop.close()
            if isinstance(error, DatabaseError):
                raise KeyStoreAway(f"cannot open the key store: {error}") from error
            raise

    def write(self, work: Callable[[Connection], T]) -> T:
        return self._run(self._database.transaction(work))

    def read(self, work: Callable[[Connection], T]) -> T:
        return self._run(self._database.read(work))

    def find(self, column: Column, values: Sequence[Any]) -> list[PersonKey]:
        return self.read(lambda connection: _find(connection, column, values))

    def since(self, person_id: str) -> list[PersonKey]:
        given = {"person_id": person_id}
        rows = self.read(lambda connection: connection.execute(_SINCE, given).all())
        return [PersonKey(*row) for row in rows]

    def add(self, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
        def work(connection: Connection) -> list[PersonKey] | None:
            added = _insert_new(connection, persons_table, [row._asdict() for row in rows])
            if added == len(rows):
                return None
            return _find(connection, "digest", _digests_of(rows))

        return self.write(work)

    def at_once(self) -> AbstractContextManager[None]:
        raise WouldWait

    def wipe(self) -> None:
        """A server vacuums when it sees fit; its WAL and its backups are its administrator's."""

    def close(self) -> None:
        if self._loop.is_closed:
            return
        try:
            self._loop.ask(self._database.close())
        finally:
            self._loop.close()

    def _run(self, asked: Coroutine[Any, Any, T]) -> T:
        try:
            return self._loop.ask(asked)
        except CancelledError as error:
            raise KeyStoreAway(f"the key store {self._name} was closed meanwhile") from error
        except Exception as error:
            if not self._database.is_away(error):
                raise
            raise KeyStoreAway(f"the key store {self._name} is away: {_why(error)}") from error


class KeyStore:
    """Seals and opens. Safe to call from several threads; every call but `known` and `opened`
    may block for as long as the database takes."""

    def __init__(
        self,
        database: KeyDatabase,
        keys: MasterKeys,
        *,
        cache_seconds: float = CACHE_SECONDS,
        cached_max: int = CACHED_MAX,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        """Use `open_store`. Raises `KeyStoreError` if the store is another master key's. Keys and
        ids are made of `random_bytes`, so many at a time; what was read ages by `monotonic`."""
        self._database = database
        self._keys = keys
        self._now = now
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self.cache_seconds = cache_seconds
        self._sealed: _Cache[str, str] = _Cache(cache_seconds, cached_max, monotonic)
        """Keyed by the clear value."""
        self._clear: _Cache[str, str] = _Cache(cache_seconds, cached_max, monotonic)
        """The other way round."""
        self._known: _Cache[str, bytes] = _Cache(cache_seconds, cached_max, monotonic)
        """Keyed by person id: their keys. A cipher takes ten times as much memory, and less time to
        make than to fetch from there."""
        self._newcomers = False
        """Whether all who were looked for last were new."""
        self._index = self._index_key()

    @classmethod
    def open_store(
        cls,
        url: str,
        keys: MasterKeys,
        *,
        cache_seconds: float = CACHE_SECONDS,
        patience_seconds: float = 0.0,
    ) -> Self:
        """Open the store at a database's URL, and make it where there is none. Blocks.

        Raises `KeyStoreAway` for one that is out of reach, and `KeyStoreError`.
        """
        try:
            database: KeyDatabase = (
                _Server(url, patience_seconds) if is_postgresql(url) else _File(url)
            )
        except DatabaseError as error:
            raise KeyStoreError(f"PERSONS_DATABASE_URL: {error}") from error
        try:
            return cls(database, keys, cache_seconds=cache_seconds)
        except BaseException:
            database.close()
            raise

    def close(self) -> None:
        """Let go of the database. To close it again does nothing."""
        self._database.close()

    def known(self, value: str) -> str | None:
        """The value sealed, where that is known without asking the database."""
        return self._sealed.get(value)

    def seal(self, value: str) -> str:
        """The value, sealed under its person's key; a new person's is made. One that is sealed
        stays as it is. Raises `KeyStoreAway`, and ValueError for a value that is too long."""
        return self.seal_all((value,))[value]

    def seal_all(self, values: Iterable[str]) -> dict[str, str]:
        """Each of the values, sealed, in one transaction. Raises as `seal` does."""
        result: dict[str, str] = {}
        unknown: list[str] = []
        for value in dict.fromkeys(values):
            if sealed(value):
                result[value] = value
            elif (found := self._sealed.get(value)) is not None:
                result[value] = found
            else:
                unknown.append(value)
        if not unknown:
            return result
        read_at = self._monotonic()
        by_digest = {self._digest(value): value for value in unknown}
        # Where the last ones were new, to look for the next ones first is work for nothing.
        rows = {} if self._newcomers else _by_digest(self._database.find("digest", [*by_digest]))
        result |= self._seal_under_each(rows, by_digest, read_at)
        if missing := [digest for digest in by_digest if digest not in rows]:
            try:
                made = _by_digest(self._make(missing))
            except KeyStoreAway:
                self._newcomers = False  # Who is there already can be sealed without writing.
                raise
            result |= self._seal_under_each(made, by_digest, read_at)
            rows |= made
        self._newcomers = all(row.key is not None for row in rows.values())
        if len(rows) < len(by_digest):
            raise KeyStoreAway("a person was forgotten while something of theirs was sealed")
        return result

    def _seal_under_each(
        self,
        rows: Mapping[bytes | None, PersonKey],
        by_digest: Mapping[bytes, str],
        read_at: float,
    ) -> dict[str, str]:
        """Those of the values sealed of whose persons there are rows."""
        return {
            value: self._seal_under(rows[digest], value, read_at)
            for digest, value in by_digest.items()
            if digest in rows
        }

    def _seal_under(self, row: PersonKey, value: str, read_at: float) -> str:
        """Seal a value under the key of a row that was read, and remember both."""
        key = row.key or self._known.get(row.person_id) or self._unwrapped(row)
        text = seal_under(AESSIV(key), row.person_id, value)
        self._sealed.put(value, text, read_at)
        self._clear.put(text, value, read_at)
        return text

    def _unwrapped(self, row: PersonKey) -> bytes:
        return self._keys.unwrap(row.wrapped, row.wrapped_by, row.person_id)

    def open(self, value: str) -> str:
        """What a sealed text says; one that is in clear stays as it is. Raises `Forgotten`,
        `Unsealable` and `KeyStoreAway`."""
        if not sealed(value):
            return value
        clear = self.opened(value)
        if clear is None:
            person_id, read_at = person_id_in(value), self._monotonic()
            key = self._read_key(person_id)
            self._known.put(person_id, key, read_at)
            clear = open_under(AESSIV(key), value)
        return clear

    def opened(self, value: str) -> str | None:
        """What a sealed text says, where that is known without asking the database. Raises
        `Unsealable`."""
        if (clear := self._clear.get(value)) is not None:
            return clear
        found = self._known.entry(person_id_in(value))
        if found is None:
            return None
        read_at, key = found
        clear = open_under(AESSIV(key), value)
        self._clear.put(value, clear, read_at)
        return clear

    def open_all(self, values: Iterable[str]) -> dict[str, str]:
        """What each of the sealed texts says, with one query. Raises as `open` does."""
        texts = [*values]
        unknown = [
            person_id
            for person_id in dict.fromkeys(
                person_id_in(text) for text in texts if self._clear.get(text) is None
            )
            if self._known.get(person_id) is None
        ]
        if unknown:
            self._read_keys(unknown)
        return {value: self.open(value) for value in texts}

    def sealed_of(self, value: str) -> str | None:
        """The sealed form of a clear value whose person is known; None for one who is not, or who
        was forgotten. No key is made. Raises `KeyStoreAway`."""
        if sealed(value):
            return value
        if (found := self._sealed.get(value)) is not None:
            return found
        read_at, digest = self._monotonic(), self._digest(value)
        # Under the row that was found: a person forgotten meanwhile is not made again.
        rows = self._database.find("digest", [digest])
        return self._seal_under(rows[0], value, read_at) if rows else None

    def person_of(self, value: str) -> str | None:
        """The id of the person with that value, in clear or sealed; None where none is known.
        Raises `KeyStoreAway`."""
        if sealed(value):
            return person_id_in(value)
        rows = self._database.find("digest", [self._digest(value)])
        return rows[0].person_id if rows else None

    def person(self, person_id: str) -> Person:
        """Raises `UnknownPerson` and `KeyStoreAway`."""
        row = self._row_of(person_id)
        if row is None:
            raise UnknownPerson(f"the key store knows no person {person_id!r}")
        return _person(row)

    def persons(self) -> Iterator[Person]:
        """Every person there is or was, by id; read page by page."""
        after = ""
        while True:
            query = (
                sa.select(persons_table)
                .where(persons_table.c.person_id > after)
                .order_by(persons_table.c.person_id)
                .limit(_LIST_PAGE)
            )
            page = self._database.read(_rows_of(query))
            yield from map(_person, page)
            if len(page) < _LIST_PAGE:
                return
            after = page[-1]["person_id"]

    def traces(self, person_id: str, values: Iterable[str] = ()) -> tuple[bytes, ...]:
        """What the store keeps of a person that is to be gone once they are forgotten: their
        wrapped key, and what finds them, also by these clear values. None once the key is gone.
        Raises `KeyStoreAway`."""
        query = sa.select(persons_table.c.wrapped, persons_table.c.digest).where(
            persons_table.c.person_id == person_id
        )
        row = self._database.read(lambda connection: connection.execute(query).first())
        if row is None or row.wrapped is None:
            return ()
        found = [bytes(value) for value in row if value is not None]
        return tuple(dict.fromkeys((*found, *map(self._digest, values))))

    def retire(self, person_id: str) -> None:
        """Have nothing new sealed under a person's key, which still opens what was: who comes under
        the same name is a new person. Other processes may go on for `cache_seconds` more. Once
        more, it changes nothing. Raises `KeyStoreAway`."""
        statement = (
            sa.update(persons_table)
            .where(persons_table.c.person_id == person_id, persons_table.c.digest.is_not(None))
            .values(digest=None)
        )
        self._database.write(lambda connection: connection.execute(statement).rowcount)
        self._sealed.clear()

    def forget(self, person_id: str, reason: str) -> Person:
        """Destroy the person's key, and what finds it. Other processes may go on using what they
        have read for `cache_seconds` more; this one does not. Once more, it changes nothing.

        Raises `UnknownPerson`, `KeyStoreAway` and ValueError for a reason that is none.
        """
        if not 0 < len(reason) <= REASON_MAX_CHARACTERS:
            raise ValueError(f"a reason has 1 to {REASON_MAX_CHARACTERS} characters")
        at = self._now()
        statement = (
            sa.update(persons_table)
            .where(persons_table.c.person_id == person_id, persons_table.c.forgotten_at.is_(None))
            .values(digest=None, wrapped=None, wrapped_by=None, forgotten_at=at, reason=reason)
        )
        self._database.write(lambda connection: connection.execute(statement).rowcount)
        for known in (self._known, self._clear, self._sealed):
            known.clear()
        self._database.wipe()
        return self.person(person_id)

    def rotate(self) -> tuple[str, int]:
        """Wrap every key by the newest master key; returns its id, and how many were not. Others
        may work meanwhile, if they know both. Raises `KeyStoreAway` and `MasterKeyError`."""
        newest, count = self._keys.newest_id, 0
        count += self._database.write(self._rewrap_index)
        while True:
            done: int = self._database.write(self._rewrap_page)
            count += done
            if not done:
                self._database.wipe()
                break
        return newest, count

    def wrapped_by(self) -> dict[str, int]:
        """How many persons' keys each master key wraps, keyed by its id."""
        query = (
            sa.select(persons_table.c.wrapped_by, sa.func.count())
            .where(persons_table.c.wrapped_by.is_not(None))
            .group_by(persons_table.c.wrapped_by)
        )
        found = self._database.read(lambda connection: connection.execute(query).all())
        return {row[0]: row[1] for row in found}

    def at_once(self) -> AbstractContextManager[None]:
        """Within it, sealing and opening keep this thread waiting neither for others nor for a slow
        disk: they raise `WouldWait`, as this does where that is not known."""
        return self._database.at_once()

    def _digest(self, value: str) -> bytes:
        return hmac.digest(self._index, value.encode(), "sha256")

    def _index_key(self) -> bytes:
        """The key that persons are looked up by; the first to open the store makes it."""

        def make(connection: Connection) -> Any:
            wrapped, wrapped_by = self._keys.wrap(self._random_bytes(32), _INDEX)
            _insert_new(
                connection,
                secrets_table,
                [{"name": _INDEX, "wrapped": wrapped, "wrapped_by": wrapped_by}],
            )
            return connection.execute(_INDEX_ROW).mappings().one()

        row = self._database.read(
            lambda connection: connection.execute(_INDEX_ROW).mappings().first()
        )
        if row is None:
            row = self._database.write(make)
        return self._keys.unwrap(row["wrapped"], row["wrapped_by"], _INDEX)

    def _make(self, digests: Sequence[bytes]) -> list[PersonKey]:
        """Rows of new persons. A person that another process made meanwhile stays as that one made
        it."""
        at, made, rows = self._now(), {}, []
        # In one order everywhere: on a server, two transactions may wait for each other's rows.
        for digest in sorted(digests):
            person_id = new_person_id(at, self._random_bytes)
            key = self._random_bytes(KEY_BYTES)
            wrapped, wrapped_by = self._keys.wrap(key, person_id)
            made[person_id] = PersonKey(digest, person_id, wrapped, wrapped_by, key)
            rows.append(NewPerson(person_id, digest, wrapped, wrapped_by, at))
        found = self._database.add(rows)
        if found is None:
            return [*made.values()]
        return [made.get(row.person_id, row) for row in found]

    def _row_of(self, person_id: str) -> RowMapping | None:
        given = {"person_id": person_id}
        return self._database.read(
            lambda connection: connection.execute(_PERSON, given).mappings().first()
        )

    def _read_key(self, person_id: str) -> bytes:
        row = self._row_of(person_id)
        if row is None:
            raise Unsealable(
                f"a value of person {person_id} cannot be opened: this key store knows no person "
                f"of that id"
            )
        if row["forgotten_at"] is not None:
            raise Forgotten(person_id, row["forgotten_at"], row["reason"] or "")
        return self._keys.unwrap(row["wrapped"], row["wrapped_by"], person_id)

    def _read_keys(self, person_ids: Sequence[str]) -> None:
        """Know the keys of these persons, as far as they have keys, and of those made next."""
        read_at = self._monotonic()
        since = (self._now() - timedelta(seconds=AHEAD_SECONDS)).timestamp()
        recent = [person_id for person_id in person_ids if made_at(person_id) >= since]
        rows = self._database.since(min(recent)) if recent else []
        found = {row.person_id for row in rows}
        if others := [person_id for person_id in person_ids if person_id not in found]:
            rows += self._database.find("person_id", others)
        asked = {*person_ids}
        for row in rows:
            if self._known.get(row.person_id) is not None:
                continue
            try:
                key = self._unwrapped(row)
            except MasterKeyError:
                if row.person_id in asked:
                    raise
            else:
                self._known.put(row.person_id, key, read_at)

    def _rewrap_index(self, connection: Connection) -> int:
        table = secrets_table
        query = sa.select(table).where(table.c.wrapped_by != self._keys.newest_id).with_for_update()
        rows = connection.execute(query).mappings().all()
        for row in rows:
            key = self._keys.unwrap(row["wrapped"], row["wrapped_by"], row["name"])
            wrapped, by = self._keys.wrap(key, row["name"])
            connection.execute(
                sa.update(table)
                .where(table.c.name == row["name"])
                .values(wrapped=wrapped, wrapped_by=by)
            )
        return len(rows)

    def _rewrap_page(self, connection: Connection) -> int:
        table = persons_table
        query = (
            sa.select(table.c.person_id, table.c.wrapped, table.c.wrapped_by)
            .where(table.c.wrapped_by.is_not(None), table.c.wrapped_by != self._keys.newest_id)
            .limit(AT_ONCE)
            .with_for_update()
        )
        rows = connection.execute(query).all()
        for person_id, before, before_by in rows:
            key = self._keys.unwrap(before, before_by, person_id)
            wrapped, by = self._keys.wrap(key, person_id)
            connection.execute(
                sa.update(table)
                .where(table.c.person_id == person_id)
                .values(wrapped=wrapped, wrapped_by=by)
            )
        return len(rows)


class PersonKey(NamedTuple):
    """A person's row, as far as it takes to seal. `key` is known of one that was just made."""

    digest: bytes | None
    """None of one under whose key nothing new is sealed."""
    person_id: str
    wrapped: bytes
    wrapped_by: str
    key: bytes | None = None


class NewPerson(NamedTuple):
    """A row of the table of persons, by its columns."""

    person_id: str
    digest: bytes
    wrapped: bytes
    wrapped_by: str
    created_at: datetime


def _in_sqlite(row: NewPerson) -> tuple[object, ...]:
    return (*row[:-1], microseconds_of(row.created_at))


def _by_digest(rows: Iterable[PersonKey]) -> dict[bytes | None, PersonKey]:
    return {row.digest: row for row in rows}


def _digests_of(rows: Iterable[NewPerson]) -> list[bytes]:
    return [row.digest for row in rows]


def find_in(driver: Any, column: Column, values: Sequence[Any]) -> list[PersonKey]:
    """The rows with a key that have one of these values. `driver` is a connection of sqlite3's."""
    found: list[PersonKey] = []
    for start in range(0, len(values), AT_ONCE):
        page = values[start : start + AT_ONCE]
        places = ", ".join("?" * len(page))
        rows = driver.execute(f"{_FIND_IN} {column} IN ({places})", page)
        found += [PersonKey(*row) for row in rows]
    return found


def since_in(driver: Any, person_id: str) -> list[PersonKey]:
    """The first `AHEAD_MAX` rows with a key from this id on; `driver` as above."""
    return [PersonKey(*row) for row in driver.execute(_SINCE_IN, (person_id, AHEAD_MAX))]


def add_to(driver: Any, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
    """Insert the rows in a transaction, but for those of digests that have one. Returns None if
    none had, else what is found by their digests then."""
    driver.execute("BEGIN IMMEDIATE")
    try:
        added = driver.executemany(_ADD, map(_in_sqlite, rows)).rowcount
        known = None if added == len(rows) else find_in(driver, "digest", _digests_of(rows))
        driver.commit()
    except BaseException:
        driver.rollback()
        raise
    return known


# Built once: that takes longer than to execute them.
_INDEX_ROW: Final = sa.select(secrets_table).where(secrets_table.c.name == _INDEX)
_PERSON: Final = sa.select(persons_table).where(
    persons_table.c.person_id == sa.bindparam("person_id")
)
_WITH_KEYS: Final = sa.select(
    persons_table.c.digest,
    persons_table.c.person_id,
    persons_table.c.wrapped,
    persons_table.c.wrapped_by,
).where(persons_table.c.wrapped.is_not(None))
_SINCE: Final = (
    _WITH_KEYS.where(persons_table.c.person_id >= sa.bindparam("person_id"))
    .order_by(persons_table.c.person_id)
    .limit(AHEAD_MAX)
)
_FIND_IN: Final = (
    "SELECT digest, person_id, wrapped, wrapped_by FROM persons WHERE wrapped IS NOT NULL AND"
)
_SINCE_IN: Final = f"{_FIND_IN} person_id >= ? ORDER BY person_id LIMIT ?"
_ADD: Final = (
    "INSERT OR IGNORE INTO persons (person_id, digest, wrapped, wrapped_by, created_at) "
    "VALUES (?, ?, ?, ?, ?)"
)


def _find(connection: Connection, column: Column, values: Sequence[Any]) -> list[PersonKey]:
    """The rows with a key that have one of these values in the column."""
    found: list[PersonKey] = []
    for start in range(0, len(values), AT_ONCE):
        page = persons_table.c[column].in_(values[start : start + AT_ONCE])
        found += [PersonKey(*row) for row in connection.execute(_WITH_KEYS.where(page))]
    return found


@cache
def _insert_of(table: sa.Table, dialect: str) -> Any:
    from sqlalchemy.dialects import postgresql, sqlite

    insert = sqlite.insert if dialect == "sqlite" else postgresql.insert
    return insert(table).on_conflict_do_nothing()


def _insert_new(connection: Connection, table: sa.Table, rows: Sequence[Mapping[str, Any]]) -> int:
    """Insert the rows that clash with none; returns how many they were, or less where the driver
    does not tell."""
    return connection.execute(_insert_of(table, connection.dialect.name), list(rows)).rowcount


def _rows_of(query: sa.Select[Any]) -> Callable[[Connection], Sequence[RowMapping]]:
    return lambda connection: connection.execute(query).mappings().all()


def _person(row: RowMapping) -> Person:
    return Person(row["person_id"], row["created_at"], row["forgotten_at"], row["reason"] or "")


def new_person_id(at: datetime, random_bytes: Callable[[int], bytes] = os.urandom) -> str:
    """The id of one more person: when they were made, and 72 random bits. So those who are made one
    after the other stand next to each other in the store: written in few pages, read in one go."""
    return f"{int(at.timestamp() * 100):010x}{text_of_bytes(random_bytes(_ID_RANDOM_BYTES))}"


def made_at(person_id: str) -> float:
    """When a person was made, in seconds since 1970; 0 where the id does not tell, as older ones,
    which are all random."""
    try:
        return int(person_id[:10], 16) / 100
    except ValueError:
        return 0.0


def _make_private(path: Path) -> None:
    """An empty file that only its owner reads, where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except FileExistsError:
        return
    log.warning("made an empty key store, %s: it knows no person who was sealed before", path)


def _way_out(error: BaseException) -> str:
    """What to do about a file that is no key store; empty where it may be one."""
    cause = _cause_of(error)
    if getattr(cause, "sqlite_errorcode", 0) & 0xFF in _DAMAGED:
        return (
            "stop what uses it and put a copy of it back, or name another one in "
            "PERSONS_DATABASE_URL; what was sealed cannot be opened without it"
        )
    if str(cause).startswith(LACKING):
        return "it is another database: name the key store in PERSONS_DATABASE_URL"
    return ""


def _cause_of(error: BaseException) -> BaseException:
    return (error.orig or error) if isinstance(error, sa.exc.DBAPIError) else error


def _why(error: BaseException) -> str:
    cause = _cause_of(error)
    return str(cause).partition("\n")[0] or type(error).__name__
