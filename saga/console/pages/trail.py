"""Who was let in and who was not, here and at the services, and who looked at data of people: the
audit trail."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, BeforeValidator, ConfigDict
from starlette.requests import Request

from saga.auth.audit import Audited, AuditError, entries
from saga.console.access import needs
from saga.console.forms import PAGE, After, Given, or_none, place_of, read_place
from saga.console.site import Site

LINES_MAX: Final = 20_000
"""Lines of the trail that are read for one page; the next page goes on behind them."""


class TrailListed(BaseModel):
    """Which decisions: all that is given has to fit. `person` and `action` are parts of what is
    recorded."""

    model_config = ConfigDict(extra="forbid")

    person: Given = None
    action: Given = None
    allowed: Annotated[Literal["yes", "no"] | None, BeforeValidator(or_none)] = None
    personal: Annotated[Literal["yes"] | None, BeforeValidator(or_none)] = None
    after: After = None

    def fits(self, decision: Audited) -> bool:
        who = f"{decision.who or ''} {decision.name}"
        return (
            (self.person is None or self.person.casefold() in who.casefold())
            and (self.action is None or self.action.casefold() in decision.action.casefold())
            and (self.allowed is None or decision.allowed == (self.allowed == "yes"))
            and (self.personal is None or decision.personal)
        )

    @property
    def filters(self) -> dict[str, str]:
        """Those given, as they stand in an address."""
        return self.model_dump(exclude={"after"}, exclude_none=True)


@dataclass(frozen=True, slots=True)
class FoundLines:
    """A page of them; `next` is the place behind which there is more to look at: a time, and how
    many lines of just that time are done with."""

    found: Sequence[Audited]
    looked_at: int
    next: tuple[datetime, int] | None
    unread: tuple[str, ...] = ()
    """Files with lines among those looked at that cannot be read."""


def routes(site: Site) -> APIRouter:
    """`/audit/trail`."""
    router = APIRouter()

    @router.get("/audit/trail", dependencies=[needs("audit:read")])
    async def trail(request: Request, wanted: Annotated[TrailListed, Query()]) -> Response:
        place = None if wanted.after is None else read_place(wanted.after, datetime, int)
        found, unread = FoundLines((), 0, None), ""
        try:
            if site.audit_folder is not None:
                found = await asyncio.to_thread(_look, site.audit_folder, wanted, place)
                if found.unread:
                    unread = f"lines in {', '.join(found.unread)} are not in this list"
        except AuditError as error:
            unread = str(error)
        return site.page(
            request,
            "trail.html",
            title="Who was let in",
            wanted=wanted,
            found=found,
            unread=unread,
            folder=site.audit_folder,
            kept=site.audit_folder is not None and site.audit_folder.is_dir(),
            next=None if found.next is None else place_of(*found.next),
        )

    return router


def _look(folder: Path, wanted: TrailListed, place: tuple[datetime, int] | None) -> FoundLines:
    """A page of what fits, of the newest lines behind that place; blocks. Raises `AuditError`."""
    until, done = (None, 0) if place is None else place
    found: list[Audited] = []
    unread: set[Path] = set()
    looked_at, at, of_that_time = 0, until, 0
    for decision in entries(folder, until, unread.add):
        of_that_time = of_that_time + 1 if decision.at == at else 1
        at = decision.at
        if at == until and of_that_time <= done:
            continue
        looked_at += 1
        if wanted.fits(decision):
            found.append(decision)
        if len(found) == PAGE or looked_at == LINES_MAX:
            return FoundLines(found, looked_at, (at, of_that_time), _names(unread))
    return FoundLines(found, looked_at, None, _names(unread))


def _names(files: Iterable[Path]) -> tuple[str, ...]:
    return tuple(sorted(file.name for file in files))
