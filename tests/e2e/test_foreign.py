"""A participant in another language takes part: a program for Node, with the rights of its own user
on the broker and with nothing else of this project."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

import aio_pika
import pytest

from saga.deployment import FILE_NAME, Deployment
from saga.envelope import derived_id
from saga.local.supervision import Supervision
from tests.command import saga
from tests.polling import wait_until

ROOT = Path(__file__).parents[2]
SAGA = "tests.parcels:SAGA"
PROGRAM = ROOT / "tests" / "parcels" / "label"
INSTALL_SECONDS = 120.0

SENT = Counter(["parcel.packed", "label.printed", "parcel.posted"])
"""What is in the history of a parcel that went the usual way."""
SEEDS = {"usual": 1, "before-commit": 3, "after-commit": 6, "jam": 7, "lost": 8}
"""Each of a load of one parcel that is not too heavy."""
HEAVY_SEED = 5


@pytest.fixture(scope="module")
def program(pytestconfig: pytest.Config) -> Path:
    """The printer's program, with the packages that it needs: kept between runs."""
    if missing := [name for name in ("node", "npm") if shutil.which(name) is None]:
        pytest.skip(f"{' and '.join(missing)} not installed here: nothing runs a program for Node")
    assert pytestconfig.cache is not None
    wanted = hashlib.sha256((PROGRAM / "package.json").read_bytes()).hexdigest()[:12]
    folder = pytestconfig.cache.mkdir(f"parcels-label-{wanted}")
    for file in PROGRAM.iterdir():
        shutil.copy(file, folder)
    if not all((folder / "node_modules" / name).is_dir() for name in ("amqplib", "cloudevents")):
        done = subprocess.run(
            ["npm", "install", "--no-package-lock", "--no-fund", "--no-audit"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"npm cannot install amqplib and cloudevents here: {done.stderr[-500:]}")
    return folder / "main.mjs"


class Printer:
    """The program, started and killed as a test needs it."""

    def __init__(self, program: Path, folder: Path, amqp_url: str) -> None:
        self.journal = folder / "label.journal"
        self.log = folder / "label.log"
        self._program = program
        self._amqp_url = amqp_url
        self._process: subprocess.Popen[bytes] | None = None
        self._out: IO[bytes] = self.log.open("ab")

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["node", str(self._program)],
            env={
                "PATH": os.environ["PATH"],
                "AMQP_URL": self._amqp_url,
                "DATA_DIR": str(self.journal.parent),
            },
            stdout=self._out,
            stderr=self._out,
        )

    def kill(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def switch(self, name: str, *, on: bool) -> None:
        """Make a file beside its journal, or remove it."""
        file = self._beside(name)
        if on:
            file.touch()
        else:
            file.unlink(missing_ok=True)

    def held(self, place: str) -> bool:
        return self._beside(f"hold-{place}.held").exists()

    def committed(self, parcel: str | None = None) -> list[dict[str, Any]]:
        """The events about a parcel that it has committed, or all."""
        entries = map(json.loads, self.journal.read_text().splitlines())
        events = (event for entry in entries for event in entry.get("out", ()))
        return [event for event in events if parcel in (None, event["subject"])]

    def close(self) -> None:
        self.kill()
        self._out.close()

    def _beside(self, name: str) -> Path:
        return self.journal.with_name(f"{self.journal.name}.{name}")


async def put(queue: str, body: bytes, *, url: str) -> None:
    """Put a message into a queue."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.default_exchange.publish(aio_pika.Message(body), queue)


async def purge(queue: str, *, url: str) -> None:
    """Purge a queue."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await (await channel.get_queue(queue)).purge()


class Town:
    """A running system of a shop and its printer, in a folder."""

    def __init__(self, folder: Path, printer: Printer) -> None:
        self.folder = folder
        self.printer = printer
        self._known: set[str] = set()

    def saga(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return saga(*arguments, "--data-dir", str(self.folder), SAGA=SAGA)

    def json(self, *arguments: str) -> Any:
        return json.loads(self.saga(*arguments, "--json").stdout)

    def send(self, seed: int) -> str:
        """Send one parcel; returns its name."""
        done = self.saga("publish", "--sagas", "1", "--seed", str(seed))
        assert done.returncode == 0, done.stderr
        wait_until(lambda: bool(self.new_parcels()))
        (parcel,) = self.new_parcels()
        self._known.add(parcel)
        return parcel

    def new_parcels(self) -> set[str]:
        return {*self.stages()} - self._known

    def stages(self) -> dict[str, str]:
        with closing(sqlite3.connect(self.folder / "shop.db")) as connection:
            return dict(connection.execute("SELECT parcel, stage FROM parcels").fetchall())

    def dead(self) -> dict[str, dict[str, Any]]:
        """The dead letters that there are, by the parcel that they are about."""
        return {
            letter["subject"]: letter
            for letter in self.json("dlq", "list", "--by", "letter")["list"]
        }

    def traced(self, parcel: str) -> Counter[str]:
        """How often each type of message is in the history of a parcel."""
        return Counter(event["type"] for event in self.events(parcel))

    def events(self, parcel: str) -> list[dict[str, Any]]:
        """What the history has of a parcel, in order."""
        done = self.saga("trace", parcel, "--format", "json")
        assert done.returncode == 0, done.stderr
        found: list[dict[str, Any]] = json.loads(done.stdout)["events"]
        return found


@contextmanager
def running(folder: Path, named: str = SAGA, **more: str) -> Iterator[None]:
    """A `saga up` that has just begun."""
    environment = {**os.environ, "SAGA": named, "PYTHONPATH": str(ROOT), **more}
    environment.pop("AMQP_URL", None)
    with subprocess.Popen(
        [sys.executable, "-m", "saga.cli", "up", "--no-console", "--data-dir", str(folder)],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            wait_until(lambda: (folder / FILE_NAME).exists() or process.poll() is not None)
            assert process.poll() is None, process.communicate()[1]
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory, program: Path) -> Iterator[Town]:
    folder = tmp_path_factory.mktemp("town")
    with running(folder):
        printer = Printer(program, folder, Deployment.load(folder).amqp_urls["label"])
        try:
            printer.start()
            town = Town(folder, printer)
            wait_until(lambda: town.saga("status").returncode == 0)
            yield town
        finally:
            printer.close()


def test_it_takes_part_and_all_of_it_is_in_the_trace(town: Town) -> None:
    parcel = town.send(SEEDS["usual"])

    wait_until(lambda: town.stages()[parcel] == "sent")
    wait_until(lambda: town.traced(parcel) == SENT)
    shown = town.saga("trace", parcel).stdout
    assert "no participant owes anything" in shown
    assert "label.printed" in shown
    packed, printed, _ = town.events(parcel)
    assert printed["causation_id"] == packed["id"]
    assert printed["id"] == derived_id(packed["id"], "label.print_label.label.printed")


def test_a_command_reaches_it_and_what_it_refused_is_kept_by_the_shop(town: Town) -> None:
    parcel = town.send(HEAVY_SEED)

    wait_until(
        lambda: (
            town.traced(parcel)
            == Counter(
                ["parcel.packed", "label.refused", "parcel.kept", "label.void", "label.voided"]
            )
        )
    )
    assert town.stages()[parcel] == "kept"


@pytest.mark.parametrize(
    ("place", "committed"),
    [("before-commit", 0), ("after-commit", 1)],
)
def test_killed_in_the_middle_of_a_delivery_it_handles_each_message_once(
    town: Town, place: str, committed: int
) -> None:
    printer = town.printer
    printer.switch(f"hold-{place}", on=True)
    parcel = town.send(SEEDS[place])
    wait_until(lambda: printer.held(place))
    printer.kill()
    assert len(printer.committed(parcel)) == committed
    assert town.traced(parcel) == Counter(["parcel.packed"])

    printer.switch(f"hold-{place}", on=False)
    printer.start()

    wait_until(lambda: town.traced(parcel) == SENT)
    assert [event["type"] for event in printer.committed(parcel)] == ["label.printed"]


def test_what_fails_again_and_again_is_dead_and_replayed_to_it(town: Town) -> None:
    town.printer.switch("jam", on=True)
    parcel = town.send(SEEDS["jam"])
    wait_until(lambda: parcel in town.dead())
    letter = town.dead()[parcel]
    assert letter["service"] == "label"
    assert letter["queue"] in ("label.high", "label.normal")
    assert (letter["reason"], letter["error_type"], letter["attempts"]) == (
        "failed",
        "PrinterJam",
        2,
    )

    town.printer.switch("jam", on=False)
    done = town.saga("dlq", "replay", "--reason", "there is paper again")

    assert done.returncode == 0, done.stderr
    wait_until(lambda: town.traced(parcel) == SENT)
    assert town.dead() == {}


def test_what_it_cannot_read_the_broker_sets_aside_for_it(town: Town) -> None:
    asyncio.run(put("label.normal", b"no label", url=Deployment.load(town.folder).amqp_url))
    wait_until(lambda: bool(town.json("dlq", "list", "--by", "letter").get("list")))

    (letter,) = town.json("dlq", "list", "--by", "letter")["list"]

    assert (letter["service"], letter["queue"]) == ("label", "label.normal")
    assert letter["reason"] == "rejected"
    done = town.saga("dlq", "discard", str(letter["letter"]), "--reason", "it is no message")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments", [("reconcile", "--grace", "0"), ("history", "verify"), ("recover", "broker")]
)
def test_what_reads_databases_says_that_it_does_not_read_this_one(
    town: Town, arguments: tuple[str, ...]
) -> None:
    done = town.saga(*arguments)

    assert done.returncode == 0, done.stdout + done.stderr
    told = " ".join((done.stdout + done.stderr).split())
    assert "label is in another language: its database cannot be read here" in told


def test_a_backup_is_of_the_others_and_says_so(town: Town, tmp_path: Path) -> None:
    done = town.saga("backup", str(tmp_path / "backup"), "--json")

    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document["databases"]) == {"shop", "history"}
    assert document["unread"] == ["label is in another language: its database cannot be read here"]


def test_its_database_is_not_made_again_here(town: Town, tmp_path: Path) -> None:
    into = f"sqlite:///{tmp_path / 'label.db'}"

    done = town.saga("history", "rebuild", "label", "--into", into)

    assert done.returncode != 0
    assert "label is in another language" in " ".join(done.stderr.split())


def test_what_a_lost_broker_held_is_put_back_and_handled_once(town: Town) -> None:
    printer = town.printer
    printer.kill()
    parcel = town.send(SEEDS["lost"])
    wait_until(lambda: town.traced(parcel) == Counter(["parcel.packed"]))
    for queue in ("label.high", "label.normal"):
        asyncio.run(purge(queue, url=Deployment.load(town.folder).amqp_url))

    done = town.saga("recover", "broker")
    printer.start()

    assert done.returncode == 0, done.stderr
    wait_until(lambda: town.traced(parcel) == SENT)
    wait_until(lambda: town.saga("status").returncode == 0)
    events = [event["id"] for event in printer.committed()]
    assert len(events) == len({*events})


@pytest.mark.long
def test_with_a_command_it_is_started_brought_back_and_restarted_like_a_service(
    program: Path, tmp_path: Path
) -> None:
    def pid() -> int | None:
        found = Supervision.load(tmp_path)
        return found.services["label"].pid if found else None

    with running(tmp_path, "tests.parcels.started:SAGA", LABEL_PROGRAM=str(program)):
        wait_until(lambda: pid() is not None)
        first = pid()
        assert saga("status", "--data-dir", str(tmp_path), SAGA=SAGA).returncode == 0
        assert {*Deployment.load(tmp_path).database_urls} == {"shop", "history"}

        assert first is not None
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: pid() not in (None, first))
        second = pid()
        done = saga("restart", "label", "--data-dir", str(tmp_path), SAGA=SAGA)

        assert done.returncode == 0, done.stderr
        assert pid() not in (None, first, second)
        demo = saga("demo", "--sagas", "20", "--data-dir", str(tmp_path), "--json", SAGA=SAGA)
        assert demo.returncode == 0, demo.stdout


def test_a_command_that_is_none_is_named(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saga.cli", "up", "--data-dir", str(tmp_path)],
        env={
            **{name: value for name, value in os.environ.items() if name != "AMQP_URL"},
            "SAGA": "tests.parcels.started:LOST",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

    assert done.returncode != 0
    assert "cannot start label by 'no-such-program'" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
