"""Databases rebuilt of participants that send commands and keep private facts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import store
from saga.archive.projection import Projection
from saga.choreography import State
from saga.deployment import Deployment
from saga.discovery import VARIABLE, tables_in
from saga.errors import InputError
from saga.history import rebuild as work
from saga.history.rebuild import Rebuilt, Unanswered, rebuild, redeliver
from saga.history.sources import Sources
from saga.history.verify import verify
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import Tables
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.topology import intake_queue
from tests.errands import GRAPH, AskErrand, Errand, Papers, Ride
from tests.integration.toy import id_in_inbox
from tests.play import Play
from tests.stores import HISTORY

KINDS: dict[str, type[State]] = {"desk": Errand, "rider": Ride, "stamper": Papers}
TABLES: dict[str, Tables] = {
    participant.name: tables_in(participant.package) for participant in GRAPH.participants
}
PUBLIC = frozenset(event.type for event in GRAPH.recorded if not getattr(event, "private", False))


@pytest.fixture(autouse=True)
def _saga(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "tests.errands:SAGA")


def played() -> Play:
    """Errands at every stage."""
    play = Play(graph=GRAPH)
    for errand, far, down in (
        ("near", False, ()),
        ("far", True, ()),
        ("unstamped", False, ("stamper",)),
        ("unridden", False, ("rider",)),
        ("begun", True, ("rider", "stamper")),
    ):
        play.down = {*down}
        play.give("desk", AskErrand(errand=errand, far=far))
        play.deliver()
        play.waiting.clear()
    return play


def url_of(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"


async def write(folder: Path, play: Play, types: frozenset[str] | None = None) -> Sources:
    """The databases as the services would have them; and a history of these types only."""
    for name, tables in TABLES.items():
        await _fill(url_of(folder, name), tables, play, name)
    facts = [
        store.Fact(event, event.to_bytes())
        for event in play.events
        if types is None or event.type in types
    ]
    history = await open_database(url_of(folder, "history"), HISTORY)
    await history.transaction(
        lambda connection: store.append(connection, facts, play.at, Projection(GRAPH))
    )
    await history.close()
    urls = {name: url_of(folder, name) for name in (*TABLES, "history")}
    return Sources(urls["history"], urls, {}, None)


async def _fill(url: str, tables: Tables, play: Play, name: str) -> None:
    def fill(connection: Connection) -> None:
        with writing(connection) as writes:
            states = [(state, 0) for state in play.states[name].values()]
            tables.states[KINDS[name]].save(writes, states)
            tables.mark_done(writes, dict.fromkeys(play.inboxes[name]), play.at)

    database = await open_database(url, tables)
    await database.transaction(fill)
    await database.close()


def rows_of(url: str, name: str) -> tuple[set[Any], set[str]]:
    """The states, and the ids in the inbox."""
    tables = TABLES[name]

    def read(connection: Connection) -> tuple[set[Any], set[str]]:
        table = tables.states[KINDS[name]].table
        columns = [column for column in table.columns if column.name != "version"]
        states = {tuple(row) for row in connection.execute(sa.select(*columns))}
        keys = connection.scalars(sa.select(tables.inbox.c.message_id))
        return states, {id_in_inbox(key) for key in keys}

    return read_database(url, read)


async def made_again(folder: Path, sources: Sources, name: str, waiting: Any) -> Rebuilt:
    return await rebuild(sources, GRAPH, name, url_of(folder, f"{name}-again"), waiting=waiting)


@pytest.mark.parametrize("name", TABLES)
async def test_the_result_is_the_live_database_with_commands_and_private_facts(
    name: str, tmp_path: Path
) -> None:
    play = played()
    sources = await write(tmp_path, play)
    done = {(of, key.id) for of, keys in play.inboxes.items() for key in keys}
    waiting = {
        (participant.name, event.id)
        for event in play.events
        for participant in GRAPH.reacting_to(event.type)
    } - done

    made = await made_again(tmp_path, sources, name, waiting)

    assert rows_of(url_of(tmp_path, f"{name}-again"), name) == rows_of(
        sources.database_urls[name], name
    )
    assert (made.lost, made.holes) == ([], [])


async def test_a_command_that_only_the_lost_database_had_done_is_told(tmp_path: Path) -> None:
    play = played()
    sources = await write(tmp_path, play)

    made = await made_again(tmp_path, sources, "rider", ())

    assert {(one.type, one.subject) for one in made.lost} == {
        ("ride.start", "unridden"),
        ("ride.start", "begun"),
    }


async def test_without_its_private_facts_a_database_is_not_made_again(tmp_path: Path) -> None:
    sources = await write(tmp_path, played(), PUBLIC)

    with pytest.raises(InputError, match=r"event 3 of desk about .* is not in the history"):
        await made_again(tmp_path, sources, "desk", ())


async def test_states_are_compared_with_commands_and_private_facts(tmp_path: Path) -> None:
    sources = await write(tmp_path, played())

    found = await verify(sources, GRAPH, settle_seconds=0)

    assert found.differences == []
    assert found.rows == {"desk": 5, "rider": 3, "stamper": 3}


async def test_a_private_fact_that_the_history_lost_is_a_difference(tmp_path: Path) -> None:
    sources = await write(tmp_path, played(), PUBLIC)

    found = await verify(sources, GRAPH, settle_seconds=0)

    assert {(one.participant, one.live) for one in found.differences} == {
        ("desk", "counts event 3")
    }


async def test_a_command_that_was_lost_comes_back_to_the_queue_of_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put: list[tuple[str, bytes]] = []

    class Publisher:
        def __init__(self, *_: object) -> None: ...

        async def open(self) -> None: ...

        async def publish(self, exchange: str, posting: Posting) -> None:
            put.append((posting.routing_key, posting.body))

        async def close(self) -> None: ...

    monkeypatch.setattr(work, "BrokerPublisher", Publisher)
    play = played()
    sources = await write(tmp_path, play)
    start = next(event for event in play.events if event.type == "ride.start")
    lost = Unanswered(start.source, start.id, start.type, start.subject, waits=False)
    deployment = Deployment(amqp_url="amqp://nowhere", http_urls={}, database_urls={})

    sent = await redeliver(
        deployment, GRAPH, Rebuilt("rider", unanswered=[lost]), sources.history_url
    )

    assert sent == 1
    assert put == [(intake_queue("rider", start.priority), start.to_bytes())]
