"""The books: each rule, and whether it holds."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/books`."""
    router = APIRouter()

    @router.get("/books")
    async def books(request: Request) -> Response:
        return site.page(request, "trouble.html", title="Books", said="not built yet")

    return router
