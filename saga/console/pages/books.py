"""The books: each rule, what was found of it last, and what people have to decide."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import RedirectResponse, Response
from starlette.requests import Request

from saga.console.forms import asked_here
from saga.console.inquiry import Inquiry, apart
from saga.console.site import Site
from saga.errors import InputError
from saga.reconcile import Report, reconcile
from saga.reconcile.verdicts import verdicts

OFFENDERS_MAX: Final = 20
"""Of one rule, and of one kind of decisions."""
GRACE_SECONDS: Final = 10.0
"""As the command has it: only sagas that have been still for so long are judged."""


def routes(site: Site) -> APIRouter:
    """`/books`."""
    router = APIRouter()

    async def check() -> Report:
        watched = site.watched
        deployment, saga = watched.deployment, watched.saga
        return await apart(lambda: reconcile(deployment, saga=saga, grace_seconds=GRACE_SECONDS))

    checking: Inquiry[Report] = Inquiry(check)

    @router.get("/books")
    async def books(
        request: Request,
        run: Annotated[int | None, Query(ge=1, le=10**9)] = None,
        rule: Annotated[str | None, Query(max_length=200)] = None,
        row: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> Response:
        # It reads the whole history and changes nothing. Each run has a number, so that nothing
        # that is asked for again, by a refresh say, begins another one.
        if run is not None:
            if not asked_here(request):
                raise InputError("run: a page of another site does not begin a reconciliation")
            checking.begin_number(run)
            return RedirectResponse(site.url("/books"), status_code=303)
        report = checking.last
        found = verdicts(site.watched.saga, report)
        chosen = next((one for one in found if one.name == rule), None)
        return site.page(
            request,
            "books.html",
            title="Books",
            command=f"saga reconcile --grace {GRACE_SECONDS:g}",
            checking=checking,
            report=report,
            verdicts=found,
            chosen=chosen,
            first=row,
            size=OFFENDERS_MAX,
            decidable={choice.rule for choice in site.watched.saga.choices},
            begin=site.url("/books", run=checking.number + 1),
        )

    return router
