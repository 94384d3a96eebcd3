"""The services: what runs, in which version, and what waits for it."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site
from saga.local.supervision import Supervision
from saga.status import status


def routes(site: Site) -> APIRouter:
    """`/services`."""
    router = APIRouter()

    @router.get("/services")
    async def services(request: Request) -> Response:
        watched = site.watched
        supervision = await asyncio.to_thread(Supervision.load, watched.folder)
        found = await status(watched.deployment, watched.graph, supervision)
        return site.page(
            request,
            "services.html",
            title="Services",
            command="saga status",
            found=found,
            urls=watched.deployment.http_urls,
        )

    return router
