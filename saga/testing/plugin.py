"""Fixtures for pytest, which finds them where the engine is installed: a private broker per run, a
virtual host per test; a private PostgreSQL server per run, a database per test.

Nothing is started before a test asks for it. What was started is ended by its process id. The
programs are those of the system: `rabbitmq-server`, and of PostgreSQL `initdb` and `postgres`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from uuid import uuid4

import asyncpg
import httpx
import pytest

from saga.local.node import RabbitNode
from saga.local.postgres import PostgresCluster
from saga.runtime.tasks import LoopThread


@pytest.fixture(scope="session")
def rabbit_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitNode]:
    """A node for the whole run. Tests that kill or stop a node start one of their own."""
    node = RabbitNode(tmp_path_factory.mktemp("rabbit"), plugins=["rabbitmq_management"])
    node.start()
    yield node
    node.kill()  # its data is not needed again, and a graceful stop takes seconds
    node.stop()


@pytest.fixture(scope="session")
def broker_admin(rabbit_node: RabbitNode) -> Iterator[httpx.Client]:
    """The node's HTTP API: milliseconds per call, where `rabbitmqctl` takes half a second."""
    with httpx.Client(
        base_url=rabbit_node.management_url, auth=("guest", "guest"), timeout=60, trust_env=False
    ) as client:
        yield client


@pytest.fixture(scope="session")
def virtual_host(
    rabbit_node: RabbitNode, broker_admin: httpx.Client
) -> Callable[[], AbstractContextManager[str]]:
    """Makes empty virtual hosts, for as long as one likes: each a context, of where to connect."""

    @contextmanager
    def make() -> Iterator[str]:
        name = f"test-{uuid4().hex[:12]}"
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        broker_admin.put(f"/api/vhosts/{name}").raise_for_status()
        broker_admin.put(f"/api/permissions/{name}/guest", json=everything).raise_for_status()
        yield rabbit_node.amqp_url + name
        broker_admin.delete(f"/api/vhosts/{name}").raise_for_status()

    return make


@pytest.fixture
def amqp_url(virtual_host: Callable[[], AbstractContextManager[str]]) -> Iterator[str]:
    """Where to connect for an empty virtual host that is the test's alone."""
    with virtual_host() as url:
        yield url


@pytest.fixture(scope="session")
def postgres_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresCluster]:
    """A server for the whole run, which waits for the disk only with `TEST_FSYNC=on`. Tests that
    kill or stop a server start one of their own."""
    durable = os.environ.get("TEST_FSYNC") == "on"
    with PostgresCluster(tmp_path_factory.mktemp("postgresql"), durable=durable) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _postgres_statement(postgres_cluster: PostgresCluster) -> Iterator[Callable[[str], None]]:
    """Runs a statement on the server, whether or not an event loop runs; on one connection for the
    whole run, as a start of PostgreSQL's own programs takes three times as long."""
    loop = LoopThread("postgres-statements")
    connection = loop.ask(asyncpg.connect(postgres_cluster.url("postgres")))

    def run(statement: str) -> None:
        loop.ask(connection.execute(statement))

    yield run
    loop.ask(connection.close())
    loop.close()


@pytest.fixture
def postgres_url(
    postgres_cluster: PostgresCluster, _postgres_statement: Callable[[str], None]
) -> Iterator[str]:
    """An empty database on PostgreSQL that is the test's alone."""
    name = f"test_{uuid4().hex[:12]}"
    # The quickest way, which writes little of it to the log.
    _postgres_statement(f"CREATE DATABASE {name} TEMPLATE template0 STRATEGY file_copy")
    yield postgres_cluster.url(name)
    _postgres_statement(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database that is the test's alone, on either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'toy.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return url


@pytest.fixture
def closed_port() -> int:
    """A loopback port on which no process listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
