"""The map: what flows where, now or at any minute."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/`."""
    router = APIRouter()

    @router.get("/")
    async def whole_map(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Map", said="not built yet")

    return router
