"""Who changed what, and why."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/audit`."""
    router = APIRouter()

    @router.get("/audit")
    async def audit(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Audit", said="not built yet")

    return router
