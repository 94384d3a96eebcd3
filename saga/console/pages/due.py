"""What is due, and when."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/due`."""
    router = APIRouter()

    @router.get("/due")
    async def due(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Due", said="not built yet")

    return router
