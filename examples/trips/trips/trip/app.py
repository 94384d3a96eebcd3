"""The service that takes requests for trips, over HTTP as well as over the broker."""

from __future__ import annotations

from fastapi import APIRouter
from saga import Running, Service, Settings, derived_id, needs, serve

from trips.language import CallOff, RequestTrip
from trips.trip.domain import PARTICIPANT, Stage, Trip
from trips.trip.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    """What customers do. A command sent twice has the same id, so that it is done once."""
    router = APIRouter()

    @router.post("/trips", status_code=202, dependencies=[needs("trips:write")])
    async def request(command: RequestTrip) -> None:
        await running.give(command, id=derived_id(command.trip, command.type))

    @router.post("/trips/call-off", status_code=202, dependencies=[needs("trips:write")])
    async def call_off(command: CallOff) -> None:
        await running.give(command, id=derived_id(command.trip, command.type))

    @router.get("/trips/{trip:path}", dependencies=[needs("trips:read")])
    async def stage(trip: str) -> Stage:
        trips = TABLES.states[Trip]
        found = await running.database.read(lambda connection: trips.find(connection, trip))
        return Stage.UNKNOWN if found is None else found.stage

    return router


if __name__ == "__main__":
    serve(build, Settings)
