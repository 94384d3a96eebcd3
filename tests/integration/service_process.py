"""A service as a process of a test's own, and what is seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import yarl

from saga.http import client
from saga.runtime.messaging.connection import connect
from tests.forked import Forked, run
from tests.polling import until

RUN_SECONDS = 100.0
_SERVING = re.compile(r"serving on (http://\S+:\d+)")


class ServiceProcess:
    """One service's process, with its state in `folder`; it ends with the context."""

    def __init__(self, package: str, folder: Path, **environment: str) -> None:
        self._module = f"{package}.app"
        self._environment = os.environ | {"DATA_DIR": str(folder)} | environment
        self._log = folder / f"{package}.log"

    def __enter__(self) -> ServiceProcess:
        self._log.write_bytes(b"")
        self.popen = Forked([self._module], self._environment, self._log, self._log)
        return self

    def __exit__(self, *_: object) -> None:
        self.popen.kill()
        self.popen.wait()

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def address(self) -> yarl.URL:
        """Where its log says that it serves."""
        found = _SERVING.search(self.said)
        assert found is not None, self.said
        return yarl.URL(found[1])

    async def says(self, words: str) -> None:
        await until(lambda: words in self.said or self.popen.poll() is not None)
        assert words in self.said

    async def exit_status(self) -> int:
        await until(lambda: self.popen.poll() is not None)
        return self.popen.wait()

    @contextlib.asynccontextmanager
    async def http(self) -> AsyncIterator[httpx.AsyncClient]:
        async with client(str(self.address), RUN_SECONDS) as service:
            yield service


async def depth(url: str, queue: str) -> int:
    """How many messages wait in a queue."""
    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


def rows(folder: Path, participant: str, query: str) -> list[Any]:
    """What a service's database holds."""
    with contextlib.closing(sqlite3.connect(folder / f"{participant}.db")) as connection:
        return connection.execute(query).fetchall()


def assert_refuses(package: str, folder: Path, *words: str, **environment: str) -> None:
    """It ends with status 1 and one last line that says all these words."""
    mine = {"BROKER_PATIENCE_SECONDS": "0", "DATA_DIR": str(folder)}
    done = run(f"{package}.app", environment=os.environ | mine | environment)

    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    *_, last = map(json.loads, done.stderr.splitlines())
    assert last["level"] == "critical"
    assert done.stderr.count('"critical"') == 1, done.stderr
    for word in words:
        assert word in last["message"]
    assert "secret" not in done.stderr
