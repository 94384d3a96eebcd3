"""The service that takes tasks."""

from __future__ import annotations

from fastapi import APIRouter
from saga import Running, Service, Settings, derived_id, needs, serve

from taskflow.language import CompleteTask, CreateTask
from taskflow.tasks.domain import PARTICIPANT
from taskflow.tasks.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    """What users do. Their commands have ids of their own, so that one sent twice is done once."""
    router = APIRouter()

    @router.post("/tasks", status_code=202, dependencies=[needs("tasks:write")])
    async def create(command: CreateTask) -> None:
        await running.give(command, id=derived_id(command.task, command.type))

    @router.post("/tasks/complete", status_code=202, dependencies=[needs("tasks:write")])
    async def complete(command: CompleteTask) -> None:
        await running.give(command, id=derived_id(command.task, command.type))

    return router


if __name__ == "__main__":
    serve(build, Settings)
