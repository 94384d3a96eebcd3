"""The command `saga`, and the services' own processes, as a user at a terminal meets them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import resource
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
import yarl

from saga.broker.setup import NODE_FOLDER, USERS_FILE
from saga.deployment import FILE_NAME, Deployment
from saga.discovery import choreography, services
from saga.generate.monitoring import OURS
from saga.local.node import RabbitNode
from saga.local.system import System
from saga.runtime.messaging.connection import connect
from tests import forked
from tests.command import saga
from tests.faults.proxy import Proxy
from tests.polling import until
from tests.processes import processes_of

SAGA = (sys.executable, "-m", "saga.cli")
RUN_SECONDS = 100.0


def process(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `saga` to its end; AMQP_URL and DATA_DIR are only what the test gives."""
    return subprocess.run(
        [*SAGA, *arguments],
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


@contextlib.contextmanager
def background(*arguments: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A `saga` that runs beside the test, which has to end it; killed if the test fails."""
    with subprocess.Popen(
        [*SAGA, *arguments],
        env=_environment(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def service(package: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a service that cannot start."""
    return forked.run(f"{package}.app", environment=_environment(_AT_A_TERMINAL | environment))


_AT_A_TERMINAL = {"BROKER_PATIENCE_SECONDS": "0", "LOG_FORMAT": "text"}


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    mine = {key: value for key, value in os.environ.items() if key not in ("AMQP_URL", "DATA_DIR")}
    return {**mine, **more}


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """It failed with one error line that says all these words."""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]

    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert len(errors) == 1, done.stderr
    assert done.stderr.splitlines()[-1] == errors[0]
    for word in words:
        assert word in errors[0]


@pytest.fixture
def taken_port() -> Iterator[int]:
    """A loopback port on which another process listens, without ever answering."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A folder that no user can make, not even root."""
    (tmp_path / "file").touch()
    return tmp_path / "file" / "data"


def test_the_version_is_told_with_that_of_python() -> None:
    done = saga("--version")

    assert done.returncode == 0
    assert re.fullmatch(r"saga \d+\.\d+\.\d+ \(Python 3\.\d+\.\d+\)\n", done.stdout)


# --- saga demo ------------------------------------------------------------------------------------


_SERVING = ("fastapi", "faststream", "uvicorn", "opentelemetry", "prometheus_client", "jinja2")


@pytest.mark.parametrize(
    ("command", "unneeded"),
    [
        ("--help", ("sqlalchemy", "alembic", *_SERVING)),
        ("map", ("alembic", *_SERVING)),  # `check` runs the migrations.
        ("stuck", ("alembic", *_SERVING)),
    ],
)
def test_a_command_loads_no_more_than_it_needs(
    command: str, unneeded: tuple[str, ...], tmp_path: Path
) -> None:
    """Python's imports are most of the time that a short command takes."""
    Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={}).save(tmp_path)
    program = (
        "import sys; from saga.cli import main\n"
        "try: main()\n"
        f"finally: print([name for name in {unneeded!r} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, command],
        env=_environment({"DATA_DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines()[-1:] == ["[]"], done.stdout + done.stderr


def test_a_demo_ends_as_its_seed_predicts_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = process("demo", "--orders", "60", "--seed", "7", "--json", "--data-dir", str(tmp_path))

    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["orders"] == 60
    assert result["unexpected"] == []
    assert result["reconcile"]["ok"] is True
    assert result["reconcile"]["violations"] == []
    cancelled = result["outcomes"]["cancelled"]
    assert result["outcomes"]["confirmed"] + sum(cancelled.values()) == 60
    assert cancelled["out_of_stock"] == 3
    assert cancelled["price_mismatch"] + cancelled["unknown_sku"] == 3
    assert cancelled["payment_declined"] == 3
    assert cancelled["customer_request"] + result["cancelled_too_late"] == 1
    assert cancelled["deadline_exceeded"] == 0
    assert result["dead_letters"] == result["malformed"] == 1
    for priority in ("high", "normal"):
        latency = result["latency_ms"][priority]
        assert 0 < latency["p50"] <= latency["p99"]
    assert result["orders_per_second"] > 0
    assert processes_of(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


SLOWLY = ("--orders", "5000", "--rate", "20")
"""A load that is not over before it is interrupted."""


# On a broker that is there: that a private one dies with its owner, too, the node's test tells.


async def test_a_demo_that_is_interrupted_leaves_no_process_behind(
    tmp_path: Path, amqp_url: str
) -> None:
    here = {"AMQP_URL": amqp_url, "DATA_DIR": str(tmp_path)}
    with background("demo", *SLOWLY, **here) as demo:
        await until(lambda: (tmp_path / FILE_NAME).exists())
        demo.send_signal(signal.SIGINT)
        _, said = demo.communicate(timeout=RUN_SECONDS)

    assert demo.returncode == 128 + signal.SIGINT
    assert "Traceback" not in said
    assert processes_of(tmp_path) == []


async def test_a_killed_demo_takes_its_processes_with_it(tmp_path: Path, amqp_url: str) -> None:
    here = {"AMQP_URL": amqp_url, "DATA_DIR": str(tmp_path)}
    with background("demo", *SLOWLY, **here) as demo:
        await until(lambda: (tmp_path / FILE_NAME).exists())
        demo.kill()

    await until(lambda: processes_of(tmp_path) == [])


@pytest.mark.long
async def test_a_demo_heals_a_service_that_is_killed_under_load(tmp_path: Path) -> None:
    load = ("--orders", "400", "--rate", "150", "--seed", "2", "--json")
    with background("demo", *load, DATA_DIR=str(tmp_path)) as demo:
        await until(lambda: any(tmp_path.glob(f"demo-*/{FILE_NAME}")))
        os.kill(_pid_of(tmp_path, "inventory_service.app"), signal.SIGKILL)
        printed, said = demo.communicate(timeout=RUN_SECONDS)

    result = json.loads(printed)
    assert demo.returncode == 0, said
    assert "the inventory service has ended (killed by SIGKILL)" in said
    assert result["unexpected"] == []
    assert result["reconcile"]["ok"] is True
    assert processes_of(tmp_path) == []


def _pid_of(folder: Path, module: str) -> int:
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                environment = (process / "environ").read_bytes()
            except OSError:
                continue
            if module.encode() in command and str(folder).encode() in environment:
                return int(process.name)
    raise AssertionError(f"no process runs {module} on {folder}")


# --- saga up, and the commands beside it ----------------------------------------------------------


@pytest.mark.long
async def test_a_running_system_is_loaded_watched_and_checked_from_beside(tmp_path: Path) -> None:
    here = {"DATA_DIR": str(tmp_path)}
    with background("up", "--observe", **here) as up:
        await until(lambda: (tmp_path / FILE_NAME).exists())

        calm = process("status", "--json", **here)
        assert calm.returncode == 0, calm.stdout
        assert json.loads(calm.stdout)["problems"] == []

        # Twice the same seed: on one system these are different orders.
        load = ("--orders", "40", "--seed", "7", "--json")
        first = process("publish", *load, "--malformed", "0", **here)
        second = process("publish", *load, "--malformed", "0", "--direct", **here)
        for sent in (first, second):
            assert sent.returncode == 0, sent.stderr
        ids = [set(json.loads(sent.stdout)["order_ids"]) for sent in (first, second)]
        assert len(ids[0] | ids[1]) == 80

        def ended() -> bool:
            return bool(
                json.loads(process("status", "--json", **here).stdout)["orders"]["pending"] == 0
            )

        await until(ended)
        books = process("reconcile", "--grace", "0", "--json", **here)
        assert books.returncode == 0, books.stdout
        assert json.loads(books.stdout)["checked"]["orders"] == 80
        assert "the books are right" in process("reconcile", **here).stdout

        seen_through = process("demo", *load, **here)
        assert seen_through.returncode == 0, seen_through.stderr
        assert "using the system that runs" in seen_through.stderr
        assert json.loads(seen_through.stdout)["orders"] == 40

        spoiled = process("publish", "--orders", "1", "--malformed", "1", "--json", **here)
        assert spoiled.returncode == 0, spoiled.stderr
        await until(lambda: process("status", **here).returncode == 1)
        wrong = json.loads(process("status", "--json", **here).stdout)
        assert [p for p in wrong["problems"] if "1 dead letter in inventory.dlq" in p]

        assert any("bin/prometheus" in process for process in processes_of(tmp_path))
        assert any("saga.cli console" in process for process in processes_of(tmp_path))
        up.send_signal(signal.SIGTERM)
        printed, said = up.communicate(timeout=RUN_SECONDS)

    assert up.returncode == 0, said
    assert "/docs" in printed
    assert "prometheus" in printed
    assert "guest:guest" not in printed
    assert processes_of(tmp_path) == []
    assert not (tmp_path / FILE_NAME).exists()
    assert_one_line(process("status", **here), "saga up", "--data-dir")


@pytest.mark.long
def test_a_demo_can_use_a_broker_that_is_not_its_own_again_and_again(
    tmp_path: Path, amqp_url: str
) -> None:
    here = {"AMQP_URL": amqp_url, "DATA_DIR": str(tmp_path / "here")}
    for _ in range(2):
        done = process("demo", "--orders", "20", "--malformed", "0.1", "--json", **here)
        assert done.returncode == 0, done.stdout + done.stderr
        assert json.loads(done.stdout)["dead_letters"] == 2
    assert processes_of(tmp_path) == []

    elsewhere = process("demo", AMQP_URL=amqp_url, DATA_DIR=str(tmp_path / "elsewhere"))
    assert_one_line(elsewhere, "databases are not in", "--data-dir")
    private = process("up", DATA_DIR=str(tmp_path / "here"))
    assert_one_line(private, "belongs to another broker")


def test_the_topology_is_exported_as_it_is_in_the_repository(tmp_path: Path) -> None:
    exported = tmp_path / "definitions.json"

    assert process("topology", "export", str(exported)).returncode == 0
    assert saga("topology", "export").stdout == exported.read_text()


def test_the_topology_is_applied_as_often_as_one_likes(amqp_url: str) -> None:
    for _ in range(2):
        done = saga("topology", "apply", "--json", AMQP_URL=amqp_url)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["queues"] > 0


async def test_the_topology_is_applied_to_a_broker_that_starts_at_the_same_time(
    amqp_url: str, closed_port: int
) -> None:
    attempts = 0

    def broker() -> int:
        nonlocal attempts
        attempts += 1
        return closed_port if attempts < 3 else yarl.URL(amqp_url).port or 0

    async with Proxy(broker) as proxy:
        there = {"AMQP_URL": str(yarl.URL(amqp_url).with_port(proxy.port))}
        patient = _environment(there | {"BROKER_PATIENCE_SECONDS": "60"})
        done = await asyncio.to_thread(
            forked.run, forked.SAGA, "topology", "apply", environment=patient
        )

    assert done.returncode == 0, done.stderr
    assert attempts >= 3


def test_definitions_with_passwords_are_for_their_owner_alone(tmp_path: Path) -> None:
    exported, passwords = tmp_path / "definitions.json", tmp_path / "passwords"
    users = [s.name.upper() for s in choreography().services] + ["OPERATOR", "REPLAY"]
    lines = [f"SAGA_PASSWORD_{user}=secret of {user}\n" for user in users]
    passwords.write_text("".join(lines))

    done = saga("topology", "export", "--passwords-from", str(passwords), str(exported))

    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(exported.stat().st_mode) == 0o600
    assert "secret" not in exported.read_text() + done.stderr
    assert all(user["password_hash"] for user in json.loads(exported.read_text())["users"])

    passwords.write_text("".join(lines[1:]))
    done = saga("topology", "export", "--passwords-from", str(passwords), str(exported))
    assert done.returncode == 2
    assert f"SAGA_PASSWORD_{users[0]}" in done.stderr


def test_a_system_with_tls_is_asked_at_https_alone_and_commands_trust_it(
    tmp_path: Path,
) -> None:
    here = {"DATA_DIR": str(tmp_path)}
    authority = tmp_path / "tls" / "ca.pem"
    with background("up", "--tls", "--observe", **here) as up:
        prometheus = tmp_path / "prometheus" / "prometheus.json"
        asyncio.run(
            until(lambda: (tmp_path / FILE_NAME).exists() and prometheus.exists(), seconds=180)
        )
        urls = [url for each in Deployment.load(tmp_path).http_urls.values() for url in each]
        assert {urlsplit(url).scheme for url in urls} == {"https"}

        sent = process("publish", "--orders", "5", "--seed", "7", "--malformed", "0", **here)
        assert sent.returncode == 0, sent.stderr
        (order_url,) = Deployment.load(tmp_path).http_urls["order"]
        line = {"sku": "tea", "quantity": 1, "unit_price_cents": 250}
        order = {"customer": "ada", "currency": "EUR", "lines": [line]}
        trusting = ssl.create_default_context(cafile=str(authority))
        placed = httpx.post(f"{order_url}/orders", json=order, verify=trusting, timeout=30)
        assert placed.status_code == 202, placed.text
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            httpx.get(f"{order_url}/livez")
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(order_url.replace("https:", "http:") + "/livez")

        calm = process("status", "--json", **here)
        assert json.loads(calm.stdout)["problems"] == [], calm.stdout
        told = yaml.safe_load(prometheus.read_text())
        ours = [job for job in told["scrape_configs"] if job.get("scheme") == "https"]
        assert {job["job_name"] for job in ours} == {*OURS}
        assert {job["tls_config"]["ca_file"] for job in ours} == {str(authority)}
        if program := shutil.which("promtool"):
            done = subprocess.run(
                [program, "check", "config", prometheus],
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr
        up.terminate()
        _, said = up.communicate(timeout=RUN_SECONDS)
    assert up.returncode == 0, said


@pytest.mark.long
async def test_a_private_broker_is_compared_and_mended_by_its_data_folder(tmp_path: Path) -> None:
    here = {"DATA_DIR": str(tmp_path)}
    with background("up", **here) as up:
        await until(lambda: (tmp_path / FILE_NAME).exists())
        assert process("topology", "diff", **here).stdout == "the broker is as it should be\n"
        node = RabbitNode(tmp_path / "rabbitmq")
        node.ctl("set_permissions", "payment", ".*", ".*", ".*")

        done = process("topology", "diff", "--json", **here)
        assert done.returncode == 1
        told = json.loads(done.stdout)["differences"]
        assert {(d["kind"], d["name"]) for d in told} == {("permission", "payment")}

        assert process("topology", "apply", **here).returncode == 0
        assert process("topology", "diff", **here).returncode == 0
        up.terminate()
        up.communicate(timeout=RUN_SECONDS)


def test_a_broker_that_has_drifted_is_found_at_the_reaction_that_misses_something(
    amqp_url: str,
) -> None:
    assert saga("topology", "apply", AMQP_URL=amqp_url).returncode == 0
    assert saga("check", "--broker", AMQP_URL=amqp_url).returncode == 0
    asyncio.run(delete_queue(amqp_url, "inventory.high"))

    done = saga("check", "--broker", "--json", AMQP_URL=amqp_url)

    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)["findings"]
    assert (finding["rule"], finding["function"]) == ("drift", "reserve")
    assert finding["file"] == "inventory_service/domain.py"
    assert "inventory.high" in finding["message"]


async def delete_queue(url: str, name: str) -> None:
    async with await connect(url, name="test") as connection:
        await (await connection.channel()).queue_delete(name)


# --- wrong usage ----------------------------------------------------------------------------------


WRONG_USAGE = {
    ("demo", "--orders", "0"): "--orders.*'0'",
    ("demo", "--orders", "many"): "--orders.*'many'",
    ("demo", "--seed", "seven"): "--seed.*'seven'",
    ("demo", "--seed", "-1"): "--seed.*'-1'",
    ("demo", "--declined", "1.5"): "--declined.*'1.5'",
    ("demo", "--database", "oracle"): "--database.*'oracle'",
    ("demo", "--replicas", "2"): "2 replicas",
    ("demo", "--declined", "0.6", "--cancelled", "0.6"): "declined and cancelled are 1.3",
    ("publish", "--rate", "0"): "--rate.*'0'",
    ("publish", "--concurrency", "0"): "--concurrency.*'0'",
    ("reconcile", "--grace", "-1"): "--grace.*'-1'",
    ("topology", "apply"): "AMQP_URL",
    ("topology", "apply", "--nodes", "3"): "--nodes.*--management-url",
    ("topology", "diff"): "AMQP_URL",
    ("topology", "export", "--passwords-from", "nowhere"): "--passwords-from.*nowhere",
    ("map", "--format", "poem"): "--format.*'poem'",
    ("check", "--broker"): "AMQP_URL",
    ("check", "--definitions", "nowhere"): "--definitions.*nowhere",
    ("generate", "--root", "nowhere"): "--root.*nowhere",
    ("schemas", "check", "nowhere"): "nowhere",
    ("dlq", "list", "--by", "poem"): "--by.*'poem'",
    ("dlq", "export", "--state", "lost"): "--state.*'lost'",
    ("dlq", "discard", "1"): "--reason",
    ("dlq", "replay", "--rate", "fast"): "--rate.*'fast'",
    ("dance",): "'dance'",
    ("status", "--colour"): "--colour",
}


@pytest.mark.parametrize("arguments", WRONG_USAGE, ids=" ".join)
def test_wrong_usage_is_one_line_that_names_it(arguments: tuple[str, ...], tmp_path: Path) -> None:
    run = process if arguments == ("dance",) else saga
    done = run(*arguments, DATA_DIR=str(tmp_path))

    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert re.match(f"error: .*{WRONG_USAGE[arguments]}", line), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command",
    [
        "up",
        "demo",
        "publish",
        "status",
        "reconcile",
        "map",
        "check",
        "generate",
        "schemas export",
        "schemas check",
        "schemas release",
        "topology export",
        "topology apply",
        "topology diff",
    ],
)
def test_every_command_explains_itself_with_an_example(command: str) -> None:
    done = saga(*command.split(), "--help", COLUMNS="200", TERM="dumb", NO_COLOR="1")

    assert done.returncode == 0
    assert re.search(r"Examples?:", done.stdout)
    assert f"saga {command}" in done.stdout
    assert "--json" in done.stdout


# --- what a machine can have wrong with it --------------------------------------------------------


@pytest.mark.parametrize("command", ["up", "demo", "topology apply", "topology diff"])
def test_a_broker_that_is_not_there_is_one_line(
    command: str, tmp_path: Path, closed_port: int
) -> None:
    url = f"amqp://guest:secret@127.0.0.1:{closed_port}/"
    done = saga(*command.split(), AMQP_URL=url, DATA_DIR=str(tmp_path))

    assert_one_line(done, f"127.0.0.1:{closed_port}", "AMQP_URL")
    assert "secret" not in done.stderr
    assert processes_of(tmp_path) == []


def test_a_wrong_broker_password_is_one_line(tmp_path: Path, amqp_url: str) -> None:
    url = str(yarl.URL(amqp_url).with_password("wrong"))

    assert_one_line(saga("up", AMQP_URL=url, DATA_DIR=str(tmp_path)), "password", "AMQP_URL")


def test_an_address_that_is_none_is_one_line(tmp_path: Path) -> None:
    done = saga("up", AMQP_URL="http://127.0.0.1/", DATA_DIR=str(tmp_path))

    assert_one_line(done, "AMQP_URL")


@pytest.mark.parametrize("command", ["up", "demo"])
def test_a_folder_that_cannot_be_written_is_one_line(command: str, no_folder: Path) -> None:
    assert_one_line(saga(command, "--data-dir", str(no_folder)), str(no_folder), "--data-dir")


# --- saga address ---------------------------------------------------------------------------------


def test_the_address_of_a_running_service_is_where_it_answers(system: System) -> None:
    data = {"DATA_DIR": str(system.folder)}
    for of, says in (("http", None), ("openapi", "paths"), ("health", "ready")):
        url = saga("address", "order", "--of", of, **data).stdout.strip()
        assert url.startswith(system.deployment.http_urls["order"][0])
        if says is not None:
            assert says in httpx.get(url).text
    as_json = json.loads(saga("address", "payment", "--json", **data).stdout)
    (url,) = system.deployment.http_urls["payment"]
    assert as_json == {"service": "payment", "of": "http", "url": url}


def test_the_address_of_a_replica_is_told_by_its_number_and_of_no_service_not_at_all(
    tmp_path: Path,
) -> None:
    urls = ("http://127.0.0.1:1", "http://127.0.0.1:2")
    deployment = Deployment(amqp_url="amqp://nowhere/", http_urls={"order": urls}, database_urls={})
    deployment.save(tmp_path)

    found = [saga("address", name, DATA_DIR=str(tmp_path)) for name in ("order", "order-2", "bank")]

    assert [done.stdout for done in found] == [f"{urls[0]}\n", f"{urls[1]}\n", ""]
    assert_one_line(found[2], "'bank'", "it has order, order-2")


# --- a folder that is taken -----------------------------------------------------------------------


def test_two_systems_cannot_share_a_folder(system: System) -> None:
    before = files(system.folder)

    assert_one_line(saga("up", DATA_DIR=str(system.folder)), str(system.folder))

    assert files(system.folder) == before


def files(folder: Path) -> dict[Path, bytes]:
    """What a system and the next start of its broker go by."""
    paths = [folder / FILE_NAME, folder / NODE_FOLDER / USERS_FILE]
    return {path: path.read_bytes() for path in paths}


@pytest.mark.parametrize("package", services())
def test_a_service_without_a_broker_says_so_in_one_line(
    package: str, tmp_path: Path, closed_port: int
) -> None:
    url = f"amqp://guest:secret@127.0.0.1:{closed_port}/"
    done = service(package, AMQP_URL=url, DATA_DIR=str(tmp_path))

    assert_one_line(done, f"127.0.0.1:{closed_port}", "AMQP_URL")
    assert "secret" not in done.stderr


# All services begin in the same way; one stands for them.


def test_a_service_with_a_wrong_password_says_so_in_one_line(tmp_path: Path, amqp_url: str) -> None:
    url = str(yarl.URL(amqp_url).with_password("wrong"))
    done = service("order_service", AMQP_URL=url, DATA_DIR=str(tmp_path))

    assert_one_line(done, "password", "AMQP_URL")


def test_a_service_whose_port_is_in_use_says_so_in_one_line(
    tmp_path: Path, taken_port: int
) -> None:
    done = service("order_service", HTTP_PORT=str(taken_port), DATA_DIR=str(tmp_path))

    assert_one_line(done, f"127.0.0.1:{taken_port}", "HTTP_PORT")


# The payment service keeps its sandbox in that folder too.
@pytest.mark.parametrize("package", ["order_service", "payment_service"])
def test_a_service_whose_folder_cannot_be_written_says_so_in_one_line(
    package: str, no_folder: Path, closed_port: int
) -> None:
    done = service(package, AMQP_URL=f"amqp://127.0.0.1:{closed_port}/", DATA_DIR=str(no_folder))

    assert_one_line(done, str(no_folder))


@pytest.mark.parametrize(
    ("name", "value"), [("HTTP_PORT", "web"), ("LOG_LEVEL", "chatty"), ("DRAIN_SECONDS", "-1")]
)
def test_a_setting_that_makes_no_sense_is_named_in_one_line(
    name: str, value: str, tmp_path: Path
) -> None:
    done = service("order_service", **{name: value, "DATA_DIR": str(tmp_path)})

    assert_one_line(done, name)


def test_python_runs_a_service_by_its_module_s_name(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "order_service.app"],
        env=_environment(_AT_A_TERMINAL | {"HTTP_PORT": "web", "DATA_DIR": str(tmp_path)}),
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )

    assert_one_line(done, "HTTP_PORT")


# --- where a system keeps its data ----------------------------------------------------------------


@pytest.mark.long
def test_a_system_keeps_its_data_to_itself_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Names that mean something in a URL; and whatever the user's umask allows others."""
    folder = tmp_path / "a%20b? c&d é[1];$x"
    others: list[str] = []
    with _usual_umask(), background("up", DATA_DIR=str(folder)) as up:
        running = partial(_runs_or_has_ended, folder, up)
        asyncio.run(until(running))
        if up.poll() is None:
            _use(folder)
            others = _open_to_others(folder)
            up.terminate()
        _, said = up.communicate(timeout=RUN_SECONDS)

    assert up.returncode == 0, said
    assert others == []
    assert list(tmp_path.iterdir()) == [folder]
    databases = {folder / f"{service.name}.db" for service in choreography().services}
    assert databases < set(folder.iterdir())


def _runs_or_has_ended(folder: Path, up: subprocess.Popen[str]) -> bool:
    return (folder / FILE_NAME).exists() or up.poll() is not None


@contextlib.contextmanager
def _usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def _use(folder: Path) -> None:
    """Write everything that a system and its operators write."""
    for arguments in (
        ("publish", "--orders", "5", "--malformed", "0.2"),
        ("dlq", "list"),
        ("topology", "diff"),
        ("history", "export", str(folder / "history.jsonl.gz")),
    ):
        done = saga(*arguments, DATA_DIR=str(folder))
        assert done.returncode == (1 if "list" in arguments else 0), done.stderr


def _open_to_others(folder: Path) -> list[str]:
    return [
        f"{stat.filemode(path.lstat().st_mode)} {path}"
        for path in (folder, *folder.rglob("*"))
        if path.lstat().st_mode & 0o077 and not path.is_symlink()
    ]


def test_too_low_a_limit_of_open_files_is_named_before_anything_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))

    assert_one_line(saga("up", DATA_DIR=str(tmp_path / "data")), "64 files", "ulimit -n")
    assert not (tmp_path / "data").exists()
