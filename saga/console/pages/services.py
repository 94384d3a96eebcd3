"""The services: what runs, in which version, and what waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.choreography import Choreography
from saga.console.access import needs
from saga.console.lookout import Processes
from saga.console.site import Site
from saga.deployment import Deployment
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

    @router.get("/services", dependencies=[needs("services:read")])
    async def services(request: Request) -> Response:
        watched = site.watched
        glance, processes, lag = await asyncio.gather(
            site.lookout.glance(request), site.lookout.processes(request), site.lookout.lag()
        )
        found, deployment = glance.status, watched.deployment
        elsewhere = [s.name for s in watched.graph.services if s.name not in deployment.http_urls]
        foreign = {participant.name: participant for participant in watched.graph.foreign}
        return site.page(
            request,
            "services.html",
            title="Services",
            command="saga status",
            found=found,
            glance=glance,
            unasked=[
                *(f"{name} has no address here" for name in elsewhere),
                *_unread(deployment, watched.graph),
            ],
            lag=lag,
            processes=processes,
            replicas=_rows(processes, deployment, watched.graph),
            versions={
                replica.version
                for replicas in processes.replicas.values()
                for replica in replicas
                if replica.version
            },
            elsewhere=elsewhere,
            foreign=foreign,
            dues=found.dues_by_name,
        )

    return router


def kind_of(said: str) -> str:
    """How what a service says of itself is shown."""
    if said == READY:
        return "good"
    return "warn" if said.startswith(READY_BUT) else "bad"


def _unread(deployment: Deployment, graph: Choreography) -> Iterator[str]:
    """What the status cannot read, as the deployment does not say where it is."""
    python = {participant.name for participant in graph.in_python}
    for participant in graph.participants:
        kept = participant.name in python or participant.dues
        if kept and participant.name not in deployment.database_urls:
            yield f"the deployment names no database of {participant.name}"


def _rows(
    processes: Processes, deployment: Deployment, graph: Choreography
) -> dict[str, list[ReplicaRow]]:
    if processes.at is not None:
        return {name: [*map(_row, found)] for name, found in processes.replicas.items()}
    return {
        service.name: [
            ReplicaRow(printable(url), "being asked", "", "")
            for url in deployment.http_urls[service.name]
        ]
        for service in graph.services
        if service.name in deployment.http_urls
    }


def _row(replica: Replica) -> ReplicaRow:
    return ReplicaRow(
        printable(replica.url),
        replica.said,
        kind_of(replica.said),
        replica.version or "not told",
    )
