"""The books: each rule, what was found of it last, and what people have to decide."""

from __future__ import annotations

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.access import needs
from saga.console.inquiry import Inquiry, apart, begun_by
from saga.console.site import Site
from saga.console.watched import Watched
from saga.reconcile import reconcile
from saga.reconcile.saved import SavedReport, SavedVerdict
from saga.reconcile.verdicts import RuleStanding, RuleVerdict, verdicts
from saga.runtime.kernel.tables import utc_now

ROWS_MAX: Final = 20
"""Offenders of one rule, and subjects of one kind of decisions, on one page."""
GRACE_SECONDS: Final = 10.0
"""As the command has it: only sagas that have been still for so long are judged."""


def routes(site: Site) -> APIRouter:
    """`/books`."""
    router = APIRouter()
    books = _Reconciliations(site.watched)

    @router.get("/books", dependencies=[needs("books:read")])
    async def page(
        request: Request,
        run: Annotated[int | None, Query(ge=1, le=10**9)] = None,
        rule: Annotated[str | None, Query(max_length=200)] = None,
        row: Annotated[int, Query(ge=0, le=10**9)] = 0,
    ) -> Response:
        if (begun := begun_by(request, books.reading, run, site.url("/books"))) is not None:
            return begun
        report, unreadable = await books.newest()
        found = _by_rule(verdicts(site.watched.saga, None), report)
        chosen = next((verdict for known, verdict in found if known.name == rule), None)
        return site.page(
            request,
            "books.html",
            title="Books",
            command=f"saga reconcile --grace {GRACE_SECONDS:g}",
            checking=books.reading,
            report=report,
            unreadable=unreadable,
            unsaved=books.unsaved,
            verdicts=found,
            chosen=chosen,
            first=row,
            size=ROWS_MAX,
            decidable={choice.rule for choice in site.watched.saga.choices},
            begin=site.url("/books", run=books.reading.number + 1),
        )

    return router


class _Reconciliations:
    """What was found last, by this console or by the command that saved it. Belongs to one event
    loop."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.unsaved = ""
        """Why the last one is not in the data folder; empty if it is."""
        self.reading: Inquiry[SavedReport] = Inquiry(self._read)

    async def _read(self) -> SavedReport:
        watched, began_at = self._watched, utc_now()
        deployment, saga = watched.deployment, watched.saga

        async def read() -> SavedReport:
            report = await reconcile(deployment, saga=saga, grace_seconds=GRACE_SECONDS)
            return SavedReport.of(
                saga,
                report,
                command="saga console",
                began_at=began_at,
                took=utc_now() - began_at,
                grace_seconds=GRACE_SECONDS,
            )

        report = await apart(read)
        self.unsaved = ""
        try:
            await asyncio.to_thread(report.save, watched.folder)
        except OSError as error:
            self.unsaved = f"cannot write {error.filename}: {error.strerror}"
        return report

    async def newest(self) -> tuple[SavedReport | None, str]:
        """The newest of this saga; and why what was saved cannot be read, if so."""
        saved, unreadable = await asyncio.to_thread(SavedReport.read, self._watched.folder)
        found = [
            report
            for report in (saved, self.reading.last)
            if report is not None and report.saga == self._watched.saga.name
        ]
        return max(found, key=lambda report: report.began_at, default=None), unreadable


def _by_rule(
    rules: list[RuleVerdict], report: SavedReport | None
) -> list[tuple[RuleVerdict, SavedVerdict]]:
    """Each rule that there is, and what was found of it; those first that an operator should
    look at."""
    known = {} if report is None else {verdict.name: verdict for verdict in report.verdicts}
    unknown = RuleStanding.UNKNOWN
    found = [
        (rule, known.get(rule.name) or SavedVerdict(name=rule.name, standing=unknown))
        for rule in rules
    ]
    return sorted(found, key=lambda each: each[1].standing.rank)
