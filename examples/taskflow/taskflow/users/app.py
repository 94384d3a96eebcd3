"""The service that registers users."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from saga import Caller, Problem, Running, Service, Settings, derived_id, needs, serve, theirs

from taskflow.language import RegisterUser
from taskflow.users.domain import PARTICIPANT
from taskflow.users.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    router = APIRouter()

    @router.post("/users", status_code=202)
    async def register(
        command: RegisterUser, caller: Annotated[Caller, needs("users:write", own=True)]
    ) -> None:
        theirs(caller, command.user, Problem(403, "users change what is their own only"))
        await running.give(command, id=derived_id(command.user, command.type))

    return router


if __name__ == "__main__":
    serve(build, Settings)
