"""The map: what flows where, now or at any minute."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query
from fastapi.responses import Response
from markupsafe import Markup
from sqlalchemy.engine import Connection
from starlette.requests import Request

from saga.archive import OBSERVER
from saga.archive.queries import count_open
from saga.archive.traffic import (
    WINDOW,
    ArchiveSpan,
    Excerpt,
    Ways,
    excerpt,
    open_at,
    span,
    traffic,
)
from saga.console.access import needs
from saga.console.lookout import SystemSnapshot
from saga.console.map_figures import LetterCounts, MapFigures
from saga.console.moments import Slider, read_moment
from saga.console.site import Site
from saga.dlq import DlqError
from saga.dlq.lookup import count
from saga.graph.flow import Flow
from saga.graph.svg import svg
from saga.history import HistoryError
from saga.history.waiting import LOOKED_AT_MAX
from saga.runtime.kernel.database import DatabaseError

T = TypeVar("T")


def routes(site: Site) -> APIRouter:
    """`/`."""
    router = APIRouter()
    drawn = _Drawn(site)

    @router.get("/", dependencies=[needs("map:read")])
    async def whole_map(
        request: Request,
        at: Annotated[str | None, Query(max_length=64)] = None,
        compare: bool = False,
    ) -> Response:
        past = read_moment(at)
        moment = past or datetime.now(UTC)
        archived, letters, glance, lag, compared = await asyncio.gather(
            _archived(site, moment, is_past=past is not None),
            _letters(site, moment, is_past=past is not None),
            site.lookout.glance(request),
            _unless(past, site.lookout.lag()),
            _unless(past, site.lookout.compared(wanted=compare)),
        )
        untaken = None if past else await site.lookout.untaken_if_any(glance)
        figures = MapFigures(
            drawn.flow,
            site.url,
            traffic(archived.excerpt, drawn.ways),
            letters.counts,
            None if past else glance,
            compared,
            untaken,
        )
        there = archived.span
        return site.page(
            request,
            "whole_map.html",
            title="Map",
            command="saga map",
            still=past is not None,
            picture=Markup(svg(drawn.flow, figures.overlay)),  # noqa: S704 - escaped by `svg`
            figures=figures,
            archived=archived,
            letters=letters,
            glance=glance,
            uncollected=sum(glance.status.uncollected.values()),
            lag=lag,
            untaken=untaken,
            looked_at_max=LOOKED_AT_MAX,
            observers_down=_observers_down(site, glance),
            recorder=OBSERVER.name,
            past=past,
            slider=Slider.over(there.first, there.last, moment) if there else None,
            compare=compare,
        )

    return router


def _observers_down(site: Site, glance: SystemSnapshot) -> dict[str, str]:
    """Keyed by observer that is down: what it lacks."""
    observers = {observer.name for observer in site.watched.graph.observers}
    return {name: said for name, said in glance.down.items() if name in observers}


async def _unless(past: datetime | None, asked: Coroutine[Any, Any, T]) -> T | None:
    """What is known of now only."""
    if past is None:
        return await asked
    asked.close()
    return None


class _Drawn:
    """What is the same of every map. The domains are looked for once there is a page to show."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @cached_property
    def flow(self) -> Flow:
        return Flow(self._site.watched.graph)

    @cached_property
    def ways(self) -> Ways:
        return Ways(self.flow)


@dataclass(frozen=True)
class Archived:
    """What the archive says of a moment; or why it cannot be asked."""

    excerpt: Excerpt
    span: ArchiveSpan | None = None
    open: int = 0
    and_older: bool = False
    """Whether there are sagas that began so long before that they were not looked at."""
    lacking: str = ""


async def _archived(site: Site, moment: datetime, *, is_past: bool) -> Archived:
    def read(connection: Connection) -> Archived:
        # Now, they are those that the page behind the figure lists.
        found, older = open_at(connection, moment) if is_past else (count_open(connection), False)
        return Archived(excerpt(connection, moment), span(connection), found, older)

    try:
        return await site.watched.read(read)
    except (DatabaseError, HistoryError) as error:
        return Archived(Excerpt(moment - WINDOW, moment), lacking=str(error))


@dataclass(frozen=True)
class LettersThen:
    """The dead letters in the store, or those that failed first in the minute before; or why
    neither is known."""

    counts: LetterCounts
    lacking: str = ""


async def _letters(site: Site, moment: datetime, *, is_past: bool) -> LettersThen:
    within = (moment - WINDOW, moment) if is_past else None
    try:
        url = site.watched.deployment.dead_letters_url
        return LettersThen(await asyncio.to_thread(partial(count, url, within)))
    except DlqError as error:
        return LettersThen({}, str(error))
