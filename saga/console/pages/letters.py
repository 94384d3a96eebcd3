"""Dead letters: what went wrong, and what to do about it."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/letters`."""
    router = APIRouter()

    @router.get("/letters")
    async def letters(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Dead letters", said="not built yet")

    return router
