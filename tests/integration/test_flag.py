"""Yes or no in a state, on either kind of database."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import sqlalchemy as sa

from saga.choreography import State
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import Flag, Schema, StateTable


@dataclass(frozen=True, slots=True)
class Switch(State):
    """Something that is on or off, or nobody knows."""

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
async def test_it_is_read_as_it_was_kept(database_url: str, *, on: bool | None) -> None:
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
