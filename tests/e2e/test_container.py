"""The image, really built and run: as an arbitrary user, with nothing to write on, against a
broker and a database that know each service by its own password.

Takes root, some minutes and the system's packages (see `scripts/container-image`).
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import httpx
import pytest

from saga.bootstrap import bootstrap
from saga.discovery import choreography, saga, services
from saga.http import client
from saga.local.node import RabbitNode
from saga.local.postgres import PostgresCluster
from saga.local.server import free_ports
from tests.integration.test_postgres_roles import run_script
from tests.polling import until

ROOT = Path(__file__).parents[2]
START_SECONDS = 60.0
STOP_SECONDS = 45
CONFINED = ("--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--security-opt=no-new-privileges")
# Less than the engine would ask for, and more than enough: where it runs in a container itself, it
# may not give away more than it has.
LIMITS = ("--ulimit=nofile=10000:10000", "--ulimit=nproc=9000:9000")

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(os.getuid() != 0, reason="making an image without a registry takes root"),
]


def podman(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["podman", "--runtime=runc", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=check)


@pytest.fixture(scope="module")
def image() -> str:
    built = subprocess.run(
        [ROOT / "scripts" / "container-image"], stdout=subprocess.PIPE, text=True, check=True
    )
    return built.stdout.strip()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    return tmp_path / "secrets"


@pytest.fixture
def servers(tmp_path: Path, secrets: Path) -> Iterator[None]:
    """A broker and a database, as compose.yaml sets them up, with the secrets for them."""
    conf = (ROOT / "rabbitmq" / "rabbitmq.conf").read_text()
    deployed = dict(re.findall(r"^([a-z_.]+) = (.*)$", conf, re.MULTILINE))
    definitions = secrets / "rabbitmq" / "definitions.json"
    node = RabbitNode(
        tmp_path / "rabbitmq",
        settings=deployed | {"definitions.local.path": str(definitions)},
    )
    with PostgresCluster(tmp_path / "postgresql", durable=False) as cluster:
        try:
            # Passwords come first, and the broker's port is known only when it has started.
            definitions.parent.mkdir(parents=True)
            definitions.write_text("{}")
            node.start()
            bootstrap(
                secrets,
                choreography(),
                brokers=[f"127.0.0.1:{node.port('amqp')}"],
                database_host=f"127.0.0.1:{cluster.port}",
                outsides=saga().outside,
            )
            node.ctl("import_definitions", str(definitions))
            run_script(cluster, secrets / "postgres" / "roles")
            yield
        finally:
            node.kill()
            node.stop()


class Containers:
    """The containers of one test."""

    def __init__(self, image: str, secrets: Path, folder: Path) -> None:
        self._image = image
        self._secrets = secrets
        self._data = folder / "data"
        self._data.mkdir()
        os.chown(self._data, 10001, 10001)
        self.names: list[str] = []

    def options(self, secrets_of: str, environment: Mapping[str, str]) -> list[str]:
        return [
            *("--network=host", *CONFINED, *LIMITS),
            f"--volume={self._secrets / secrets_of}:/run/secrets:ro",
            f"--volume={self._data}:/data",
            *(f"--env={name}={value}" for name, value in environment.items()),
        ]

    def run(self, secrets_of: str, *command: str, **environment: str) -> str:
        """Run a command to its end; what it said."""
        options = self.options(secrets_of, environment)
        done = podman("run", "--rm", *options, self._image, *command, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, *command: str, **environment: str) -> None:
        """Start a service in the background."""
        container = f"saga-check-{os.getpid()}-{name}"
        self.names.append(container)
        options = self.options(name, {"SECRETS_DIR": "/run/secrets"} | environment)
        podman("run", "--detach", "--name", container, *options, self._image, *command)

    def remove(self) -> None:
        for name in self.names:
            podman("rm", "--force", "--time=0", name, check=False)


@pytest.fixture
def containers(image: str, servers: None, secrets: Path, tmp_path: Path) -> Iterator[Containers]:
    found = Containers(image, secrets, tmp_path)
    try:
        yield found
    finally:
        found.remove()


async def test_the_services_run_confined_against_a_live_broker_and_database(
    containers: Containers,
) -> None:
    declared = containers.run("operator", "saga", "topology", "apply", DATA_DIR="/run/secrets")
    assert "queues" in declared
    ports = free_ports([service.name for service in services().values()])
    for package, service in services().items():
        port = str(ports[service.name])
        containers.start(
            service.name, "python3", "-m", f"{package}.app", HTTP_PORT=port, HTTP_HOST="127.0.0.1"
        )
    for name in containers.names:
        await until(partial(healthy, name), seconds=START_SECONDS)

    await order_something(ports)

    for name in containers.names:
        assert confined(name)
        stopped = podman("stop", f"--time={STOP_SECONDS}", name, check=False)
        assert stopped.returncode == 0, stopped.stderr
        state = json.loads(podman("inspect", name).stdout)[0]["State"]
        assert state["ExitCode"] == 0, "it had to be killed"
        records = [json.loads(line) for line in podman("logs", name).stderr.splitlines()]
        assert [r["message"] for r in records if r["level"] in ("error", "critical")] == []


def healthy(name: str) -> bool:
    return (
        podman("exec", name, "python3", "-m", "saga.runtime.healthcheck", check=False).returncode
        == 0
    )


def confined(name: str) -> bool:
    """Whether its process runs as an arbitrary user, has no rights and cannot write."""
    status = podman("exec", name, "cat", "/proc/1/status").stdout
    user = re.findall(r"^Uid:\s+(\d+)", status, re.MULTILINE)
    rights = re.findall(r"^CapEff:\s+(\w+)", status, re.MULTILINE)
    writes = podman("exec", name, "touch", "/opt/saga/x", "/x", check=False)
    return user == ["10001"] and int(rights[0], 16) == 0 and writes.returncode != 0


async def order_something(ports: Mapping[str, int]) -> None:
    """Place an order and see it confirmed."""
    item = {"sku": "mug", "quantity": 10, "unit_price_cents": 1250, "currency": "EUR"}
    line = {"sku": "mug", "quantity": 1, "unit_price_cents": 1250}
    order = {"customer": "ada", "currency": "EUR", "lines": [line]}
    async with client(f"http://127.0.0.1:{ports['inventory']}", 10.0) as inventory:
        (await inventory.post("/stock", json={"items": [item]})).raise_for_status()
    async with client(f"http://127.0.0.1:{ports['order']}", 10.0) as orders:
        placed = await orders.post("/orders", json=order)
        assert placed.status_code == httpx.codes.ACCEPTED, placed.text
        path = placed.headers["location"]

        async def confirmed() -> bool:
            return bool((await orders.get(path)).json()["status"] == "confirmed")

        await until(confirmed)
