"""Following the history stream: every message into the database once, with its place in the stream.

A place is the offset of the last message that was kept, and what that message is recognised by.
Reading goes on *at* that message, not after it. So what follows tells by itself how the stream is
now: the same message, and nothing was missed; a later one, and retention has taken what was
between; another one, or an end before that place, and the stream is read from its beginning. What
is known already is not kept twice, and tells whether it is still the stream that was read. No
answer tells nothing: then the broker is slow, and is waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from functools import partial
from typing import Final

import aiormq

from saga.archive import OBSERVER, store
from saga.archive.projection import Projection
from saga.archive.queries import place as read_place
from saga.archive.store import LastRead
from saga.clock import elapsed
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import Clock, VersionConflict, utc_now
from saga.runtime.messaging.connection import RETRY_SECONDS, BrokerError, connect
from saga.runtime.messaging.stream import (
    FIRST,
    Record,
    StreamError,
    StreamReader,
    last_offset,
    reading,
)
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.runtime.metrics import FollowerMetrics
from saga.runtime.retry_loop import RetryLoop

log = logging.getLogger(__name__)

BATCH_MAX: Final = 1_000
"""Messages in one transaction."""
LINGER_SECONDS: Final = 0.05
"""How long company is waited for after a transaction of a few messages: reading the history may
be so late, and the machine's time is worth more to the services."""
OFFSETS_UNUSED_MAX: Final = 10
"""The broker uses some offsets itself; where more than these are missing in one place, retention
has overtaken the reading."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
LOOK_SECONDS: Final = 3.0
"""How long the message at the place may take to come, before the stream's end is looked for."""
STOP_POLL_SECONDS: Final = 0.2

_NAME: Final = f"{OBSERVER.name} follower"


_AWAY: Final = (
    BrokerError,
    StreamError,
    ConnectionError,
    TimeoutError,
    aiormq.exceptions.AMQPError,
    aiormq.exceptions.ChannelInvalidStateError,
)
"""What is raised while the broker is away, or on the way there."""

_Offsets = tuple[int, int]
"""The first and the last of some offsets."""


class AnotherStream(Exception):
    """The stream does not hold at its place what was read there before."""


class Follower:
    """Keeps the history in step with the stream. Belongs to one event loop.

    Two of them on one database do no harm: one finds that the other has moved the place, and goes
    on from there.
    """

    def __init__(
        self, url: str, database: Database, projection: Projection, *, clock: Clock = utc_now
    ) -> None:
        self._url = url
        self._database = database
        self._projection = projection
        self._clock = clock
        self._metrics = FollowerMetrics(OBSERVER.name)
        self._trouble = "not connected yet"
        self._follow_loop = RetryLoop("stream", "follow the history")
        self._started = asyncio.Event()
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self._held_back = False
        self._backoff_seconds = BACKOFF_MIN_SECONDS
        self._logged = ""
        self.stream_lacks = ""
        """Why the stream lacks what was in it; empty if it does not, as far as is known."""

    @property
    def trouble(self) -> str:
        """Why the stream is not being read; empty if it is."""
        return self._trouble

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return (self._follow_loop,)

    def hold_back(self, held_back: bool) -> None:
        """Keep no more for now, or go on. The stream keeps it meanwhile."""
        self._held_back = held_back

    async def start(self, patience_seconds: float) -> None:
        """Find the stream, and let `run` begin. Raises `BrokerError` if it is not there."""
        deadline = time.monotonic() + patience_seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            connection = await connect(self._url, name=_NAME, patience_seconds=left)
            try:
                async with connection, reading(connection, FIRST):
                    break
            except _AWAY as error:
                # A node that has just started lets clients in before its streams are there.
                if time.monotonic() > deadline:
                    raise BrokerError(f"cannot follow the history: {error}") from error
            await asyncio.sleep(RETRY_SECONDS)
        self._started.set()

    async def stop(self) -> None:
        """Commit what is being committed, and read no more."""
        self._stopping.set()
        self._started.set()

    async def finish(self, deadline: float) -> None:
        """Wait until `run` has ended, at most until that time of `time.monotonic`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(deadline - time.monotonic()):
                await self._ended.wait()

    async def run(self) -> None:
        """Follow the stream until `stop`, however often broker or database go away. An unexpected
        error is a problem in `/readyz`, and tried again as well."""
        await self._started.wait()
        while not self._stopping.is_set():
            try:
                await self._follow()
            except VersionConflict as error:
                await self._pause(str(error))
            except Exception as error:
                if not isinstance(error, _AWAY) and not self._database.is_away(error):
                    self._log_once(error)
                await self._pause(str(error) or type(error).__name__)
        self._ended.set()

    def _log_once(self, error: Exception) -> None:
        if (kind := repr(error)) != self._logged:
            log.error("following the history failed", exc_info=error)
        self._logged = kind

    async def _pause(self, why: str) -> None:
        if self._trouble:
            self._follow_loop.failed(why)
        else:
            self._follow_loop.lost(why)
        self._trouble = why
        self._metrics.paused(self._backoff_seconds)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._backoff_seconds):
                await self._stopping.wait()
        self._backoff_seconds = min(self._backoff_seconds * 2, BACKOFF_MAX_SECONDS)

    async def _catch_up(self) -> None:
        """Fold what is recorded and was not folded: by a version that knew no subjects."""
        fold = partial(store.catch_up, projection=self._projection)
        while not self._stopping.is_set() and await self._database.transaction(fold):
            pass

    async def _follow(self) -> None:
        await self._catch_up()
        place = await self._database.read(read_place)
        connection = await connect(self._url, name=_NAME)
        async with connection:
            if place is not None:
                try:
                    async with reading(connection, place.offset) as reader:
                        await self._go_on(reader, place)
                        return
                except AnotherStream as error:
                    log.warning("%s; it is read from its beginning", error)
                    self.stream_lacks = (
                        f"{error}; `saga recover broker` puts back what the broker has lost"
                    )
                    self._metrics.lacks(True)
            async with reading(connection, FIRST) as reader:
                await self._begin(reader, place)

    async def _go_on(self, reader: StreamReader, place: LastRead) -> None:
        """Read on from `place`. Raises `AnotherStream`."""
        self._connected()
        records = await self._resume(reader, place)
        adjoins = bool(records) and records[0].offset == place.offset
        records = records[1:] if adjoins else records
        await self._read_on(
            reader, records, place, place.stream_number, place.offset, adjoins=adjoins
        )

    async def _begin(self, reader: StreamReader, place: LastRead | None) -> None:
        """Read from the beginning. `place` is how far the stream that was read before is known."""
        self._connected()
        records: list[Record] = []
        while not records:
            if self._stopping.is_set():
                return
            records = await reader.take(BATCH_MAX, STOP_POLL_SECONDS)
        number, after = 1, -1
        if place is not None:
            number = place.stream_number
            same = await self._database.read(
                lambda connection: store.were_read(connection, records, number)
            )
            if same:  # What is missing before it has been noted.
                after = records[0].offset - 1
            else:
                number += 1
                log.warning("the broker has another %s than was read before", HISTORY_STREAM)
        await self._read_on(reader, records, place, number, after, adjoins=False)

    async def _read_on(
        self,
        reader: StreamReader,
        records: list[Record],
        place: LastRead | None,
        number: int,
        after: int,
        *,
        adjoins: bool,
    ) -> None:
        """Keep these records and all that follow, of the stream of that number, until `stop`.

        They come after the offset `after`: see `missing`. `place` is what the database has noted.
        """
        while not self._stopping.is_set():
            if self._held_back:
                await asyncio.sleep(STOP_POLL_SECONDS)
                continue
            if records:
                if any(record.restored for record in records):
                    self.stream_lacks = ""
                    self._metrics.lacks(False)
                gaps = missing(records, after, adjoins=adjoins)
                place = await self._keep(records, place, number, gaps)
                for first, last in gaps:
                    log.error("offsets %d to %d were removed before they were read", first, last)
                after, adjoins = place.offset, True
                self._backoff_seconds = BACKOFF_MIN_SECONDS
                if len(records) < BATCH_MAX // 2:
                    await asyncio.sleep(LINGER_SECONDS)
            records = await reader.take(BATCH_MAX, STOP_POLL_SECONDS)

    def _connected(self) -> None:
        self._trouble = ""
        self._follow_loop.succeeded()

    async def _resume(self, reader: StreamReader, place: LastRead) -> list[Record]:
        """The first records from `place` on; none if it is to stop. Raises `AnotherStream`."""
        while not (records := await reader.take(BATCH_MAX, LOOK_SECONDS)):
            if self._stopping.is_set():
                return []
            # The end of a stream that has been read up to here says something; none, that the
            # stream is empty, or that the broker takes its time.
            async with await connect(self._url, name=_NAME) as another:
                last = await last_offset(another)
            if last is not None and last < place.offset:
                raise AnotherStream(
                    f"{HISTORY_STREAM} ends at offset {last}, but was read up to {place.offset}: "
                    f"it has lost its end, or was created again"
                )
        if records[0].offset == place.offset and store.place_key(records[0]) != place.key:
            raise AnotherStream(
                f"at offset {place.offset} of {HISTORY_STREAM} is another message than was read "
                f"there: it was created again"
            )
        return records

    async def _keep(
        self,
        records: Sequence[Record],
        place: LastRead | None,
        number: int,
        gaps: Sequence[_Offsets],
    ) -> LastRead:
        """Commit the records; what the database refuses is kept as a stray, by itself."""
        now = self._clock()
        try:
            tally = await self._database.transaction(
                lambda connection: store.follow(
                    connection,
                    records,
                    now,
                    place,
                    gaps,
                    projection=self._projection,
                    stream_number=number,
                )
            )
        except VersionConflict:
            raise
        except Exception as error:
            if self._database.is_away(error):
                raise
            if len(records) > 1:
                middle = len(records) // 2
                place = await self._keep(records[:middle], place, number, gaps)
                return await self._keep(records[middle:], place, number, ())
            log.error("message at offset %d refused", records[0].offset, exc_info=error)
            why = str(error)
            tally = await self._database.transaction(
                lambda c: store.follow(
                    c,
                    records,
                    now,
                    place,
                    gaps,
                    projection=self._projection,
                    stream_number=number,
                    refusal=why,
                )
            )
        last = records[-1]
        self._metrics.kept(
            {"new": tally.new, "known": tally.known, "stray": tally.stray},
            last.offset,
            elapsed(tally.newest_at, now).total_seconds() if tally.newest_at else None,
        )
        return LastRead(last.offset, store.place_key(last), number)


def missing(records: Sequence[Record], after: int, *, adjoins: bool) -> list[_Offsets]:
    """What retention has taken after the offset `after`, before or between the records.

    Where reading goes on from a message that was read, it `adjoins`, and only more offsets than the
    broker uses itself are a gap.
    """
    gaps: list[_Offsets] = []
    before = after
    unused = OFFSETS_UNUSED_MAX if adjoins else 0
    for record in records:
        if record.offset - before - 1 > unused:
            gaps.append((before + 1, record.offset - 1))
        before, unused = record.offset, OFFSETS_UNUSED_MAX
    return gaps
