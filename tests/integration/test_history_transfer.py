"""A history as a file: whole, or not at all; and taken in as often as one likes."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.kernel.database import open_database
from common.messaging.stream import Record
from history_service import queries, store
from history_service.store import TABLES, Place
from inventory_service.domain import AddStock
from saga.history import InputError
from saga.history.transfer import Imported, export, take_in
from tests.play import BROKE, Play

Document = dict[str, Any]


async def transaction(url: str, work: Callable[[Connection], object]) -> Any:
    database = await open_database(url, TABLES)
    try:
        return await database.transaction(work)
    finally:
        await database.close()


async def contents(url: str) -> list[set[tuple[Any, ...]]]:
    """All there is, but for when it was recorded here and who wrote a row how often."""

    def read(connection: Connection) -> list[set[tuple[Any, ...]]]:
        found = []
        for table in (store.events, store.strays, store.order_views, store.gaps):
            left_out = ("recorded_at", "version", "noticed_at")
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
    records = [
        Record(n, "saga.events", e.routing_key, e.id, None, e.to_bytes())
        for n, e in enumerate(play.events)
    ]
    torn = Record(len(records), "saga.events", "order.placed.high", "torn", None, b"{\xff")
    url = f"sqlite:///{tmp_path / 'history.db'}"
    await transaction(url, lambda c: store.follow(c, [*records, torn], play.at, None))
    return url


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
    taken = await take_in(database_url, file)

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

    assert await take_in(history, file) == Imported(0, written.events, 0, [])
    assert await contents(history) == before


async def test_two_histories_become_one(history: str, file: Path, tmp_path: Path) -> None:
    export(history, file)
    play = Play(tick=timedelta(milliseconds=3))
    order = play.place()
    other = f"sqlite:///{tmp_path / 'other.db'}"
    facts = [store.Fact(event, event.to_bytes()) for event in play.events]
    await transaction(other, lambda c: store.append(c, facts, play.at))
    await take_in(other, file)

    found = await transaction(other, lambda c: queries.search(c, queries.Search(), 50))
    assert len(found) == 6
    assert order in {view.key for view in found}


async def test_gaps_that_the_other_history_does_not_have_are_closed(
    history: str, file: Path, tmp_path: Path
) -> None:
    export(history, file)
    late = f"sqlite:///{tmp_path / 'late.db'}"

    def note(connection: Connection) -> None:
        for first, last in ((0, 4), (100, 200)):
            connection.execute(
                store.gaps.insert().values(first=first, last=last, noticed_at=queries._EPOCH)
            )

    await transaction(late, note)
    assert (await take_in(late, file)).closed == [(0, 4)]
    assert await transaction(late, queries.known_gaps) == [(100, 200)]


async def test_taking_in_does_not_move_the_place_in_the_stream(
    history: str, file: Path, tmp_path: Path
) -> None:
    export(history, file)
    other = f"sqlite:///{tmp_path / 'other.db'}"
    await take_in(other, file)

    assert await transaction(other, queries.place) is None
    assert isinstance(await transaction(history, queries.place), Place)


SPOILED: dict[str, tuple[Callable[[list[Document]], object], str]] = {
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
        await take_in(other, file)

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
        await take_in(f"sqlite:///{tmp_path / 'other.db'}", file)


async def test_names_and_places_that_cannot_be_are_refused(history: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"end its name in \.jsonl\.gz"):
        export(history, tmp_path / "history.zip")
    with pytest.raises(InputError, match="cannot write"):
        export(history, tmp_path / "nowhere" / "history.jsonl")
    with pytest.raises(InputError, match="cannot read"):
        await take_in(history, tmp_path / "nothing.jsonl")
    if sys.version_info < (3, 14):
        with pytest.raises(InputError, match=r"Zstandard from 3\.14 on"):
            export(history, tmp_path / "history.jsonl.zst")
    owner = await open_database(history, TABLES)
    put(tmp_path / "any.jsonl", b'{"export": "order-saga history", "version": 1}\n')
    with pytest.raises(InputError, match="in use by another process"):
        await take_in(history, tmp_path / "any.jsonl")
    await owner.close()
