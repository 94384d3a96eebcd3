"""The history as a file: JSON Lines, compressed, to be kept elsewhere or taken into another one.

The first line says what it is, the last one how much there is, so that a file that was cut off is
noticed. Between them each line is an event with its whole envelope, or a message that was none.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Annotated, Any, Final

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from saga.archive import queries, store
from saga.archive.projection import Projection
from saga.archive.store import (
    DETAIL_MAX_CHARACTERS,
    Fact,
    Gap,
    LastRead,
    Stray,
    Tally,
)
from saga.archive.views import projection_of
from saga.choreography import Choreography
from saga.envelope import Attributes, Undecodable, rfc3339
from saga.errors import InputError
from saga.history import HistoryError, pages
from saga.limits import BODY_MAX_BYTES, INTEGER_MAX, TEXT_MAX_BYTES
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.statements import any_of
from saga.runtime.kernel.tables import VersionConflict, utc_now
from saga.wording import counted

KIND: Final = "order-saga history"
VERSION: Final = 1
LINES_AT_ONCE: Final = 1_000
BATCH_MAX_BYTES: Final = 32_000_000
"""Bodies in one batch of lines, beyond which no line is added to it."""
HEADER_MAX_BYTES: Final = 2 * BODY_MAX_BYTES
LINE_MAX_BYTES: Final = 200_000_000
"""A stray may be as long as a broker lets a message be, which is 128 MiB at first, and is longer in
base64."""

_STRAY_MAX_CHARACTERS: Final = {
    "key": TEXT_MAX_BYTES,
    "routing_key": TEXT_MAX_BYTES,
    "reason": 32,
    "detail": DETAIL_MAX_CHARACTERS,
}

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    events: int
    strays: int
    gaps: list[Gap]


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's lines. `closed` are the gaps of which the file has what was read."""

    new: int
    known: int
    strays: int
    closed: list[Gap]


_Offset = Annotated[int, Field(ge=0, le=INTEGER_MAX)]


class _Header(BaseModel):
    """What a file's first line says of the stream that its history followed last: its number there,
    how far it was read, and which offsets are missing up to there."""

    model_config = ConfigDict(strict=True, extra="ignore")

    stream: int | None = None
    offset: _Offset | None = None
    gaps: list[Annotated[list[_Offset], Field(min_length=2, max_length=2)]] = []

    def has_read(self, gap: Gap) -> bool:
        """Whether the history had read what that gap lacks, if it is of the same stream."""
        return (
            self.offset is not None
            and gap.last <= self.offset
            and not any(first <= gap.last and gap.first <= last for first, last in self.gaps)
        )


def export(url: str, file: Path, progress: Progress = lambda _: None) -> Exported:
    """Write a whole history to a file, compressed as its name says (`.gz`, `.zst`); blocks.

    What is recorded meanwhile is left out. The file is there only once it is complete. Raises
    `InputError` for a name or a place that cannot be, `DatabaseError`.
    """
    if not file.name:
        raise InputError(f"{file} is a folder; name a file in it")
    up_to, place, gaps = read_database(url, _standing)
    header = {
        "export": KIND,
        "version": VERSION,
        "exported_at": rfc3339(utc_now()),
        "stream": place and place.stream_number,
        "offset": place and place.offset,
        "gaps": [
            [gap.first, gap.last]
            for gap in gaps
            if place is not None and gap.stream_number == place.stream_number
        ],
    }
    part = file.with_name(f"{file.name}.{os.getpid()}.part")  # Another export may be under way.
    count = odd = 0
    try:
        with _open(part, file.name, "wb") as stream:
            _write(stream, header)
            for page in pages.by_position(url, up_to):
                for item in page:
                    _write_item(stream, item)
                events_in_page = sum(isinstance(item, Fact) for item in page)
                count += events_in_page
                odd += len(page) - events_in_page
                progress(len(page))
            for strays in pages.strays_of(url):
                for stray in strays:
                    _write_item(stream, stray)
                odd += len(strays)
            _write(stream, {"end": {"events": count, "strays": odd}})
        part.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return Exported(count, odd, gaps)


def _standing(connection: Connection) -> tuple[int, LastRead | None, list[Gap]]:
    """The position of the newest event, how far the stream was read, and what is missing up to
    there, all as of one moment."""
    last = connection.scalar(sa.select(sa.func.max(store.events.c.position)))
    return last or 0, queries.place(connection), queries.known_gaps(connection)


async def take_in(
    url: str, file: Path, graph: Choreography, progress: Progress = lambda _: None
) -> Imported:
    """Take a file's events into a history, in one transaction: all or nothing. What is known
    already is not kept twice.

    On PostgreSQL the history's service may be at work: it waits. A SQLite file has one owner.
    Raises `InputError` for a file that is none, naming the line; `HistoryError`.
    """
    header = _header(file)
    projection = projection_of(graph)
    try:
        database = await open_database(url, store.schema_of(projection), name="saga history")
    except DatabaseError as error:
        raise InputError(str(error)) from error
    try:
        return await database.transaction(lambda c: _take_in(c, file, header, projection, progress))
    except VersionConflict as error:
        raise HistoryError(f"{error}; try again when it has ended") from error
    finally:
        await database.close()


def read(file: Path) -> Iterator[Sequence[Fact | Stray]]:
    """The events of a file, and the messages that are none, some at a time; blocks. Raises
    `InputError` for a file that is none, naming the line."""
    _header(file)
    yield from _batches(file)


def gaps_in(file: Path) -> list[tuple[int, int]]:
    """First and last of the offsets that the history lacked which a file was written from. Raises
    `InputError`."""
    return [(first, last) for first, last in _header(file).gaps]


def _take_in(
    connection: Connection,
    file: Path,
    header: _Header,
    projection: Projection,
    progress: Progress,
) -> Imported:
    store.take_turn(connection)
    now = utc_now()
    total = Tally()
    missing = queries.known_gaps(connection)
    same: set[int] = set()
    """The streams of this history of which one is the file's."""
    for batch in _batches(file):
        if missing:
            same |= _in_both(connection, batch, header)
        # The numbers of another history's streams mean nothing here.
        items = [replace(item, stream_number=None) for item in batch]
        tally = store.append(connection, items, now, projection)
        total = Tally(total.new + tally.new, total.known + tally.known, total.stray + tally.stray)
        progress(len(items))
    closed = [gap for gap in missing if gap.stream_number in same and header.has_read(gap)]
    for gap in closed:
        column = store.gaps.c
        connection.execute(
            store.gaps.delete().where(
                column.stream_number == gap.stream_number, column.first == gap.first
            )
        )
    return Imported(total.new, total.known, total.stray, closed)


def _in_both(connection: Connection, batch: Sequence[Fact | Stray], header: _Header) -> set[int]:
    """The streams in which this history has read an event at the very offset where the file's
    history has read it. Another system's streams have none such."""
    offsets = {
        item.attributes.id: item.stream_offset
        for item in batch
        if isinstance(item, Fact) and item.stream_number == header.stream
    }
    column = store.events.c
    query = sa.select(column.event_id, column.stream_offset, column.stream_number).where(
        any_of(connection, column.event_id, sorted(offsets)), column.stream_number.is_not(None)
    )
    return {
        number
        for id, offset, number in connection.execute(query)
        if offset is not None and offset == offsets[id]
    }


# --- lines ------------------------------------------------------------------------------------


def _write(stream: IO[bytes], document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    stream.write(text.encode() + b"\n")


def _write_item(stream: IO[bytes], item: Fact | Stray) -> None:
    where: dict[str, Any] = {"offset": item.stream_offset}
    if item.stream_number is not None:
        where["stream"] = item.stream_number
    if isinstance(item, Stray):
        _write(stream, where | {"stray": _stray_line(item)})
        return
    # The body is a JSON object already; on one line, as nothing else writes it.
    body = item.body if b"\n" not in item.body else _compact(from_json(item.body))
    stream.write(_compact(where)[:-1] + b',"event":' + body + b"}\n")


def _compact(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _stray_line(stray: Stray) -> dict[str, Any]:
    return {
        "key": stray.key,
        "routing_key": stray.routing_key,
        "reason": stray.reason,
        "detail": stray.detail,
        "body": base64.b64encode(stray.body).decode(),
    }


def _header(file: Path) -> _Header:
    for document in _documents(file):
        if document.get("export") != KIND:
            break
        if document.get("version") != VERSION:
            raise InputError(
                f"{file}, line 1: version {document.get('version')!r}; this version reads {VERSION}"
            )
        try:
            return _Header.model_validate(document)
        except ValidationError as error:
            (first, *_) = error.errors(include_url=False)
            where = ".".join(map(str, first["loc"]))
            raise InputError(f"{file}, line 1: {where}: {first['msg']}") from error
    raise InputError(f"{file}, line 1: this is no history; `saga history export` writes one")


def _batches(file: Path) -> Iterator[list[Fact | Stray]]:
    """The events and strays of a file, some at a time."""
    batch: list[Fact | Stray] = []
    size = 0
    for item in _items(file):
        batch.append(item)
        size += len(item.body)
        if len(batch) == LINES_AT_ONCE or size > BATCH_MAX_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _items(file: Path) -> Iterator[Fact | Stray]:
    """The events and strays of a file, checked; the end as well."""
    events = odd = 0
    ended = False
    for number, document in enumerate(_documents(file), start=1):
        if number == 1:
            continue
        if ended:
            raise InputError(f"{file}, line {number}: something follows the end")
        try:
            if "end" in document:
                ended = True
                if document["end"] != {"events": events, "strays": odd}:
                    raise ValueError(
                        f"the end says {document['end']}, but there were "
                        f"{counted(events, 'event')} and "
                        f"{counted(odd, 'stray')}"
                    )
            elif "stray" in document:
                odd += 1
                yield _stray_of(document)
            else:
                events += 1
                yield _fact_of(document)
        except (Undecodable, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{file}, line {number}: {_why(error)}") from error
    if not ended:
        raise InputError(f"{file} has no end: it was cut off")


def _why(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


def _fact_of(document: dict[str, Any]) -> Fact:
    body = _compact(document["event"])
    attributes = Attributes.of(body)
    return Fact(attributes, body, _offset(document), stream_number=document.get("stream"))


def _stray_of(document: dict[str, Any]) -> Stray:
    said = document["stray"]
    text = {name: said[name] for name in ("key", "routing_key", "reason", "detail")}
    if not all(isinstance(value, str) for value in text.values()):
        raise ValueError("a stray's key, routing_key, reason and detail are text")
    for name, length in _STRAY_MAX_CHARACTERS.items():
        if len(text[name]) > length or "\0" in text[name]:
            raise ValueError(f"a stray's {name} has at most {length} characters, none of them NUL")
    try:
        body = base64.b64decode(said["body"], validate=True)
    except (ValueError, TypeError) as error:
        raise ValueError(f"a stray's body is no base64: {error}") from error
    return Stray(
        **text,
        body=body,
        stream_offset=_offset(document),
        stream_number=document.get("stream"),
    )


def _offset(document: dict[str, Any]) -> int | None:
    offset = document.get("offset")
    if offset is None or (isinstance(offset, int) and 0 <= offset <= INTEGER_MAX):
        return offset
    raise ValueError(f"offset: {offset!r} is none")


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with _open(file, file.name, "rb") as stream:
            number = 0
            longest = HEADER_MAX_BYTES
            while line := stream.readline(longest + 1):
                number += 1
                if len(line) > longest:
                    raise InputError(f"{file}, line {number}: longer than {longest} bytes")
                longest = LINE_MAX_BYTES
                yield _document(file, number, line)
    except (OSError, EOFError, zlib.error) as error:
        what = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read {file}: {what}") from error


def _document(file: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        document = from_json(line)
    except ValueError as error:
        raise InputError(f"{file}, line {number}: not JSON: {error}") from error
    if not isinstance(document, dict):
        raise InputError(f"{file}, line {number}: JSON, but no object")
    return document


@contextmanager
def _open(path: Path, name: str, mode: str) -> Iterator[IO[bytes]]:
    """Open a file compressed as its name says."""
    if name.endswith(".gz"):
        with gzip.open(path, mode, compresslevel=6) as stream:
            yield stream  # type: ignore[misc]  # binary in either mode
    elif name.endswith(".zst"):
        zstd = _zstd()
        try:
            with zstd.open(path, mode) as stream:
                yield stream
        except zstd.ZstdError as error:
            raise OSError(f"no Zstandard: {error}") from error
    elif name.endswith(".jsonl"):
        with path.open(mode) as stream:
            yield stream
    else:
        raise InputError(f"{name}: end its name in .jsonl.gz, .jsonl.zst or .jsonl")


def _zstd() -> Any:
    """Python's own Zstandard, which 3.14 brought."""
    try:
        return importlib.import_module("compression.zstd")
    except ImportError:
        raise InputError("Python has Zstandard from 3.14 on; name a .jsonl.gz") from None
