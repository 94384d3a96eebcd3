"""Where personal data is in clear is named, with the time until which it stays."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from saga.deployment import Deployment
from saga.dlq.store import Store
from saga.envelope import rfc3339
from saga.runtime.kernel.tables import utc_now
from tests.books import Books
from tests.command import saga
from tests.order_play import Play

SEALED: Final = "~1." + "a" * 22 + "." + "b" * 40


async def books_of(folder: Path, *customers: str) -> Play:
    """A system that is never started, in which these have ordered."""
    play = Play()
    books = Books(folder, play)
    for customer in customers:
        play.place(customer)
    play.deliver()
    await books.write()
    names = ("history", "order", "inventory", "payment", "notification")
    letters = f"sqlite:///{folder / 'dead_letters.db'}"
    Store(letters).close()
    Deployment(
        amqp_url="amqp://nobody@127.0.0.1:1/",
        http_urls={},
        database_urls={name: books.url(name) for name in names},
        dead_letters_url=letters,
    ).save(folder)
    return play


def look(folder: Path) -> tuple[int, dict[str, Any]]:
    done = saga("persons", "in-clear", "--json", "--data-dir", str(folder))
    assert done.returncode in (0, 1), done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, found
