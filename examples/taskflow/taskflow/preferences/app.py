"""The service that keeps what users prefer."""

from __future__ import annotations

from uuid import uuid4

from fastapi import APIRouter
from saga import Running, Service, Settings, serve

from taskflow.language import ChangePreferences
from taskflow.preferences.domain import PARTICIPANT
from taskflow.preferences.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    router = APIRouter()

    @router.put("/preferences", status_code=202)
    async def change(command: ChangePreferences) -> None:
        await running.give(command, id=str(uuid4()))

    return router


if __name__ == "__main__":
    serve(build, Settings)
