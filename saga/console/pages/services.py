"""The services: what runs, in which version, and what waits for it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site
from saga.runtime.urls import printable
from saga.status import READY, READY_BUT, Replica


@dataclass(frozen=True)
class ReplicaRow:
    """A process, as a line of the table."""

    url: str
    said: str
    kind: str
    version: str


def routes(site: Site) -> APIRouter:
    """`/services`."""
    router = APIRouter()

    @router.get("/services")
    async def services(request: Request) -> Response:
        watched = site.watched
        glance, processes, lag = await asyncio.gather(
            site.lookout.glance(request), site.lookout.processes(request), site.lookout.lag()
        )
        found = glance.status
        foreign = {participant.name: participant for participant in watched.graph.foreign}
        return site.page(
            request,
            "services.html",
            title="Services",
            command="saga status",
            found=found,
            lacking=glance.lacking,
            lag=lag,
            replicas={
                name: [_row(replica) for replica in replicas]
                for name, replicas in processes.items()
            },
            versions={
                replica.version
                for replicas in processes.values()
                for replica in replicas
                if replica.version
            },
            elsewhere=[
                service.name for service in watched.graph.services if service.name not in processes
            ],
            foreign=foreign,
            dues=found.dues_by_name,
        )

    return router


def kind_of(said: str) -> str:
    """How what a service says of itself is shown."""
    if said == READY:
        return "good"
    return "warn" if said.startswith(READY_BUT) else "bad"


def _row(replica: Replica) -> ReplicaRow:
    return ReplicaRow(
        printable(replica.url),
        replica.said,
        kind_of(replica.said),
        replica.version or "not told",
    )
