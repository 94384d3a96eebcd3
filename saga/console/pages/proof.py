"""What was proved, and what was not looked at."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/proof`."""
    router = APIRouter()

    @router.get("/proof")
    async def proof(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Proof", said="not built yet")

    return router
