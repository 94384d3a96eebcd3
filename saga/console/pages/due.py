"""What is due when, and what is brought forward."""

from __future__ import annotations

from datetime import UTC, datetime
from shlex import quote
from typing import Annotated, Final

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga import dues
from saga.console.access import needs
from saga.console.forms import PAGE, After, Given, Reason, place_of, read_place
from saga.console.site import Site, segment
from saga.dlq.audit import who
from saga.dues import DueError, Item
from saga.errors import InputError
from saga.runtime.problem import Problem, short

ENTRIES: Final = 20
"""Of the audit record, on the page of one state."""


class DueListed(BaseModel):
    """What of that which is due is listed."""

    model_config = ConfigDict(extra="forbid")

    participant: Given = None
    subject: Given = None
    after: After = None


class ForwardWanted(BaseModel):
    """Why something is brought forward."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason


def routes(site: Site) -> APIRouter:
    """`/due`."""
    router = APIRouter()
    watched = site.watched

    @router.get("/due", dependencies=[needs("dues:read")])
    async def list_(request: Request, wanted: Annotated[DueListed, Query()]) -> Response:
        place = None
        if wanted.after is not None:
            place = read_place(wanted.after, datetime, str, str, str)
        found = await dues.page(
            watched.deployment,
            watched.graph,
            participant=wanted.participant,
            subject=wanted.subject,
            limit=PAGE,
            after=place,
        )
        options = f" --participant {wanted.participant}" if wanted.participant else ""
        subject = f" {quote(wanted.subject)}" if wanted.subject else ""
        return site.page(
            request,
            "dues.html",
            title="Due",
            command=f"saga due{subject}{options}",
            wanted=wanted,
            participants=dues.auditing(watched.graph),
            found=found,
            moment=datetime.now(UTC),
            address_of=_address,
            next=place_of(*found.next) if found.next else None,
        )

    @router.get("/due/{participant}/{kind}/{subject:path}", dependencies=[needs("dues:read")])
    async def one(request: Request, participant: str, kind: str, subject: str) -> Response:
        item = await item_of(participant, kind, subject)
        entries = await dues.audit(
            watched.deployment,
            watched.graph,
            participant=participant,
            subject=subject,
            limit=ENTRIES,
        )
        entries = [entry for entry in entries if entry.kind == kind]
        if item is None and not entries:
            raise Problem(404, f"nothing is due about {kind} {short(subject)!r} in {participant}")
        return site.page(
            request,
            "due.html",
            title=f"Due about {kind} {subject}",
            command=f"saga due {quote(subject)} --participant {participant} --bring-forward "
            f'--reason "..."',
            item=item,
            kind=kind,
            subject=subject,
            entries=entries,
            moment=datetime.now(UTC),
        )

    @router.post("/due/{participant}/{kind}/{subject:path}", dependencies=[needs("dues:write")])
    async def forward(
        participant: str, kind: str, subject: str, form: Annotated[ForwardWanted, Form()]
    ) -> Response:
        item = await item_of(participant, kind, subject)
        if item is None:
            raise Problem(
                409,
                f"nothing is due about {kind} {short(subject)!r} any more: it was done meanwhile",
            )
        try:
            await dues.bring_forward(watched.deployment, item, who=who(), reason=form.reason)
        except DueError as error:
            raise Problem(409, str(error)) from error
        return RedirectResponse(site.url(_address(item)), 303)

    async def item_of(participant: str, kind: str, subject: str) -> Item | None:
        try:
            listing = await dues.listing(
                watched.deployment, watched.graph, participant=participant, subject=subject
            )
        except InputError as error:
            raise Problem(404, str(error)) from error
        return next((item for item in listing.items if item.kind == kind), None)

    return router


def _address(item: Item) -> str:
    return f"/due/{item.participant}/{item.kind}/{segment(item.subject)}"
