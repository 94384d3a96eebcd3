"""The service that finds tasks."""

from __future__ import annotations

import sqlalchemy as sa
from fastapi import APIRouter
from saga import Running, Service, Settings, needs, serve
from sqlalchemy.engine import Connection

from taskflow.search.domain import PARTICIPANT, Entry
from taskflow.search.store import TABLES

FOUND_MAX = 50


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    router = APIRouter()

    @router.get("/tasks", dependencies=[needs("tasks:read")])
    async def find(words: str) -> list[str]:
        """Up to `FOUND_MAX` tasks whose title has these words, those first that are not done."""
        return await running.database.read(lambda connection: found(connection, words))

    return router


def found(connection: Connection, words: str) -> list[str]:
    """The tasks whose title has all of these words, those first that are not done."""
    entries = TABLES.states[Entry].table.c
    query = sa.select(entries.key).order_by(entries.done, entries.key).limit(FOUND_MAX)
    for word in words.split():
        query = query.where(entries.title.icontains(word, autoescape=True))
    return list(connection.scalars(query.where(entries.title.is_not(None))))


if __name__ == "__main__":
    serve(build, Settings)
