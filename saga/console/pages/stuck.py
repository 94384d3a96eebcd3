"""What waits for an overdue event, and for whom."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/stuck`."""
    router = APIRouter()

    @router.get("/stuck")
    async def stuck(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Stuck", said="not built yet")

    return router
