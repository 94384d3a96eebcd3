"""What the simulation executes below SQLAlchemy answers as through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, cast

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.runtime.kernel.tables import Flag, Json, Utc, Word
from saga.simulation.statements import QuickConnection


class Leaf(StrEnum):
    GREEN = "green"
    BLACK = "black"


TEAS = sa.Table(
    "teas",
    sa.MetaData(),
    sa.Column("key", sa.String(64), primary_key=True),
    sa.Column("leaf", Word(Leaf), nullable=False),
    sa.Column("at", Utc),
    sa.Column("hot", Flag),
    sa.Column("cups", Json(tuple[int, ...])),
    sa.Column("body", sa.LargeBinary),
)
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
ROWS = [
    {
        "key": f"tea-{n}",
        "leaf": Leaf.GREEN if n % 2 else Leaf.BLACK,
        "at": NOON + timedelta(minutes=n) if n else None,
        "hot": n > 1,
        "cups": (n, n + 1),
        "body": bytes([n]),
    }
    for n in range(5)
]
UNTIL = sa.bindparam("until", type_=Utc)
MOST = sa.bindparam("most", type_=sa.Integer)
ALL = sa.select(TEAS).order_by(TEAS.c.key)
DUE = sa.select(TEAS.c.key, TEAS.c.at).where(TEAS.c.at <= UNTIL).order_by(TEAS.c.key).limit(MOST)
GREEN = sa.select(TEAS.c.key).where(TEAS.c.leaf == Leaf.GREEN).order_by(TEAS.c.key)
SOME = sa.select(TEAS.c.key).where(TEAS.c.key.in_(["tea-1", "tea-3"])).order_by(TEAS.c.key)
COOL = TEAS.update().where(TEAS.c.leaf == Leaf.GREEN).values(hot=sa.bindparam("warm", type_=Flag))
DRUNK = TEAS.delete().where(TEAS.c.key == sa.bindparam("one")).returning(TEAS.c.key, TEAS.c.at)
COUNT = sa.select(sa.func.count()).select_from(TEAS)
LAST = sa.select(sa.func.max(TEAS.c.at))
NONE = GREEN.where(sa.false())
STREAMED = GREEN.execution_options(yield_per=1)
ADD = TEAS.insert().values(key=sa.bindparam("new"), leaf=Leaf.BLACK)

ASKED: list[Callable[[Connection], Any]] = [
    lambda c: c.execute(ALL).all(),
    lambda c: [(row.key, row.leaf, row.at, row.hot, row.cups, row.body) for row in c.execute(ALL)],
    lambda c: c.execute(ALL).first(),
    lambda c: [*map(dict, c.execute(ALL).mappings())],
    lambda c: c.execute(DUE, {"until": NOON + timedelta(minutes=3), "most": 2}).all(),
    lambda c: c.execute(DUE, {"until": NOON, "most": 2}).first(),
    lambda c: c.scalars(GREEN).all(),
    lambda c: [*c.scalars(GREEN)],
    lambda c: c.scalars(GREEN).first(),
    lambda c: c.scalars(SOME).all(),
    lambda c: c.scalar(LAST),
    lambda c: c.scalar(NONE),
    lambda c: c.scalars(COUNT).one(),
    lambda c: c.execute(STREAMED).all(),
    lambda c: c.execute(COOL, {"warm": False}).rowcount,
    lambda c: c.execute(DRUNK, {"one": "tea-4"}).all(),
    lambda c: c.scalars(DRUNK, {"one": "tea-4"}).all(),
    lambda c: c.execute(ADD, {"new": "tea-9"}).rowcount,
    lambda c: c.execute(TEAS.insert(), [{**ROWS[0], "key": "a"}, {**ROWS[1], "key": "b"}]).rowcount,
]


@pytest.fixture
def connection() -> Iterator[Connection]:
    engine = sa.create_engine("sqlite://", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        TEAS.create(connection)
        yield connection
    engine.dispose()


def answers(
    connection: Connection, asked: Callable[[Connection], Any], way: Connection
) -> list[Any]:
    """What comes three times, each time of the same rows: it is compiled at the second."""
    found = []
    for _ in range(3):
        connection.execute(TEAS.delete())
        connection.execute(TEAS.insert(), ROWS)
        found.append(asked(way))
    return found


@pytest.mark.parametrize("asked", ASKED)
def test_the_answer_is_the_one_that_sqlalchemy_gives(
    connection: Connection, asked: Callable[[Connection], Any]
) -> None:
    quick = cast("Connection", QuickConnection(connection))

    assert answers(connection, asked, quick) == answers(connection, asked, connection)


def test_a_statement_that_is_built_once_does_not_go_through_sqlalchemy(
    connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = QuickConnection(connection)
    connection.execute(TEAS.insert(), ROWS)
    quick.scalars(GREEN)
    monkeypatch.setattr(Connection, "_execute_clauseelement", None)

    assert quick.scalars(GREEN).all() == ["tea-1", "tea-3"]


def test_an_error_is_the_one_that_sqlalchemy_raises(connection: Connection) -> None:
    quick = QuickConnection(connection)
    quick.execute(ADD, {"new": "tea-9"})
    for _ in range(2):
        with pytest.raises(sa.exc.IntegrityError):
            quick.execute(ADD, {"new": "tea-9"})
    connection.execute(sa.schema.DropTable(TEAS))
    for _ in range(2):
        with pytest.raises(sa.exc.OperationalError):
            quick.execute(ADD, {"new": "tea-9"})


def test_a_parameter_that_is_missing_is_an_error(connection: Connection) -> None:
    quick = QuickConnection(connection)
    for _ in range(3):
        with pytest.raises(sa.exc.StatementError, match="until"):
            quick.execute(DUE, {"most": 1})
