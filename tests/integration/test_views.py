"""Every command prints what others wrote harmlessly, as it is, and whole; and never a traceback.

The commands are those there are. A new one fails here until it is said how it is called.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from unittest import mock
from uuid import uuid4
from xml.etree import ElementTree

import pytest
from aio_pika import Message
from rich.cells import cell_len

from common.events import OrderLine, PlaceOrder
from inventory_service.domain import AddStock
from saga import reconcile as books
from saga.archive import store
from saga.auth.keys import changing, new_key
from saga.auth.settings import KEYS_FILE_NAME
from saga.cli import command_line, main
from saga.deployment import FILE_NAME, Deployment
from saga.discovery import choreography
from saga.history import rebuild, verify
from saga.past import against, onward
from saga.personal.opening import made_key, open_store
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging import stream
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import DEAD_EXCHANGE, apply, topology_of
from saga.runtime.settings import PersonalSettings, Sealing, load
from saga.runtime.streams import READER_GONE
from saga.text import harmless
from tests.books import Books
from tests.messages import message_of
from tests.order_play import PRICE_CENTS, Play
from tests.stores import HISTORY, PROJECTION

ROOT: Final = Path(__file__).parents[2]
NAMES: Final = ("[/b]ada", "[red]ada[/red]", ":smile:", "a\u202ed\x9ba\u200b", "\\[b]ada")
"""Of customers, as older events have them: all that no database refuses."""
WORSE: Final = "\x1b[2J\x07[/b]\u202e\u2066\r\n"
"""Of messages that are not ours; shown harmlessly as well."""


def leaves(command: Any, *path: str) -> Iterator[tuple[str, Any]]:
    """Each command, by its name and those above it."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield " ".join(path), command
        return
    for name, each in subcommands.items():
        yield from leaves(each, *path, name)


COMMANDS: Final = dict(leaves(command_line()))

WITH_SERVICES: Final = {"up", "address", "restart", "demo", "publish", "exporter", "console"}
"""They need services, and the end-to-end tests run them."""


@dataclass
class Scene:
    """A system without services, in which every kind of text was written."""

    folder: Path
    url: str
    orders: list[str] = field(default_factory=list)
    runs: int = 0

    def arguments(self, command: str) -> list[list[str]]:
        """Ways to call a command that print something."""
        self.runs += 1
        new = str(self.folder / f"new{self.runs}")
        if command == "schemas release":
            shutil.copytree(ROOT / "contracts", new)
        reason = ["--reason", "[red]why[/red]"]
        calls: dict[str, list[list[str]]] = {
            "status": [[]],
            "reconcile": [["--grace", "0"]],
            "backup": [[new]],
            "restore": [[str(self.folder / "copied"), "--data-dir", f"{new}.data"]],
            "forget": [["--status"], ["--resume"], ["--verify", NAMES[0]], ["--verify", "nobody"]],
            "trace": [[order] for order in self.orders],
            "future": [
                *([order] for order in self.orders),
                *([order, "--if", "order do order.cancel"] for order in self.orders[-1:]),
            ],
            "stuck": [[]],
            "show": [[order] for order in self.orders],
            "due": [[], ["--audit"], *([order] for order in self.orders)],
            "map": [[]],
            "check": [["--definitions", str(ROOT / "rabbitmq/definitions.json")]],
            "generate": [["--check", "--root", str(ROOT)]],
            "new": [["trips", "--folder", f"{new}-project"]],
            "migration": [["order", "nothing has changed"]],
            "verify": [["--simulate", "--seeds", "1"], ["--from-history"]],
            "recover broker": [["--dry-run"]],
            "keys create": [["[red]shop[/red]", "--role", "reader"]],
            "keys list": [[]],
            "keys revoke": [[self._key()]] if command == "keys revoke" else [[new]],
            "topology export": [[]],
            "persons list": [self._with_persons()] if command == "persons list" else [[]],
            "persons in-clear": [[]],
            "persons rotate-key": [[]],
            "topology apply": [["--amqp-url", self.url]],
            "topology diff": [["--amqp-url", self.url]],
            "schemas export": [[new]],
            "schemas check": [[str(ROOT / "contracts")]],
            "schemas release": [[new]],
            "dlq list": [["--by", by] for by in ("fingerprint", "letter", "type")],
            "dlq show": [[str(number)] for number in (1, len(NAMES) + 1)],
            "dlq replay": [["--dry-run"]],
            "dlq edit": [[str(self.runs % len(NAMES) + 1), "--set", "data.total_cents=500"]],
            "dlq discard": [["--type", "stock.reserved", *reason]],
            "dlq restore": [["--type", "stock.reserved", *reason]],
            "dlq purge": [["--older-than", "200d", *reason]],
            "dlq export": [["--state", "all"]],
            "dlq audit": [[]],
            "history rebuild": [["order", "--into", f"sqlite:///{new}.db"]],
            "history verify": [[]],
            "history export": [[f"{new}.jsonl"]],
            "history import": [[str(self.folder / "kept.jsonl"), "--into", f"sqlite:///{new}.db"]],
        }
        return calls[command]

    def _with_persons(self) -> list[str]:
        """No arguments, once there is a key store in which a person was forgotten."""
        made_key(self.folder)
        store = open_store(load(PersonalSettings, data_dir=self.folder))
        store.seal(NAMES[0])
        store.forget(str(store.person_of(NAMES[0])), "[red]asked to[/red]")
        store.close()
        return []

    def _key(self) -> str:
        """The id of a key that was just made."""
        _, key = new_key("[red]shop[/red]", ["*:read"], now=utc_now())
        with changing(self.folder / KEYS_FILE_NAME) as keys:
            keys.append(key)
        return key.id


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    status: int
    out: str
    err: str


def run(
    command: str,
    *arguments: str,
    folder: Path | None = None,
    encoding: str = "utf-8",
    reads: bool = True,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Done:
    """Run a command into a short pipe that does not block, as with `PYTHONUNBUFFERED=1`; who reads
    it may have left."""
    options = {name for each in COMMANDS[command].params for name in each.opts}
    needed = "--data-dir" in options and "--data-dir" not in arguments
    where = ["--data-dir", str(folder)] if folder is not None and needed else []
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4_096)
    came: list[bytes] = []

    def read() -> None:
        while found := os.read(read_end, 1_000):
            came.append(found)

    reading = threading.Thread(target=read, daemon=True)  # A failed test leaves it behind.
    if reads:
        reading.start()
    else:
        os.close(read_end)
    raw: Any = io.FileIO(write_end, "w", closefd=False)
    stdout = io.TextIOWrapper(raw, encoding=encoding, write_through=True)
    stderr = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    inherited = {name: value for name, value in os.environ.items() if name != "AMQP_URL"}
    with (
        mock.patch.object(sys, "argv", ["saga", *command.split(), *arguments, *where]),
        mock.patch.object(sys, "stdout", stdout),
        mock.patch.object(sys, "stderr", stderr),
        mock.patch.dict(os.environ, inherited | dict(environment), clear=True),
        pytest.raises(SystemExit) as end,
    ):
        main()
    os.close(write_end)
    if reads:
        reading.join()
        os.close(read_end)
    stderr.seek(0)
    status = end.value.code
    assert isinstance(status, int)
    return Done(status, b"".join(came).decode(encoding), stderr.read())


def modes(command: str) -> Iterator[list[str]]:
    """The command itself, and with each option that makes another document of what it prints."""
    yield []
    for parameter in COMMANDS[command].params:
        if "--format" in parameter.opts:
            formats = parameter.type_descriptor.annotation
            yield from (["--format", str(choice)] for choice in formats)
        elif "--json" in parameter.opts:
            yield ["--json"]


def check(done: Done, mode: Sequence[str] = ()) -> None:
    """Nothing that a terminal obeys; and a document that programs can read."""
    assert done.status in (0, 1), done.err
    for text in (done.out, done.err):
        assert "Traceback" not in text
        odd = {char for line in text.split("\n") for char in line if not char.isprintable()}
        assert not odd, text
    if mode and mode[-1] in ("--json", "json"):
        lines = done.out.splitlines() if done.out.startswith('{"') else [done.out]
        assert [json.loads(line) for line in lines]
    elif mode and mode[-1] == "svg":
        ElementTree.fromstring(done.out)  # noqa: S314


# --- a system to look at --------------------------------------------------------------------------


async def _set_up(scene: Scene) -> None:
    play = Play(at=utc_now() - timedelta(hours=1), tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"),
    )
    scene.orders += [_place(play, name) for name in NAMES[:2]]
    play.deliver()
    play.provider_down = True
    scene.orders += [_place(play, name) for name in NAMES]
    play.deliver()
    books = Books(scene.folder, play)
    await books.write()
    database = await open_database(books.url("history"), HISTORY)
    stray = store.Stray("key", WORSE[:1] + "key", "malformed", WORSE, WORSE.encode(), 7)
    await database.transaction(lambda c: store.append(c, [stray], play.at, PROJECTION))
    await database.close()
    known = {"api_keys_file": Path(KEYS_FILE_NAME)}
    books.deployment(scene.url).model_copy(update=known).save(scene.folder)
    with sqlite3.connect(scene.folder / "order.db") as orders:
        orders.execute("UPDATE orders SET customer = customer || ' [/i]'")
    async with await connect(scene.url, name="test") as connection:
        channel = await connection.channel()
        await apply(topology_of(choreography()), channel)
        dead = await channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        letters = [message_of(delivery.event.to_bytes()) for delivery in play.failed]
        letters.append(Message(json.dumps({"type": WORSE, "id": WORSE}).encode(), type="[/b]"))
        for letter in letters:
            letter.headers |= {
                "x-saga-reason": "failed",
                "x-saga-error-type": "[/b]Error",
                "x-saga-error": f"no answer {WORSE}",
                f"odd {WORSE}": WORSE,
            }
            await dead.publish(letter, "payment")


def _place(play: Play, customer: str) -> str:
    """An order from before such names were refused."""
    line = OrderLine(sku="tea", quantity=2, unit_price_cents=PRICE_CENTS)
    order = PlaceOrder(order_id=uuid4(), customer="ada", currency="EUR", lines=(line,))
    play.give("order", order.model_copy(update={"customer": customer}))
    return str(order.order_id)


@pytest.fixture(scope="module")
def scene(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    with virtual_host() as url:
        made = Scene(tmp_path_factory.mktemp("scene"), url)
        asyncio.run(_set_up(made))
        kept = run("history export", str(made.folder / "kept.jsonl"), folder=made.folder)
        assert kept.status == 0, kept.err
        copied = run("backup", str(made.folder / "copied"), folder=made.folder)
        assert copied.status == 0, copied.err
        yield made


# --- the views ------------------------------------------------------------------------------------

SLOW: Final = {"history rebuild", "history verify", "new", "reconcile", "verify"}
"""They read or write much, and print as the others do."""
SHOWING_CUSTOMERS: Final = {"show", "trace", "future", "history verify", "dlq show"}


def _wait_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing moves in this system, so what is waited for will not come."""
    for defaults in (books.reconcile.__kwdefaults__, verify.verify.__kwdefaults__):
        monkeypatch.setitem(defaults or {}, "settle_seconds", 0.0)
    for module in (verify, rebuild):
        monkeypatch.setattr(module, "CATCH_UP_SECONDS", 0.1)
    for name in ("END_SECONDS", "STALL_SECONDS"):
        monkeypatch.setattr(stream, name, 0.1)
    monkeypatch.setattr(against, "CATCH_UP_SECONDS", 0.1)
    monkeypatch.setattr(onward, "SCENARIO_STATES_MAX", 500)


def test_it_is_known_how_every_command_is_called(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "amqp://nowhere/")

    assert [name for name in COMMANDS if name not in WITH_SERVICES and scene.arguments(name)]


@pytest.mark.parametrize("command", [name for name in COMMANDS if name not in WITH_SERVICES])
def test_a_command_prints_what_others_wrote_harmlessly_and_whole(
    command: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wait_for_nobody(monkeypatch)
    printed = ""
    for mode in modes(command):
        for arguments in scene.arguments(command)[-2 if mode else 0 :]:
            done = run(command, *arguments, *mode, folder=scene.folder)
            check(done, mode)
            if not mode:
                printed += done.out
    if command in SHOWING_CUSTOMERS:
        found = [name for name in NAMES if harmless(name) in printed]
        assert len(found) >= (1 if command == "dlq show" else len(NAMES))
    if command in ("stuck", "dlq list"):
        assert all(order in printed for order in scene.orders[len(NAMES[:2]) :])

    if command in SLOW:
        return
    # On a terminal that knows ASCII only, or is narrow; and into a program that has left.
    ascii_only = run(command, *scene.arguments(command)[0], folder=scene.folder, encoding="ascii")
    check(ascii_only)
    terminal = {"TTY_COMPATIBLE": "1", "TERM": "xterm", "COLUMNS": "80"}
    narrow = run(command, *scene.arguments(command)[0], folder=scene.folder, environment=terminal)
    shown = re.sub(r"\x1b\[[\d;]*m", "", narrow.out)
    drawn = [line for line in shown.split("\n") if {*line} & {*"│┃┼"}]
    assert all(cell_len(line) <= 80 for line in drawn)
    assert all(order in shown for order in scene.orders if order in ascii_only.out)
    left = run(command, *scene.arguments(command)[0], folder=scene.folder, reads=False)
    assert left.status == (READER_GONE if printed else 0), left.err


# --- whom messages name ---------------------------------------------------------------------------

COPYING: Final = {"history export", "history import", "dlq export", "backup", "restore"}
"""They hand on what there is, byte for byte, to who may read the databases."""
NAMING_SOMEBODY: Final = {"forget"}
"""Whom they were asked about."""
READING_NOTHING: Final = {"new"}
"""They take seconds, and know of no system."""


@contextmanager
def with_deployment(folder: Path, **changes: object) -> Iterator[None]:
    """As if `saga up` had written this of the system."""
    before = Deployment.load(folder)
    before.model_copy(update=changes).save(folder)
    try:
        yield
    finally:
        before.save(folder)


SYSTEMS: Final[Mapping[str, Mapping[str, object]]] = {
    "sealed": {"personal": Sealing.SEALED},
    "on": {"callers_known": True},
    "not told": {"callers_known": None},
}
"""Those that show no names, by what the shell in which commands are typed knows nothing of."""


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize(
    "command",
    [
        pytest.param(name, marks=pytest.mark.long if name in READING_NOTHING else ())
        for name in COMMANDS
        if name not in WITH_SERVICES | COPYING | NAMING_SOMEBODY
    ],
)
def test_a_command_shows_old_names_where_the_system_does_only(
    command: str, system: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    if system != "sealed" and (command in SLOW or command not in SHOWING_CUSTOMERS):
        return  # The same decision, which the others show.
    with with_deployment(scene.folder, **SYSTEMS[system]):
        assert_names_are_hidden(command, system, scene, monkeypatch)


def assert_names_are_hidden(
    command: str, system: str, scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wait_for_nobody(monkeypatch)
    printed = ""
    for mode in modes(command):
        for arguments in scene.arguments(command)[-2:]:
            done = run(command, *arguments, *mode, folder=scene.folder)
            check(done, mode)
            printed += done.out + done.err
    # As they stand in a text, in JSON, and as Python quotes them.
    forms = {form for name in NAMES for form in (harmless(name), json.dumps(name)[1:-1], name)}
    assert [form for form in forms if form in printed] == []

    if command in SHOWING_CUSTOMERS:
        shown = run(
            command,
            *scene.arguments(command)[0],
            folder=scene.folder,
            environment={"PERSONAL_SHOWN": "clear"},
        )
        assert [name for name in NAMES if harmless(name) in shown.out]
        told = [line for line in printed.splitlines() if "PERSONAL_SHOWN=clear shows them" in line]
        assert bool(told) == (system == "not told")


# --- what is not UTF-8 ----------------------------------------------------------------------------

NOT_UTF_8: Final = b"caf\xe9".decode(errors="surrogateescape")


@pytest.mark.parametrize("command", COMMANDS)
def test_an_argument_that_is_not_utf_8_is_named_in_one_line(command: str) -> None:
    done = run(command, NOT_UTF_8)

    assert (done.status, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert "argument" in line
    assert "is not UTF-8" in line


def test_a_variable_that_is_not_utf_8_is_named_in_one_line() -> None:
    variables = {
        parameter.envvar
        for command in COMMANDS.values()
        for parameter in command.params
        if parameter.envvar
    }
    for name in variables - {"AMQP_URL"}:
        done = run("status", environment={name: NOT_UTF_8})
        assert done.status == 2
        assert done.err == f"error: the variable {name} is not UTF-8; write it in UTF-8\n"
    assert {"AMQP_URL", "DATA_DIR"} <= variables


UNREADABLE: Final = itertools.cycle(
    [b'{"amqp_url": "\xff"}', b"[]", b'{"amqp_url": ["amqp://order:hush@broker/"]}', b'{"a":']
)


_WHY: Final = ("--reason", "why")
NOT_THERE: Final[dict[str, list[str]]] = {
    "trace": ["nobody"],
    "future": ["nobody"],
    "show": ["nobody"],
    "due": ["nobody", "--bring-forward", *_WHY],
    "forget": ["nobody", "--yes", *_WHY],
    "address": ["nobody"],
    "restart": ["nobody"],
    "keys revoke": ["nobody"],
    "dlq show": ["nobody"],
    "dlq edit": ["nobody", "--set", "data.total_cents=500"],
    "dlq replay": ["nobody"],
    "dlq discard": ["nobody", *_WHY],
    "dlq restore": ["nobody", *_WHY],
}
"""How each command is called about something that was never seen."""
NAMING_NOTHING_KEPT: Final = {
    **dict.fromkeys(("new", "keys create"), "what it names is made"),
    **dict.fromkeys(("migration", "history rebuild"), "of a fixed list: another name is wrong"),
}
"""Other commands that take a name, and why it cannot be one that is merely not there."""


def test_it_is_known_which_commands_may_be_asked_about_what_is_not_there() -> None:
    takes_names = {
        command
        for command, described in COMMANDS.items()
        for parameter in described.params
        if parameter.param_type_name == "argument"
        and "Path" not in str(parameter.type_descriptor.annotation)
    }
    assert takes_names == NOT_THERE.keys() | NAMING_NOTHING_KEPT.keys()


@pytest.mark.parametrize("command", NOT_THERE)
def test_what_was_never_seen_is_a_failure_and_no_wrong_usage(command: str, scene: Scene) -> None:
    made_key(scene.folder)

    done = run(command, *NOT_THERE[command], folder=scene.folder)

    assert done.status == 1, done.err
    assert done.out == ""
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_that_there_is_not_is_wrong_usage(command: str, tmp_path: Path) -> None:
    done = run(command, "--nonsense", folder=tmp_path)

    assert (done.status, done.out) == (2, "")
    assert "--nonsense" in done.err


def test_a_system_whose_description_cannot_be_read_is_named_in_one_line(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "amqp://127.0.0.1:1/", [str(uuid4())])
    need_none = {"up", "restart", "demo", "check", "topology apply", "topology diff"}
    need_none |= {"history import", "restore", "verify", "keys create", "keys list", "keys revoke"}
    for command, described in COMMANDS.items():
        options = {name for parameter in described.params for name in parameter.opts}
        if "--data-dir" in options and command not in need_none:
            (tmp_path / FILE_NAME).write_bytes(next(UNREADABLE))
            # What `forget --status` shows stands in a file of its own.
            which = 2 if command == "forget" else 0
            if command in WITH_SERVICES:
                arguments = ["order"] if command == "address" else []
            else:
                arguments = scene.arguments(command)[which]
            done = run(command, *arguments, folder=tmp_path)
            assert done.status in (1, 2), command
            (line,) = done.err.splitlines()
            assert FILE_NAME in line, command
            assert "hush" not in line


# --- what is secret -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_no_help_and_no_refusal_shows_a_password_of_the_environment(
    command: str, tmp_path: Path
) -> None:
    secrets = {
        "AMQP_URL": "amqp://order:12/hush@127.0.0.1:1/",
        "MANAGEMENT_URL": "http://order:12/hush@127.0.0.1:1/",
        "DATA_DIR": str(tmp_path / "nowhere"),
    }
    for argument in ("--help", "--nonsense"):
        done = run(command, argument, environment=secrets)
        assert done.status == (0 if argument == "--help" else 2)
        assert "hush" not in done.out + done.err
        assert "Traceback" not in done.err
