"""Two sagas on one broker, a virtual host each: made and checked by the same commands."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
import yarl

from order_saga import SAGA as ORDERS
from saga.broker.passwords import variable
from saga.declaration import Saga
from saga.deployment import FILE_NAME, Deployment
from saga.envelope import source_of
from saga.local.node import RabbitNode
from saga.runtime.messaging.permissions import name_on_broker, users_of
from tests.command import saga
from tests.e2e.test_moving import wait_for
from tests.exported import OF_HISTORY, OF_SAGAS, unmeasured
from tests.moving import SAGA as MOVING

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
LOAD = {"orders": ("--orders", "40", "--no-outage"), "moving": ("--sagas", "15")}
OWNERS = {"orders": "order", "moving": "move"}
RUN_SECONDS = 300


@dataclass(frozen=True)
class Side:
    """One saga, in its folder and its virtual host."""

    declared: Saga
    spec: str
    folder: Path
    amqp_url: str
    management_url: str

    @property
    def virtual_host(self) -> str:
        return yarl.URL(self.amqp_url).path.removeprefix("/")

    @property
    def passwords(self) -> Path:
        return self.folder / "passwords"

    def saga(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return saga(*arguments, SAGA=self.spec, **environment)

    def here(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.saga(*arguments, "--data-dir", str(self.folder))

    def begin(self, *arguments: str) -> subprocess.Popen[str]:
        """A command in a process of its own, beside others."""
        environment = {**os.environ, "SAGA": self.spec, "PYTHONPATH": str(ROOT)}
        environment["AMQP_URL"] = self.amqp_url
        return subprocess.Popen(
            [sys.executable, "-m", "saga.cli", *arguments, "--data-dir", str(self.folder)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE if arguments[0] != "up" else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def topology(self, command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.saga(
            "topology",
            command,
            *arguments,
            AMQP_URL=self.amqp_url,
            MANAGEMENT_URL=self.management_url,
        )

    @contextmanager
    def up(self) -> Iterator[None]:
        with self.begin("up") as running:
            try:
                wait_for("the system", (self.folder / FILE_NAME).exists, RUN_SECONDS)
                wait_for("services", lambda: self.here("status").returncode == 0, RUN_SECONDS)
                yield
            finally:
                running.send_signal(signal.SIGINT)
                running.communicate(timeout=RUN_SECONDS)


@pytest.fixture(scope="module")
def sides(
    tmp_path_factory: pytest.TempPathFactory, rabbit_node: RabbitNode, broker_admin: httpx.Client
) -> Iterator[tuple[Side, Side]]:
    """Both sagas at work on the same node, after a load on both at once."""
    management = str(yarl.URL(rabbit_node.management_url).with_user("guest").with_password("guest"))
    found = tuple(
        Side(
            declared,
            spec,
            tmp_path_factory.mktemp(declared.name),
            f"{rabbit_node.amqp_url}{declared.name}-{uuid4().hex[:8]}",
            management,
        )
        for declared, spec in ((ORDERS, "order_saga:SAGA"), (MOVING, "tests.moving:SAGA"))
    )
    orders, moving = found
    with ExitStack() as stack:
        for side in found:
            users = [user.name for user in users_of(side.declared.choreography)]
            words = (f"{variable(name)}={password_of(side, name)}\n" for name in users)
            side.passwords.write_text("".join(words))
            made = side.topology("apply", "--passwords-from", str(side.passwords))
            assert made.returncode == 0, made.stderr
            stack.callback(broker_admin.delete, f"/api/vhosts/{side.virtual_host}")
        for side in found:
            stack.enter_context(side.up())
        loads = [
            side.begin("demo", *LOAD[side.declared.name], "--seed", "5", "--json") for side in found
        ]
        for side, load in zip(found, loads, strict=True):
            said, _ = load.communicate(timeout=RUN_SECONDS)
            assert load.returncode == 0, f"{side.declared.name}: {said}"
        yield orders, moving


def password_of(side: Side, user: str) -> str:
    return f"{side.declared.name}-{user}"


def test_a_load_on_both_at_once_leaves_both_right(sides: tuple[Side, Side]) -> None:
    for side in sides:
        for command in (("reconcile", "--grace", "0"), ("status",), ("stuck",)):
            done = side.here(*command)
            assert done.returncode == 0, f"{side.declared.name} {command}: {done.stdout}"


def test_no_message_crosses(sides: tuple[Side, Side]) -> None:
    for side in sides:
        with closing(sqlite3.connect(side.folder / "history.db")) as connection:
            sources = {source for (source,) in connection.execute("SELECT source FROM events")}
            ((strays,),) = connection.execute("SELECT count(*) FROM strays")
        assert sources
        assert sources <= {source_of(p.name) for p in side.declared.participants}
        assert strays == 0
        letters = json.loads(side.here("dlq", "list", "--by", "letter", "--json").stdout)
        assert letters["list"] == []


def test_each_virtual_host_is_as_its_own_saga_has_it(sides: tuple[Side, Side]) -> None:
    for side in sides:
        done = side.topology("diff", "--json")
        document = json.loads(done.stdout)
        assert (done.returncode, document["differences"]) == (0, [])
        assert document["not_compared"] == []


def test_a_lost_broker_would_be_made_again_without_the_others_messages(
    sides: tuple[Side, Side],
) -> None:
    for side in sides:
        done = side.here("recover", "broker", "--dry-run", "--json")
        document = json.loads(done.stdout)
        assert (done.returncode, document["put_back"]) == (0, [])


def test_users_of_one_name_have_passwords_of_their_own_and_only_their_virtual_host(
    sides: tuple[Side, Side], broker_admin: httpx.Client
) -> None:
    for side, other in (sides, sides[::-1]):
        name = name_on_broker("history", side.virtual_host)
        login = name, password_of(side, "history")
        here = broker_admin.get("/api/whoami", auth=login)
        # It may log in, but is no user of the management API.
        assert here.json().get("reason") == "Not management user", here.text
        permissions = broker_admin.get(f"/api/users/{name}/permissions").json()
        assert [permission["vhost"] for permission in permissions] == [side.virtual_host]
        assert name != name_on_broker("history", other.virtual_host)


def test_a_second_system_is_refused_on_a_virtual_host_and_not_on_the_broker(
    sides: tuple[Side, Side], tmp_path: Path
) -> None:
    for side in sides:
        again = side.saga("up", "--data-dir", str(tmp_path), AMQP_URL=side.amqp_url)

        assert again.returncode == 1
        assert "another system runs at" in again.stderr


def test_every_process_exports_what_it_measures_and_nothing_else(
    sides: tuple[Side, Side],
) -> None:
    found: list[str] = []
    for side in sides:
        name = side.declared.name
        for participant, urls in Deployment.load(side.folder).http_urls.items():
            text = httpx.get(f"{urls[0]}/metrics", trust_env=False).text
            found += unmeasured(text, participant, name)
            owner, archive = participant == OWNERS[name], participant == "history"
            assert all((f"# TYPE {f}" in text) == owner for f in OF_SAGAS), participant
            assert (f"# TYPE {OF_HISTORY}" in text) == archive, participant

    assert found == []
