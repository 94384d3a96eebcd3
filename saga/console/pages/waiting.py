"""The sagas that wait for a participant: what was published for it, and it has not taken yet."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.access import needs
from saga.console.live import is_live
from saga.console.lookout import WAIT_SECONDS
from saga.console.site import Site
from saga.history.waiting import LOOKED_AT_MAX
from saga.runtime.messaging.topology import reads
from saga.runtime.problem import Problem, short

SHOWN_MAX: Final = 50
"""Messages of one page."""


def routes(site: Site) -> APIRouter:
    """`/waiting`."""
    router = APIRouter()

    @router.get("/waiting", dependencies=[needs("sagas:read")])
    async def waiting(
        request: Request,
        participant: Annotated[str, Query(max_length=64)] = "",
        type_: Annotated[str, Query(alias="type", max_length=255)] = "",
        row: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> Response:
        graph = site.watched.graph
        chosen = next((one for one in graph.participants if one.name == participant), None)
        if participant and chosen is None:
            names = ", ".join(one.name for one in graph.participants)
            raise Problem(404, f"there is no participant {short(participant)!r}; there are {names}")
        untaken, glance = await asyncio.gather(
            site.lookout.untaken(WAIT_SECONDS, again=not is_live(request)),
            site.lookout.glance(request),
        )
        shown = [one for one in graph.participants if chosen in (None, one)]
        messages = [
            message
            for message in untaken.messages.untaken
            if participant in ("", message.participant) and type_ in ("", message.type)
        ]
        return site.page(
            request,
            "waiting.html",
            title="Waiting",
            participant=participant,
            type=type_,
            participants=[one.name for one in graph.participants],
            types=sorted({kind.type for one in shown for kind in one.messages}),
            untaken=untaken,
            unread={
                one.name: why
                for one in shown
                if (why := untaken.messages.unread.get(one.name)) is not None
            },
            glance=glance,
            queues={
                name: queue
                for one in shown
                for name, queue in glance.status.queues.items()
                if reads(one, name)
            },
            messages=messages,
            first=row,
            size=SHOWN_MAX,
            looked_at_max=LOOKED_AT_MAX,
        )

    return router
