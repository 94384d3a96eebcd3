"""The history service: follows every event, and answers questions about what they are about."""

from __future__ import annotations

import contextlib

import sqlalchemy as sa

from saga.archive import OBSERVER
from saga.archive.follower import Follower
from saga.archive.routes import routes
from saga.archive.store import places, schema_of
from saga.archive.views import projection_of
from saga.auth.access import serve_routes
from saga.discovery import choreography
from saga.personal.persons import Persons
from saga.runtime import metrics, process
from saga.runtime.disk import Disks, Halt
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.personal import guarded
from saga.runtime.readiness import Look, Missing, Readiness
from saga.runtime.retry_loop import troubles
from saga.runtime.service import disks_of
from saga.runtime.settings import Settings
from saga.runtime.web import create_app


def build(settings: Settings) -> process.Process:
    """The history service. Raises `ChoreographyError`."""
    # What can be read are the messages of all participants, so their domains come first.
    projection = projection_of(choreography())

    async def assemble(database: Database, stack: contextlib.AsyncExitStack) -> process.Parts:
        persons = Persons(settings)
        stack.push_async_callback(persons.close)
        await persons.check()
        follower = Follower(settings.broker_url, database, projection)
        disks = disks_of(
            OBSERVER.name,
            settings,
            {},
            on_halt=lambda halt: follower.hold_back(halt is Halt.ALL_WORK),
        )
        await disks.look()
        readiness = Readiness(
            Look(lambda: _read(database), explain=lambda why: {"database": why}),
            known=lambda: _known(follower, disks),
            troubles=lambda: {"stream": why} if (why := follower.stream_lacks) else {},
        )
        app = create_app(
            f"{OBSERVER.name} service",
            settings,
            readiness=readiness,
            before_scrape=lambda: _read_figures(follower),
        )
        serve_routes(app, routes(database, projection))
        if (view := projection.view) is not None:
            routes_of_view = view.routes(database, projection.choreography, utc_now)
            serve_routes(app, guarded(routes_of_view, persons))
        return process.Parts(
            app,
            tasks=(follower.run(), readiness.run(), disks.run()),
            start=lambda: follower.start(settings.broker_patience_seconds),
            stop=follower.stop,
            finish=follower.finish,
        )

    return process.Process(OBSERVER.name, schema_of(projection), assemble)


async def _read_figures(follower: Follower) -> None:
    metrics.tell_retry_loops(OBSERVER.name, follower.retry_loops)


async def _read(database: Database) -> Missing:
    """Read from the database. Raises what that raises."""
    query = sa.select(places.c.offset)
    await database.read(lambda connection: connection.execute(query).first())
    return {}


def _known(follower: Follower, disks: Disks) -> Missing:
    """What is missing as far as the service knows without a query."""
    missing = troubles(follower.retry_loops)
    if disks.lack:
        missing["disk"] = disks.lack
    if follower.trouble:
        missing["stream"] = follower.trouble
    return missing


def serve() -> None:
    """Run the service with its settings from the environment."""
    process.main(build, Settings)


if __name__ == "__main__":
    serve()
