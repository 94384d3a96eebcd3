"""The service that registers users."""

from __future__ import annotations

from fastapi import APIRouter
from saga import Running, Service, Settings, derived_id, serve

from taskflow.language import RegisterUser
from taskflow.users.domain import PARTICIPANT
from taskflow.users.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    router = APIRouter()

    @router.post("/users", status_code=202)
    async def register(command: RegisterUser) -> None:
        await running.give(command, id=derived_id(command.user, command.type))

    return router


if __name__ == "__main__":
    serve(build, Settings)
