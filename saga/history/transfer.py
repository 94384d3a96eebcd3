"""The history as a file: JSON Lines, compressed, to be kept elsewhere or taken into another one.

The first line says what it is, the last one how much there is, so that a file that was cut off is
noticed. Between them each line is an event with its whole envelope, or a message that was none.
"""

from __future__ import annotations

import base64
import gzip
import importlib
import json
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from common.envelope import Attributes, Undecodable, rfc3339
from common.kernel.database import DatabaseError, open_database, read_database
from common.kernel.tables import VersionConflict, utc_now
from common.limits import BODY_MAX_BYTES, TEXT_MAX_BYTES
from history_service import queries, store
from history_service.store import TABLES, Fact, Stray, Tally, strays
from saga.history import HistoryError, InputError, pages

KIND: Final = "order-saga history"
VERSION: Final = 1
LINES_AT_ONCE: Final = 1_000
LINE_MAX_BYTES: Final = 2 * BODY_MAX_BYTES
"""A stray body is longer in base64, and has something beside it."""

_STRAY_MAX_CHARACTERS: Final = {
    "key": TEXT_MAX_BYTES,
    "routing_key": TEXT_MAX_BYTES,
    "reason": 32,
    "detail": LINE_MAX_BYTES,
}

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    events: int
    strays: int
    gaps: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Imported:
    """What became of a file's lines. `closed` are the gaps that the file had the offsets of."""

    new: int
    known: int
    strays: int
    closed: list[tuple[int, int]]


def export(url: str, file: Path, progress: Progress = lambda _: None) -> Exported:
    """Write a whole history to a file, compressed as its name says (`.gz`, `.zst`); blocks.

    What is recorded meanwhile is left out. The file is there only once it is complete. Raises
    `InputError` for a name or a place that cannot be, `DatabaseError`.
    """
    up_to = pages.last_position(url)
    gaps = read_database(url, queries.known_gaps)
    place = read_database(url, queries.place)
    header = {
        "export": KIND,
        "version": VERSION,
        "exported_at": rfc3339(utc_now()),
        "offset": place.offset if place else None,
        "gaps": [list(gap) for gap in gaps],
    }
    part = file.with_name(f"{file.name}.part")
    count = odd = 0
    try:
        with _open(part, file.name, "wb") as stream:
            _write(stream, header)
            for page in pages.by_position(url, up_to):
                for fact in page:
                    _write_fact(stream, fact)
                count += len(page)
                progress(len(page))
            for stray in read_database(url, _strays):
                _write(stream, _stray_line(stray))
                odd += 1
            _write(stream, {"end": {"events": count, "strays": odd}})
        part.replace(file)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror or error}") from error
    finally:
        part.unlink(missing_ok=True)
    return Exported(count, odd, gaps)


async def take_in(url: str, file: Path, progress: Progress = lambda _: None) -> Imported:
    """Take a file's events into a history whose service does not run, in one transaction: all or
    nothing. What is known already is not kept twice.

    Raises `InputError` for a file that is none, naming the line; `HistoryError`.
    """
    header = _header(file)
    try:
        database = await open_database(url, TABLES, name="saga history")
    except DatabaseError as error:
        raise InputError(str(error)) from error
    try:
        return await database.transaction(lambda c: _take_in(c, file, header, progress))
    except (VersionConflict, sa.exc.IntegrityError) as error:
        raise HistoryError(
            "somebody else writes into this history; stop its service first"
        ) from error
    finally:
        await database.close()


def _take_in(
    connection: Connection, file: Path, header: dict[str, Any], progress: Progress
) -> Imported:
    now = utc_now()
    total = Tally()
    batch: list[Fact | Stray] = []

    def keep() -> None:
        nonlocal total
        tally = store.append(connection, batch, now)
        total = Tally(total.new + tally.new, total.known + tally.known, total.stray + tally.stray)
        progress(len(batch))
        batch.clear()

    for item in _items(file):
        batch.append(item)
        if len(batch) == LINES_AT_ONCE:
            keep()
    keep()
    return Imported(total.new, total.known, total.stray, _close_gaps(connection, header))


def _close_gaps(connection: Connection, header: dict[str, Any]) -> list[tuple[int, int]]:
    """Strike out the gaps that the file's history did not have, having read beyond them."""
    offset, theirs = header.get("offset"), header.get("gaps") or []
    closed = [
        (first, last)
        for first, last in queries.known_gaps(connection)
        if isinstance(offset, int)
        and last <= offset
        and not any(other[0] <= last and first <= other[1] for other in theirs)
    ]
    for first, _ in closed:
        connection.execute(store.gaps.delete().where(store.gaps.c.first == first))
    return closed


# --- lines ------------------------------------------------------------------------------------


def _write(stream: IO[bytes], document: dict[str, Any]) -> None:
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    stream.write(text.encode() + b"\n")


def _write_fact(stream: IO[bytes], fact: Fact) -> None:
    # The body is a JSON object already; on one line, as nothing else writes it.
    body = fact.body if b"\n" not in fact.body else _compact(from_json(fact.body))
    offset = b"null" if fact.stream_offset is None else str(fact.stream_offset).encode()
    stream.write(b'{"offset":' + offset + b',"event":' + body + b"}\n")


def _compact(document: Any) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()


def _strays(connection: Connection) -> list[Stray]:
    rows = connection.execute(sa.select(strays).order_by(strays.c.recorded_at, strays.c.key))
    return [
        Stray(row.key, row.routing_key, row.reason, row.detail, row.body, row.stream_offset)
        for row in rows
    ]


def _stray_line(stray: Stray) -> dict[str, Any]:
    return {
        "offset": stray.stream_offset,
        "stray": {
            "key": stray.key,
            "routing_key": stray.routing_key,
            "reason": stray.reason,
            "detail": stray.detail,
            "body": base64.b64encode(stray.body).decode(),
        },
    }


def _header(file: Path) -> dict[str, Any]:
    for document in _documents(file):
        if document.get("export") != KIND:
            break
        if document.get("version") != VERSION:
            raise InputError(
                f"{file}, line 1: version {document.get('version')!r}; this version reads {VERSION}"
            )
        return document
    raise InputError(f"{file}, line 1: this is no history; `saga history export` writes one")


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
                        f"the end says {document['end']}, but there were {events} events and "
                        f"{odd} strays"
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
    return Fact(attributes, body, _offset(document))


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
    return Stray(**text, body=body, stream_offset=_offset(document))


def _offset(document: dict[str, Any]) -> int | None:
    offset = document.get("offset")
    if offset is None or (isinstance(offset, int) and 0 <= offset < 2**63):
        return offset
    raise ValueError(f"offset: {offset!r} is none")


def _documents(file: Path) -> Iterator[dict[str, Any]]:
    try:
        with _open(file, file.name, "rb") as stream:
            number = 0
            while line := stream.readline(LINE_MAX_BYTES + 1):
                number += 1
                if len(line) > LINE_MAX_BYTES:
                    raise InputError(f"{file}, line {number}: longer than {LINE_MAX_BYTES} bytes")
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
        with _zstd().open(path, mode) as stream:
            yield stream
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
