"""A history as a file: whole, or not at all; and taken in as often as one likes."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from inventory_service.domain import AddStock
from order_saga.archive.table import order_views
from saga.archive import queries, store
from saga.archive.store import Gap, LastRead
from saga.envelope import Envelope
from saga.errors import InputError
from saga.history import pages
from saga.history.transfer import Imported, export, take_in
from saga.runtime.kernel.opening import open_database
from saga.runtime.messaging.stream import Record
from tests.integration.test_history_queries import kept_by_another
from tests.order_play import BROKE, Play
from tests.stores import GRAPH, HISTORY, PROJECTION
from tests.unit.test_limits import BEYOND

Document = dict[str, Any]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


async def transaction(url: str, work: Callable[[Connection], object]) -> Any:
    database = await open_database(url, HISTORY)
    try:
        return await database.transaction(work)
    finally:
        await database.close()


async def contents(url: str) -> list[set[tuple[Any, ...]]]:
    """All there is, but for when it was recorded here and who wrote a row how often."""

    def read(connection: Connection) -> list[set[tuple[Any, ...]]]:
        found = []
        for table in (store.events, store.strays, order_views, store.gaps):
            left_out = ("recorded_at", "version", "noticed_at", "stream_number")
            columns = [column for column in table.columns if column.name not in left_out]
            found.append({tuple(row) for row in connection.execute(sa.select(*columns))})
        return found

    found: list[set[tuple[Any, ...]]] = await transaction(url, read)
    return found


@pytest.fixture
async def history(tmp_path: Path) -> str:
    """A history of five orders, with a message that was none, followed up to some offset."""
    play = Play(tick=timedelta(milliseconds=3))
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    for customer in ("ada", BROKE, "Zoë 日本", "grace", "ada"):
        play.place(customer=customer)
        play.deliver()
    records = records_of(play.events)
    torn = Record(len(records), "saga.events", "order.placed.high", "torn", None, b"{\xff")
    url = f"sqlite:///{tmp_path / 'history.db'}"
    await transaction(
        url, lambda c: store.follow(c, [*records, torn], play.at, None, projection=PROJECTION)
    )
    return url


def records_of(events: list[Envelope[Any]]) -> list[Record]:
    """The events as the stream has them."""
    return [
        Record(n, "saga.events", e.routing_key, e.id, None, e.to_bytes())
        for n, e in enumerate(events)
    ]


async def events_in(url: str) -> list[Envelope[Any]]:
    """The events that are kept, in the order in which they were."""
    found = await transaction(url, lambda c: queries.facts_in(c, queries.ROWS))
    return [event for fact in found if (event := store.decoded(fact, GRAPH)) is not None]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "history.jsonl.gz"


def lines(file: Path) -> list[Document]:
    with gzip.open(file, "rt") as stream:
        return [json.loads(line) for line in stream]


def put(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def write(file: Path, documents: list[Document]) -> None:
    with gzip.open(file, "wt") as stream:
        stream.writelines(json.dumps(document) + "\n" for document in documents)


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
async def test_a_history_taken_in_is_the_one_that_was_written(
    suffix: str, history: str, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / f"history{suffix}"
    written = export(history, file)
    taken = await take_in(database_url, file, GRAPH)

    assert taken == Imported(written.events, 0, 1, [])
    assert await contents(database_url) == await contents(history)
    assert not any(name.endswith(".part") for name in os.listdir(tmp_path))


async def test_each_line_is_an_event_with_its_whole_envelope(history: str, file: Path) -> None:
    export(history, file)
    first, *events, stray, end = lines(file)

    assert (first["export"], first["version"]) == ("order-saga history", 1)
    assert events[1]["event"]["type"] == "order.placed"
    assert events[1]["event"]["data"]["customer"] == "ada"
    assert [line["offset"] for line in events] == list(range(len(events)))
    assert stray["stray"]["reason"] == "malformed"
    assert end == {"end": {"events": len(events), "strays": 1}}


async def test_what_is_known_is_not_kept_twice(history: str, file: Path) -> None:
    written = export(history, file)
    before = await contents(history)

    assert await take_in(history, file, GRAPH) == Imported(0, written.events, 0, [])
    assert await contents(history) == before


async def test_two_histories_become_one(history: str, file: Path, tmp_path: Path) -> None:
    export(history, file)
    play = Play(tick=timedelta(milliseconds=3))
    order = play.place()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    facts = [store.Fact(event, event.to_bytes()) for event in play.events]
    await transaction(other, lambda c: store.append(c, facts, play.at, PROJECTION))
    await take_in(other, file, GRAPH)

    found = await transaction(other, lambda c: queries.search(c, queries.Search(), 50))
    assert len(found) == 7
    assert {order, "tea"} <= {subject.key for subject in found}


LATE = 5
"""The first offset that is left in the stream once its head has been trimmed."""


async def late_history(tmp_path: Path, events: list[Envelope[Any]], number: int = 1) -> str:
    """A history that has followed this stream, the one of that number for it, when its head was
    gone already; and lacks something else that no source has."""
    late = f"sqlite:///{tmp_path / 'late.db'}"
    play = Play()
    missing = [(0, LATE - 1), (100, 200)]

    def follow(connection: Connection) -> None:
        records = records_of(events)[LATE:]
        store.follow(
            connection, records, play.at, None, missing, stream_number=number, projection=PROJECTION
        )

    await transaction(late, follow)
    return late


@pytest.mark.parametrize("number", [1, 3])
async def test_gaps_of_the_same_stream_that_the_other_history_does_not_have_are_closed(
    number: int, history: str, file: Path, tmp_path: Path
) -> None:
    export(history, file)
    late = await late_history(tmp_path, await events_in(history), number)

    assert (await take_in(late, file, GRAPH)).closed == [Gap(0, LATE - 1, number)]
    assert await transaction(late, queries.known_gaps) == [Gap(100, 200, number)]


async def test_a_file_of_an_older_version_closes_gaps_as_well(
    history: str, file: Path, tmp_path: Path
) -> None:
    """It does not number streams."""
    export(history, file)
    documents = lines(file)
    for document in documents:
        document.pop("stream", None)
    write(file, documents)
    late = await late_history(tmp_path, await events_in(history))

    assert (await take_in(late, file, GRAPH)).closed == [Gap(0, LATE - 1)]


async def test_another_systems_file_closes_no_gap(history: str, file: Path, tmp_path: Path) -> None:
    """It has read other events under these offsets."""
    export(history, file)
    play = Play(tick=timedelta(milliseconds=3))
    for _ in range(3):
        play.place()
        play.deliver()
    late = await late_history(tmp_path, play.events)

    assert (await take_in(late, file, GRAPH)).closed == []
    assert await transaction(late, queries.known_gaps) == [Gap(0, LATE - 1), Gap(100, 200)]
    # Nor is that changed by the other system's events, which are known by now.
    assert (await take_in(late, file, GRAPH)).closed == []


async def test_a_gap_of_another_stream_than_the_files_stays(
    history: str, file: Path, tmp_path: Path
) -> None:
    export(history, file)
    late = await late_history(tmp_path, await events_in(history), 2)
    older = {"stream_number": 1, "first": 0, "last": 3, "noticed_at": EPOCH}
    await transaction(late, lambda c: c.execute(store.gaps.insert().values(older)))

    assert (await take_in(late, file, GRAPH)).closed == [Gap(0, LATE - 1, 2)]
    assert await transaction(late, queries.known_gaps) == [Gap(0, 3), Gap(100, 200, 2)]


async def test_a_gap_that_the_file_has_too_stays(history: str, file: Path, tmp_path: Path) -> None:
    events = await events_in(history)
    (tmp_path / "other").mkdir()
    export(await late_history(tmp_path / "other", events), file)
    late = await late_history(tmp_path, events)

    assert (await take_in(late, file, GRAPH)).closed == []


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".jsonl"])
async def test_what_another_program_kept_as_an_event_is_carried_on_as_a_stray(
    suffix: str, history: str, database_url: str, tmp_path: Path
) -> None:
    file = tmp_path / f"history{suffix}"
    (subject, *_) = [event.subject for event in await events_in(history)]
    ids = await transaction(history, lambda c: kept_by_another(c, subject))
    await transaction(history, lambda c: keep_stray(c, "long", b"\xff" * 1_000_000))
    written = export(history, file)
    taken = await take_in(database_url, file, GRAPH)

    assert taken == Imported(written.events, 0, len(ids) + 2, [])
    rows = await transaction(database_url, lambda c: c.execute(BODIES).all())
    kept = {row.key: row.body for row in rows}
    assert kept == {"torn": b"{\xff", "long": b"\xff" * 1_000_000} | dict(
        zip(ids, BEYOND.values(), strict=True)
    )
    assert await asyncio.to_thread(export, database_url, tmp_path / "again.jsonl") == written
    assert await take_in(history, file, GRAPH) == Imported(0, written.events + len(ids), 0, [])


BODIES = sa.select(store.strays.c.key, store.strays.c.body)


def keep_stray(connection: Connection, key: str, body: bytes) -> None:
    stray = store.Stray(key, "order.placed.high", "too_large", "", body)
    store.append(connection, [stray], EPOCH, PROJECTION)


async def test_every_page_is_read_though_none_of_its_events_is_one_any_more(
    history: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "EVENTS_AT_ONCE", 3)
    monkeypatch.setattr(pages, "STRAYS_AT_ONCE", 3)
    monkeypatch.setattr(pages, "STRAYS_MAX_BYTES", 5_000)
    (subject, *_) = [event.subject for event in await events_in(history)]
    ids = await transaction(history, lambda c: kept_by_another(c, subject))
    play = Play()
    play.place()
    last = [store.Fact(event, event.to_bytes()) for event in play.events]
    await transaction(history, lambda c: store.append(c, last, play.at, PROJECTION))
    before = pages.count(history)
    for number in range(7):
        await transaction(history, partial(keep_stray, key=f"s{number}", body=b"x" * 3_000))

    written = export(history, file)
    assert (written.events, written.strays) == (before - len(ids), len(ids) + 8)
    assert [len(page) for page in pages.strays_of(history)] == [2, 2, 2, 2]


async def test_taking_in_does_not_move_the_place_in_the_stream(
    history: str, file: Path, tmp_path: Path
) -> None:
    export(history, file)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    await take_in(other, file, GRAPH)

    assert await transaction(other, queries.place) is None
    assert isinstance(await transaction(history, queries.place), LastRead)


SPOILED: dict[str, tuple[Callable[[list[Document]], object], str]] = {
    "a wrong place": (lambda d: d[0].update(offset="9"), "line 1: offset: Input should be"),
    "wrong gaps": (lambda d: d[0].update(gaps=[[1], 7]), "line 1: gaps.0: List should have"),
    "no history": (lambda d: d[0].update(export="cats"), "line 1: this is no history"),
    "another version": (lambda d: d[0].update(version=2), "line 1: version 2; this version reads"),
    "no event": (lambda d: d[3].pop("event"), "line 4: 'event' is missing"),
    "an event without a source": (lambda d: d[3]["event"].pop("source"), "line 4: source: Field"),
    "an event that is text": (lambda d: d[3].update(event="x"), "line 4: "),
    "a wrong offset": (lambda d: d[3].update(offset="3"), "line 4: offset: '3' is none"),
    "an unstorable id": (lambda d: d[3]["event"].update(id="\0"), "line 4: id: String should"),
    "a long id": (lambda d: d[3]["event"].update(id="é" * 255), "line 4: id: Value error, it has"),
    "a time in the year 9999": (
        lambda d: d[3]["event"].update(time="9999-12-31T23:59:59-14:00"),
        "line 4: time: Input should be less than 2200",
    ),
    "a huge sequence": (lambda d: d[3]["event"].update(sequence=2**40), "line 4: sequence: Input"),
    "a huge number": (lambda d: d[3]["event"].update(more=2**70), "line 4: the body is not JSON"),
    "a stray's long key": (lambda d: d[-2]["stray"].update(key="k" * 256), "at most 255"),
    "a stray without a reason": (lambda d: d[-2]["stray"].pop("reason"), "'reason' is missing"),
    "a stray's body": (lambda d: d[-2]["stray"].update(body="?"), "body is no base64"),
    "an event too few": (lambda d: d.pop(4), "but there were"),
    "no end": (lambda d: d.pop(), "has no end: it was cut off"),
    "more after the end": (lambda d: d.append(d[3]), "something follows the end"),
}


@pytest.mark.parametrize(("spoil", "words"), SPOILED.values(), ids=SPOILED.keys())
async def test_a_file_with_something_wrong_changes_nothing_and_the_line_is_named(
    spoil: Callable[[list[Document]], object],
    words: str,
    history: str,
    file: Path,
    tmp_path: Path,
) -> None:
    export(history, file)
    documents = lines(file)
    spoil(documents)
    write(file, documents)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    with pytest.raises(InputError) as refusal:
        await take_in(other, file, GRAPH)

    assert words in str(refusal.value)
    assert str(file) in str(refusal.value)
    assert await contents(other) == [set(), set(), set(), set()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "this is no history"),
        (gzip.compress(b"{\n"), "line 1: not JSON"),
        (gzip.compress(b"[]\n"), "line 1: JSON, but no object"),
        (b"plain", "cannot read"),
        (gzip.compress(b'{"export": "order-saga history", "version": 1}\n')[:-9], "cannot read"),
        (gzip.compress(b"x" * 1_000_000), "line 1: longer than"),
    ],
    ids=["empty", "no JSON", "no object", "no gzip", "cut off", "endless"],
)
async def test_what_is_no_such_file_is_refused(
    content: bytes, words: str, file: Path, tmp_path: Path
) -> None:
    put(file, content)
    with pytest.raises(InputError, match=words):
        await take_in(f"sqlite:///{tmp_path / 'other.db'}", file, GRAPH)


async def test_names_and_places_that_cannot_be_are_refused(history: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end its name in \.jsonl\.gz"):
        export(history, tmp_path / "history.zip")
    with pytest.raises(InputError, match="cannot write"):
        export(history, tmp_path / "nowhere" / "history.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        await take_in(history, tmp_path / "nothing.jsonl", GRAPH)
    if sys.version_info < (3, 14):
        with pytest.raises(InputError, match=r"Zstandard from 3\.14 on"):
            export(history, tmp_path / "history.jsonl.zst")
    owner = await open_database(history, HISTORY)
    put(tmp_path / "any.jsonl", b'{"export": "order-saga history", "version": 1}\n')
    with pytest.raises(InputError, match="in use by another process"):
        await take_in(history, tmp_path / "any.jsonl", GRAPH)
    await owner.close()
