"""Every process's HTTP side on a socket, without a broker: what it answers is what its own server,
its own routes and its own database make of a request, byte for byte."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints
from unittest import mock

from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.process import Parts, Process
from saga.runtime.server import Server, listen
from saga.runtime.service import Service, process_of
from saga.runtime.settings import Settings, load
from saga.runtime.tasks import cancel_all
from saga.runtime.tls import context_of
from tests.polling import DEADLINE_SECONDS, until

LOOPBACK = "127.0.0.1"

Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def detail(self) -> str:
        """What a problem says."""
        return str(self.json["detail"])


@dataclass(frozen=True)
class Served:
    """A process that serves, but was not started: it has no broker."""

    name: str
    port: int
    server: Server
    database: Database
    parts: Parts

    async def ask(
        self, method: str, target: bytes | str, headers: Headers = (), body: bytes = b""
    ) -> Answer:
        """See `ask`."""
        return await ask(self.port, method, target, headers, body)


def built(package: str, folder: Path, **environment: str) -> tuple[Process, Settings]:
    """A service's process as its own `build` makes it, and its settings."""
    module = importlib.import_module(f"{package}.app")
    parameter, *_ = inspect.signature(module.build).parameters
    kind: type[Settings] = get_type_hints(module.build)[parameter]
    nowhere = {"AMQP_URL": "amqp://guest:guest@127.0.0.1:1/", "DATA_DIR": str(folder)}
    with mock.patch.dict(os.environ, nowhere | environment):
        settings = load(kind)
    process = module.build(settings)
    return (process_of(process, settings) if isinstance(process, Service) else process), settings


@asynccontextmanager
async def serving(package: str, folder: Path, **environment: str) -> AsyncIterator[Served]:
    """The process of that package, with what it runs besides, but for its broker."""
    process, settings = built(package, folder, **environment)
    database = await open_database(settings.database_url_of(process.name), process.schema)
    async with AsyncExitStack() as stack:
        if process.close is not None:
            stack.push_async_callback(process.close)
        stack.push_async_callback(database.close)
        parts = await process.assemble(database, stack)
        listener = listen(LOOPBACK, 0, way_out="port")
        server = Server(
            parts.app,
            connections_max=settings.http_connections_max,
            headers_max_bytes=settings.http_headers_max_bytes,
            tls=context_of(settings),
        )
        port = listener.getsockname()[1]
        tasks = [asyncio.ensure_future(task) for task in (server.serve([listener]), *parts.tasks)]
        try:
            await until(lambda: server.started)
            yield Served(process.name, port, server, database, parts)
        finally:
            server.should_exit = True
            await tasks[0]
            await cancel_all(*tasks)
            await parts.stop()


async def ask(
    port: int, method: str, target: bytes | str, headers: Headers = (), body: bytes = b""
) -> Answer:
    """Send a request exactly like this, with a length if it has a body; fail without an answer."""
    path = target.encode() if isinstance(target, str) else target
    given = {name.lower() for name, _ in headers}
    own: list[tuple[bytes, bytes]] = [(b"Connection", b"close")]
    if b"host" not in given:
        own.append((b"Host", b"localhost"))
    if body and not given & {b"content-length", b"transfer-encoding"}:
        own.append((b"Content-Length", b"%d" % len(body)))
    lines = [b"%s %s HTTP/1.1" % (method.encode(), path)]
    lines += [b"%s: %s" % header for header in (*own, *headers)]
    return parsed(await said(port, b"\r\n".join(lines) + b"\r\n\r\n" + body))


async def said(port: int, request: bytes) -> bytes:
    """All that the server says to these bytes, until it closes the connection."""
    reader, writer = await asyncio.open_connection(LOOPBACK, port)
    try:
        writer.write(request)
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await reader.read()
    finally:
        writer.close()


def parsed(said: bytes) -> Answer:
    """An answer from its bytes."""
    head, _, body = said.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return Answer(int(first.split()[1]), {k.lower(): v for k, v in headers.items()}, body)
