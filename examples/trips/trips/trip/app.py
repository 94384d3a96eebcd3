"""The service that takes requests for trips, over HTTP as well as over the broker."""

from __future__ import annotations

from fastapi import APIRouter
from pydantic import BaseModel
from saga import Problem, Running, Service, Settings, derived_id, needs, serve

from trips.language import CallOff, RequestTrip, Traveller
from trips.trip.domain import PARTICIPANT, Stage, Trip
from trips.trip.store import TABLES


class TripView(BaseModel):
    """A trip, as it is shown. The engine opens the name for who may read it."""

    stage: Stage
    traveller: Traveller


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    """What customers do. A command sent twice has the same id, so that it is done once."""
    router = APIRouter()

    @router.post("/trips", status_code=202, dependencies=[needs("trips:write")])
    async def request(command: RequestTrip) -> None:
        await running.give(command, id=derived_id(command.trip, command.type))

    @router.post(
        "/trips/{trip:path}/call-off", status_code=202, dependencies=[needs("trips:write")]
    )
    async def call_off(trip: str) -> None:
        """404 for a trip that no client asked for, 409 for one that is booked."""
        if (await find(trip)).stage is Stage.UNKNOWN:
            raise Problem(404, f"there is no trip {trip}")
        command = CallOff(trip=trip)
        await running.give(command, id=derived_id(trip, command.type))
        stage = (await find(trip)).stage
        if stage is not Stage.CANCELLED:
            raise Problem(409, f"the trip is {stage}", trip_stage=stage)

    @router.get("/trips/{trip:path}", dependencies=[needs("trips:read", personal=True)])
    async def show(trip: str) -> TripView:
        found = await find(trip)
        return TripView(stage=found.stage, traveller=found.traveller)

    async def find(trip: str) -> Trip:
        trips = TABLES.states[Trip]
        found = await running.database.read(lambda connection: trips.find(connection, trip))
        return found or Trip(trip)

    return router


if __name__ == "__main__":
    serve(build, Settings)
