"""PostgreSQL behind a pooler such as PgBouncer in transaction mode: used where it can do what is
needed, and refused with what to set where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
import yarl

from saga.local.server import free_ports
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import open_database
from tests.integration.toy import make_tables
from tests.polling import until

SSL_REQUEST = 80877103
TIMEOUTS = ("statement_timeout", "idle_in_transaction_session_timeout")


@dataclass
class Pooler:
    """What PgBouncer does at the start of a connection, and to prepared statements."""

    target: yarl.URL
    refuses: bool = False
    """Takes no parameter that it does not know. Otherwise it leaves them out, as with
    `ignore_startup_parameters`."""
    mixes_up: bool = False
    """Gives each transaction any connection to the server, whatever was prepared there."""
    connections: int = 0
    prepared: set[bytes] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            yield str(self.target.with_port(server.sockets[0].getsockname()[1]))

    async def _serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._pass_on(client, answer)
        answer.close()

    async def _pass_on(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        version, startup = await read_startup(client)
        while version == SSL_REQUEST:
            answer.write(b"N")
            version, startup = await read_startup(client)
        self.connections += 1
        words = startup.rstrip(b"\0").split(b"\0")
        parameters = dict(zip(words[::2], words[1::2], strict=True))
        strange = [word for word in TIMEOUTS if word.encode() in parameters]
        if self.refuses and strange:
            answer.write(error("08P01", f"unsupported startup parameter: {strange[0]}"))
            return
        for word in strange:
            del parameters[word.encode()]
        known = b"".join(key + b"\0" + value + b"\0" for key, value in parameters.items()) + b"\0"
        reader, server = await asyncio.open_connection(self.target.host, self.target.port)
        server.write(struct.pack("!ii", 8 + len(known), version) + known)
        back = asyncio.ensure_future(copy(reader, answer))
        mine: set[bytes] = set()
        try:
            while True:
                kind, body = await read_message(client)
                name = body.partition(b"\0")[0]
                if kind == b"P" and name and self.mixes_up:
                    if name in self.prepared - mine:
                        said = f'prepared statement "{name.decode()}" already exists'
                        answer.write(error("42P05", said))
                        while kind != b"S":
                            kind, _ = await read_message(client)
                        answer.write(b"Z" + struct.pack("!i", 5) + b"I")
                        continue
                    mine.add(name)
                    self.prepared.add(name)
                server.write(kind + struct.pack("!i", 4 + len(body)) + body)
        finally:
            server.close()
            await asyncio.wait({back})


async def read_startup(client: asyncio.StreamReader) -> tuple[int, bytes]:
    length, version = struct.unpack("!ii", await client.readexactly(8))
    return version, await client.readexactly(length - 8)


async def read_message(client: asyncio.StreamReader) -> tuple[bytes, bytes]:
    kind, length = struct.unpack("!ci", await client.readexactly(5))
    return kind, await client.readexactly(length - 4)


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


def error(code: str, message: str) -> bytes:
    fields = f"SFATAL\0VFATAL\0C{code}\0M{message}\0\0".encode()
    return b"E" + struct.pack("!i", 4 + len(fields)) + fields


async def give_timeouts(url: str) -> None:
    """As an administrator does, here for the database."""
    connection = await asyncpg.connect(url)
    for name in TIMEOUTS:
        await connection.execute(f"ALTER DATABASE {yarl.URL(url).path[1:]} SET {name} = '10s'")
    await connection.close()


async def refusal(pooler: Pooler) -> str:
    """What a service says that starts behind this pooler, and would wait for a server to start."""
    async with pooler.running() as url:
        with pytest.raises(DatabaseError) as caught:
            await open_database(url, make_tables(), patience_seconds=600)
    said = str(caught.value)
    assert "\n" not in said
    for word in ("ignore_startup_parameters", "max_prepared_statements", "ALTER ROLE", "1.21"):
        assert word in said
    return said


async def test_a_pooler_that_refuses_what_a_service_asks_for_is_told_what_to_set(
    postgres_url: str,
) -> None:
    pooler = Pooler(yarl.URL(postgres_url), refuses=True)

    assert "unsupported startup parameter: statement_timeout" in await refusal(pooler)
    assert pooler.connections == 1


async def test_a_pooler_without_the_timeouts_that_bound_a_lock_is_told_what_to_set(
    postgres_url: str,
) -> None:
    assert "has no " in await refusal(Pooler(yarl.URL(postgres_url)))


async def test_a_pooler_that_mixes_up_prepared_statements_is_told_what_to_set(
    postgres_url: str,
) -> None:
    await give_timeouts(postgres_url)

    said = await refusal(Pooler(yarl.URL(postgres_url), mixes_up=True))
    assert "already exists" in said


async def test_a_pooler_that_is_set_up_for_it_is_used(postgres_url: str) -> None:
    await give_timeouts(postgres_url)

    async with Pooler(yarl.URL(postgres_url)).running() as url:
        database = await open_database(url, make_tables())
        one = await database.transaction(lambda connection: connection.scalar(sa.text("SELECT 1")))
        await database.close()
    assert one == 1


@pytest.mark.long
@pytest.mark.skipif(shutil.which("pgbouncer") is None, reason="PgBouncer is not installed")
@pytest.mark.parametrize("ignoring", [False, True])
async def test_pgbouncer_in_transaction_mode_is_used_or_told_what_to_set(
    ignoring: bool, postgres_url: str
) -> None:
    await give_timeouts(postgres_url)
    able = version() >= (1, 21)
    lines = [f"ignore_startup_parameters = {', '.join(TIMEOUTS)}"] if ignoring else []
    lines += ["max_prepared_statements = 200"] if able else []
    with pgbouncer(yarl.URL(postgres_url), lines) as url:
        await until(lambda: answers(url))
        if not (ignoring and able):
            with pytest.raises(DatabaseError, match="max_prepared_statements"):
                await open_database(url, make_tables())
            return
        database = await open_database(url, make_tables())
        for number in range(20):
            query = sa.text(f"SELECT {number} + :one")  # prepared under a name each
            sums = await asyncio.gather(
                *(database.read(lambda c, q=query: c.scalar(q, {"one": 1})) for _ in range(4))  # type: ignore[misc]
            )
            assert sums == [number + 1] * 4
        await database.close()


async def answers(url: str) -> bool:
    try:
        connection = await asyncpg.connect(url, statement_cache_size=0)
    except OSError:
        return False
    await connection.close()
    return True


def version() -> tuple[int, ...]:
    said = subprocess.run(["pgbouncer", "--version"], capture_output=True, text=True, check=True)
    found = re.search(r"PgBouncer (\d+)\.(\d+)", said.stdout)
    assert found is not None
    return tuple(map(int, found.groups()))


@contextlib.contextmanager
def pgbouncer(target: yarl.URL, lines: list[str]) -> Iterator[str]:
    """PgBouncer before this database, in transaction mode and with these settings."""
    port = free_ports(["pgbouncer"])["pgbouncer"]
    user = "nobody" if os.getuid() == 0 else None  # It refuses to be run by root.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "users").write_text(f'"{target.user}" "{target.password}"\n')
        settings = folder / "pgbouncer.ini"
        settings.write_text(
            f"""[databases]
* = host={target.host} port={target.port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = plain
auth_file = {folder}/users
pool_mode = transaction
"""
            + "\n".join(lines)
        )
        if user is not None:
            for path in (folder, *folder.iterdir()):
                shutil.chown(path, user)
        process = subprocess.Popen(["pgbouncer", str(settings)], user=user)
        try:
            yield str(target.with_port(port))
        finally:
            process.terminate()
            process.wait()
