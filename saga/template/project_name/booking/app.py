"""The service that takes requests for stays, over HTTP as well as over the broker."""

from __future__ import annotations

from fastapi import APIRouter
from saga import Running, Service, Settings, derived_id, needs, serve

from project_name.booking.domain import PARTICIPANT, Stage, Stay
from project_name.booking.store import TABLES
from project_name.language import CallOff, RequestStay


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    """What guests do. Their commands have ids of their own, so that one sent twice is done once."""
    router = APIRouter()

    @router.post("/stays", status_code=202, dependencies=[needs("stays:write")])
    async def request(command: RequestStay) -> None:
        await running.give(command, id=derived_id(command.stay, command.type))

    @router.post("/stays/call-off", status_code=202, dependencies=[needs("stays:write")])
    async def call_off(command: CallOff) -> None:
        await running.give(command, id=derived_id(command.stay, command.type))

    @router.get("/stays/{stay:path}", dependencies=[needs("stays:read")])
    async def stage(stay: str) -> Stage:
        stays = TABLES.states[Stay]
        found = await running.database.read(lambda connection: stays.find(connection, stay))
        return Stage.UNKNOWN if found is None else found.stage

    return router


if __name__ == "__main__":
    serve(build, Settings)
