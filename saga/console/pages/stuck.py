"""What waits for an overdue event, and for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.access import needs
from saga.console.inquiry import Inquiry, apart, begun_for
from saga.console.one import LOOK_AGAIN_SECONDS
from saga.console.site import Site
from saga.history.debts import Debt
from saga.history.sequence import either
from saga.history.trace import Overdue, Stuck, stuck
from saga.history.whereabouts import MessageLocations

AGE_MIN_SECONDS: Final = 2.0
SHARE_MAX: Final = 0.05
"""Of the time, what looking may take."""
CATCH_UP_SECONDS: Final = 1.0
SHOWN_MAX: Final = 50
"""Sagas of one group."""
UNEXPLAINED_MAX: Final = 20
KEY_MAX: Final = 2_000
"""Characters of what names a group in an address."""


@dataclass(frozen=True, slots=True)
class DebtGroup:
    """Sagas in which the same participant owes the same answers to the same message."""

    participant: str
    answers: str
    to: str
    oldest: datetime
    members: Sequence[tuple[Stuck, Debt]]
    """The oldest first."""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.participant, self.answers, self.to

    @property
    def query(self) -> dict[str, str]:
        """What names it in an address, whichever groups there are besides."""
        return {"participant": self.participant, "answers": self.answers, "to": self.to}


def routes(site: Site) -> APIRouter:
    """`/stuck`."""
    router = APIRouter()

    async def look() -> Overdue:
        watched = site.watched
        deployment, graph = watched.deployment, watched.graph
        return await apart(lambda: stuck(deployment, graph, patience_seconds=CATCH_UP_SECONDS))

    looking: Inquiry[Overdue] = Inquiry(look)

    @router.get("/stuck", dependencies=[needs("sagas:read", personal=True)])
    async def page(
        request: Request,
        participant: Annotated[str, Query(max_length=KEY_MAX)] = "",
        answers: Annotated[str, Query(max_length=KEY_MAX)] = "",
        to: Annotated[str, Query(max_length=KEY_MAX)] = "",
        row: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> Response:
        fresh_seconds = max(AGE_MIN_SECONDS, looking.last_seconds / SHARE_MAX)
        await begun_for(
            request, looking, fresh_seconds=fresh_seconds, live_seconds=LOOK_AGAIN_SECONDS
        )
        found = looking.last
        groups = [] if found is None else grouped(found)
        wanted = participant, answers, to
        chosen = next((group for group in groups if group.key == wanted), None)
        return site.page(
            request,
            "stuck.html",
            title="Stuck",
            command="saga stuck",
            found=found,
            looking=looking,
            groups=groups,
            chosen=chosen,
            wanted=any(wanted),
            first=row,
            members=[] if chosen is None else _members(chosen, found, row),
            size=SHOWN_MAX,
            unexplained=[] if found is None else found.unexplained[:UNEXPLAINED_MAX],
        )

    return router


def grouped(found: Overdue) -> list[DebtGroup]:
    """Who owes what to what, with the group of the oldest debt first."""
    groups: dict[tuple[str, str, str], list[tuple[Stuck, Debt]]] = {}
    for one in found.subjects:
        for debt in one.debts:
            key = debt.participant, either(debt.answers), _to(debt)
            groups.setdefault(key, []).append((one, debt))
    made = [
        DebtGroup(*key, min(debt.since for _, debt in members), sorted(members, key=_since))
        for key, members in groups.items()
    ]
    return sorted(made, key=lambda group: group.oldest)


def _since(member: tuple[Stuck, Debt]) -> datetime:
    return member[1].since


def _to(debt: Debt) -> str:
    if debt.event is not None:
        return debt.event.type
    return f"{debt.firing.due.command.type}, which is due" if debt.firing is not None else ""


def _members(group: DebtGroup, found: Overdue | None, first: int) -> list[tuple[Stuck, Debt, str]]:
    whereabouts = found.whereabouts if found is not None else MessageLocations()
    return [
        (one, debt, whereabouts.of(debt.participant, debt.event.id).detail if debt.event else "")
        for one, debt in group.members[first : first + SHOWN_MAX]
    ]
