"""A saga that no tool has a line for, run by the same commands: load, books, trace, rebuild."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from saga.deployment import FILE_NAME
from tests.command import saga
from tests.polling import DEADLINE_SECONDS

ROOT = Path(__file__).parents[2]
SAGA = "tests.moving:SAGA"
SEED, OPEN_SEED = 3, 99
STARTED_SECONDS = 240.0
"""A system runs by then, on a machine that is busy too."""


class Town:
    """A running system of movers in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def saga(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return saga(*arguments, "--data-dir", str(self.folder), SAGA=SAGA)

    def json(self, *arguments: str) -> dict[str, object]:
        done = self.saga(*arguments, "--json")
        found: dict[str, object] = json.loads(done.stdout)
        return found

    def rows(self, database: str, query: str) -> list[tuple[str, ...]]:
        with closing(sqlite3.connect(self.folder / database)) as connection:
            return connection.execute(query).fetchall()


def wait_for(what: str, condition: object, patience_seconds: float = DEADLINE_SECONDS) -> None:
    deadline = time.monotonic() + patience_seconds
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.2)


def is_dead(town: Town, move: str) -> bool:
    town.saga("dlq", "list")  # collects
    return (move,) in town.rows("dead_letters.db", "SELECT subject FROM letters")


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    environment = {**os.environ, "SAGA": SAGA, "PYTHONPATH": str(ROOT)}
    environment.pop("AMQP_URL", None)
    with subprocess.Popen(
        [sys.executable, "-m", "saga.cli", "up", "--no-console", "--data-dir", str(folder)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_for("the system", (folder / FILE_NAME).exists, STARTED_SECONDS)
            town = Town(folder)
            wait_for("all services", lambda: town.saga("status").returncode == 0, STARTED_SECONDS)
            yield town
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=60)


def test_a_load_ends_as_predicted_and_the_books_are_right(town: Town) -> None:
    done = town.saga("demo", "--sagas", "30", "--seed", str(SEED), "--json")

    document = json.loads(done.stdout)
    assert done.returncode == 0, document
    assert document["sagas"] == 30
    assert document["reconcile"]["not_covered"] == []
    assert {"moves", "vans", "crews", "rental_lines", "agency_lines"} <= {
        *document["reconcile"]["checked"]
    }


@pytest.mark.long
def test_the_same_load_again_begins_other_sagas(town: Town) -> None:
    moves = "SELECT count(*) FROM moves"
    ((before,),) = town.rows("move.db", moves)

    done = town.saga("demo", "--sagas", "5", "--seed", str(SEED), "--json")
    again = town.saga("demo", "--sagas", "5", "--seed", str(SEED), "--json")

    assert (done.returncode, again.returncode) == (0, 0), done.stdout + again.stdout
    ((after,),) = town.rows("move.db", moves)
    assert int(after) == int(before) + 10


@pytest.mark.parametrize(
    ("command", "option"),
    [("publish", "--rate"), ("publish", "--direct"), ("demo", "--no-outage")],
)
def test_an_option_of_orders_is_none_of_another_sagas(
    town: Town, command: str, option: str
) -> None:
    done = town.saga(command, option)

    assert done.returncode == 2
    assert f"No such option: {option}" in done.stderr


@pytest.mark.parametrize(
    ("planted", "line"),
    [
        ("TOO_FEW", "says of 1 subject how they end, and 5 sagas are to be begun"),
        ("SAME_AGAIN", "names the same subjects whatever it draws"),
    ],
)
def test_a_load_that_cannot_begin_as_many_sagas_is_refused(
    town: Town, planted: str, line: str
) -> None:
    named = f"tests.moving.planted:{planted}"
    arguments = ("publish", "--sagas", "5", "--data-dir", str(town.folder))
    saga(*arguments, SAGA=named)  # The names that are always the same are new at first.
    town.saga("demo", "--sagas", "1", "--seed", "5")  # They are known by its end.

    done = saga(*arguments, SAGA=named)

    assert done.returncode == 1
    assert line in " ".join(done.stderr.split())


def test_its_subjects_are_shown_traced_and_verified(town: Town) -> None:
    ((move,),) = town.rows("move.db", "SELECT move FROM moves WHERE stage = 'arranged' LIMIT 1")

    traced = town.saga("trace", move)
    assert traced.returncode == 0, traced.stderr
    for message in ("move.requested", "van.send", "move.arranged"):
        assert message in traced.stdout
    assert "move.has_" in traced.stdout, "the first leg of the join is in the trace"

    shown = town.saga("show", move)
    assert shown.returncode == 0, shown.stderr
    assert "arranged" in shown.stdout

    assert town.saga("history", "verify").returncode == 0
    stuck = town.saga("stuck")
    assert (stuck.returncode, stuck.stdout.strip()) == (0, "nothing is overdue")


@pytest.mark.parametrize(
    ("planted", "line"),
    [
        ("NO_INVARIANT", "not covered: no invariant reads Van of van"),
        ("BOOKS_UNREAD", "not covered: the books of rental cannot be read"),
    ],
)
def test_reconcile_does_not_say_fine_about_what_nothing_looks_at(
    town: Town, planted: str, line: str
) -> None:
    named = f"tests.moving.planted:{planted}"

    done = saga("reconcile", "--data-dir", str(town.folder), SAGA=named)

    assert done.returncode == 1
    assert line in done.stdout
    assert "the books are right" not in done.stdout


def test_who_asks_is_not_rebuilt_from_books_that_cannot_be_read(town: Town, tmp_path: Path) -> None:
    into = ("--into", f"sqlite:///{tmp_path / 'van.db'}")
    named = "tests.moving.planted:BOOKS_UNREAD"

    done = saga("history", "rebuild", "van", *into, "--data-dir", str(town.folder), SAGA=named)

    assert done.returncode != 0
    assert "van asks rental, whose books cannot be read" in done.stderr


def test_it_is_backed_up_with_the_books_of_both_outsides(town: Town, tmp_path: Path) -> None:
    backup = tmp_path / "backup"

    assert town.saga("backup", str(backup)).returncode == 0
    assert saga("backup", str(backup), "--check", SAGA=SAGA).returncode == 0
    assert {path.name for path in (backup / "outside").iterdir()} == {"rental.db", "agency.db"}


def test_who_asks_is_rebuilt_in_the_middle_of_its_question(town: Town, tmp_path: Path) -> None:
    mute = town.folder / "mute"
    mute.touch()
    try:
        assert town.saga("publish", "--sagas", "1", "--seed", str(OPEN_SEED)).returncode == 0
        asking = "SELECT move FROM vans WHERE phase IN ('asking', 'settling')"
        wait_for("the question", lambda: town.rows("van.db", asking))
        ((move,),) = town.rows("van.db", asking)
        copy = tmp_path / "van.db"

        done = town.saga("history", "rebuild", "van", "--into", f"sqlite:///{copy}", "--json")

        assert done.returncode == 0, done.stdout + done.stderr
        with closing(sqlite3.connect(copy)) as connection:
            rebuilt = dict(connection.execute("SELECT move, phase FROM vans").fetchall())
        assert rebuilt[move] == "asking", "nobody would give the van back"
        assert len(rebuilt) == len(town.rows("van.db", "SELECT move FROM vans"))

        # Once the tries are over it is dead, and a participant owes it.
        wait_for("a dead letter", lambda: is_dead(town, move))
        wait_for("stuck to tell", lambda: town.saga("stuck").returncode == 1)
        assert move in town.saga("stuck").stdout
    finally:
        mute.unlink()

    assert town.saga("dlq", "replay", "--reason", "the agencies answer again").returncode == 0
    wait_for("rest", lambda: town.saga("stuck").returncode == 0)
    wait_for("the books", lambda: town.saga("reconcile", "--grace", "0").returncode == 0)
