"""Sagas: found by what is known of them, and one of them told."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from fastapi.responses import Response
from markupsafe import Markup
from starlette.requests import Request

from saga.archive import queries
from saga.archive.routes import SubjectsWanted, cursor, read_cursor
from saga.console.site import Site
from saga.history.drawing import as_svg
from saga.history.trace import trace


def routes(site: Site) -> APIRouter:
    """`/sagas`."""
    router = APIRouter()

    @router.get("/sagas")
    async def sagas(request: Request, wanted: Annotated[SubjectsWanted, Query()]) -> Response:
        seen = None if wanted.after is None else read_cursor(wanted.after)
        found = await site.watched.read(
            lambda connection: queries.search(connection, wanted.search, wanted.limit, seen)
        )
        more = len(found) == wanted.limit
        last = cursor(found[-1].first_event_at, found[-1].key) if more else None
        return site.page(
            request,
            "sagas.html",
            title="Sagas",
            subjects=found,
            wanted=wanted.model_dump(mode="json", exclude_none=True, exclude_defaults=True),
            next=last,
        )

    @router.get("/sagas/{subject:path}")
    async def one(request: Request, subject: str) -> Response:
        watched = site.watched
        found = await trace(watched.deployment, watched.graph, subject)
        return site.page(
            request,
            "saga.html",
            title=subject,
            command=f"saga trace {subject}",
            found=found,
            picture=Markup(as_svg(found.diagram, subject)),  # noqa: S704 - escaped by `as_svg`
        )

    return router
