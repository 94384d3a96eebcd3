"""The service that keeps what users prefer."""

from __future__ import annotations

from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter
from saga import Caller, Problem, Running, Service, Settings, needs, serve, theirs

from taskflow.language import ChangePreferences
from taskflow.preferences.domain import PARTICIPANT
from taskflow.preferences.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    router = APIRouter()

    @router.put("/preferences", status_code=202)
    async def change(
        command: ChangePreferences, caller: Annotated[Caller, needs("users:write", own=True)]
    ) -> None:
        theirs(caller, command.user, Problem(403, "users change what is their own only"))
        await running.give(command, id=str(uuid4()))

    return router


if __name__ == "__main__":
    serve(build, Settings)
