"""What states are kept in, on either kind of database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

import pytest
import sqlalchemy as sa

from saga.choreography import State
from saga.due import Due
from saga.message import Command
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import Flag, Schema, StateTable, Tables


@dataclass(frozen=True, slots=True)
class Switch(State):
    """Something that is on, off or unknown."""

    on: bool | None = None


_metadata = sa.MetaData()
SWITCHES = StateTable(
    Switch,
    sa.Table(
        "switches",
        _metadata,
        sa.Column("switch", sa.String(8), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("on", Flag),
    ),
)


@pytest.mark.parametrize("on", [True, False, None])
async def test_yes_or_no_is_read_as_it_was_kept(database_url: str, *, on: bool | None) -> None:
    database = await open_database(database_url, Schema(_metadata))
    try:
        switch = Switch("a", sequence=1, on=on)

        def keep(connection: sa.Connection) -> None:
            with writing(connection) as writes:
                SWITCHES.save(writes, [(switch, 0)])

        await database.transaction(keep)
        found = await database.read(lambda connection: SWITCHES.find(connection, "a"))
    finally:
        await database.close()

    assert found == switch
    assert found is not None
    assert found.on is on


def test_a_boolean_column_is_told_what_to_be_instead() -> None:
    table = sa.Table(
        "wrong",
        sa.MetaData(),
        sa.Column("switch", sa.String(8), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("on", sa.Boolean),
    )

    with pytest.raises(TypeError, match=r"or `saga\.Flag` for yes or no"):
        StateTable(Switch, table)


# --- tables that follow from states ---------------------------------------------------------------


class Colour(StrEnum):
    """Of a lamp."""

    RED = "red"


class SwitchOff(Command):
    """It has burned for long enough."""

    type: ClassVar[str] = "lamp.switch_off"


@dataclass(frozen=True, slots=True)
class Lamp(State):
    """A lamp, with a field of each type whose column follows from it."""

    on: bool = False
    room: str | None = None
    watts: int = 0
    colour: Colour | None = None
    until: datetime | None = None
    last: SwitchOff | None = None
    steps: tuple[int, ...] = ()

    def due(self) -> Due[SwitchOff] | None:
        return None if self.until is None else Due(self.until, SwitchOff())


@dataclass(frozen=True, slots=True)
class Odd(State):
    """A state with a field of a type of its own."""

    numbers: Mapping[str, int] = field(default_factory=dict)


UNTIL = datetime(2030, 1, 1, tzinfo=UTC)
LIT = Lamp(
    "l",
    3,
    on=True,
    room="hall",
    watts=2**40,
    colour=Colour.RED,
    until=UNTIL,
    last=SwitchOff(),
    steps=(1, 2),
)


@pytest.mark.parametrize("lamp", [LIT, Lamp("l")])
async def test_a_state_is_read_as_it_was_kept_in_a_table_that_follows_from_it(
    database_url: str, lamp: Lamp
) -> None:
    metadata = sa.MetaData()
    table = StateTable.of(Lamp, metadata, "lamps")
    database = await open_database(database_url, Schema(metadata))
    try:

        def keep(connection: sa.Connection) -> None:
            with writing(connection) as writes:
                table.save(writes, [(lamp, 0)])

        await database.transaction(keep)
        found = await database.read(lambda connection: table.find(connection, "l"))
        due = await database.read(lambda connection: list(table.due(connection)))
    finally:
        await database.close()

    assert found == lamp
    assert [key for key, _ in due] == (["l"] if lamp.until else [])


def test_its_migrations_are_beside_the_module() -> None:
    tables = Tables.of(__file__, lamps=Lamp)

    assert tables.migrations == Path(__file__).with_name("migrations")
    assert tables.with_dues == (tables.states[Lamp],)


def test_a_field_whose_column_does_not_follow_is_named() -> None:
    with pytest.raises(TypeError, match=r"Odd\.numbers .* make its table with `StateTable"):
        Tables.of(__file__, odd=Odd)
