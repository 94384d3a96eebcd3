"""The proof: what the scenarios came to, what production does beyond them, and players for what
went wrong."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from shlex import quote as quoted
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import RedirectResponse, Response
from starlette.requests import Request

from saga.console.inquiry import Inquiry
from saga.console.production import production, unmodelled
from saga.console.proving import PlayedLine, PlayedRun, play_apart, prove_apart
from saga.console.site import Site
from saga.deployment import DeploymentError
from saga.errors import InputError
from saga.history import HistoryError
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.problem import Problem
from saga.verify.proof import Proof

SEED_MAX: Final = 2**31
RUNS_MAX: Final = 4
"""Runs of the simulation that are kept."""
PLAYED_SECONDS: Final = 0.1
"""How long a page waits for a run, before it says that it is under way."""
LINES_MAX: Final = 25
"""Of a run, on one page."""


def routes(site: Site) -> APIRouter:
    """`/proof`."""
    router = APIRouter()
    watched = site.watched
    proving: Inquiry[None] = Inquiry(lambda: prove_apart(watched))
    playing: OrderedDict[int, Inquiry[PlayedRun]] = OrderedDict()

    @router.get("/proof")
    async def proof(
        request: Request, run: Annotated[int | None, Query(ge=1, le=10**9)] = None
    ) -> Response:
        # As with the books: each run has a number, and a refresh begins none.
        if run is not None:
            if request.headers.get("sec-fetch-site", "none") == "cross-site":
                raise InputError("run: a page of another site begins no exploration")
            proving.begin_number(run)
            return RedirectResponse(site.url("/proof"), status_code=303)
        found = await asyncio.to_thread(Proof.load, watched.folder)
        if found is not None and found.saga != watched.saga.name:
            found = None
        taken, unread = None, ""
        try:
            taken = await watched.read(lambda connection: production(connection, watched.graph))
        except (HistoryError, DeploymentError, DatabaseError) as error:
            unread = str(error)
        missing = unmodelled(taken.transitions, found.answered) if taken and found else []
        known = {each.key for each in taken.transitions} if taken else set()
        return site.page(
            request,
            "proof.html",
            title="Proof",
            command="saga verify",
            proving=proving,
            proof=found,
            taken=taken,
            unread=unread,
            missing=missing,
            only_modelled=[each for each in found.answered if each not in known] if found else [],
            begin=site.url("/proof", run=proving.number + 1),
            scenarios=[scenario.name for scenario in watched.saga.scenarios],
        )

    @router.get("/proof/scenario/{name:path}")
    async def scenario(
        request: Request, name: str, step: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> Response:
        found = await asyncio.to_thread(Proof.load, watched.folder)
        one = next((s for s in found.scenarios if s.name == name), None) if found else None
        if one is None:
            raise Problem(404, f"nothing is known of a scenario {name!r}; see /proof")
        steps = one.violation.steps if one.violation is not None else []
        last = len(steps)
        return site.page(
            request,
            "proof_scenario.html",
            title=one.name,
            command=f"saga verify --scenario {quoted(one.name)}",
            scenario=one,
            step=min(step, last),
            last=last,
        )

    @router.get("/proof/seed")
    async def chosen(seed: Annotated[int, Query(ge=0, le=SEED_MAX)]) -> Response:
        return RedirectResponse(site.url(f"/proof/seed/{seed}"), status_code=303)

    @router.get("/proof/seed/{seed}")
    async def play(
        request: Request,
        seed: Annotated[int, Path(ge=0, le=SEED_MAX)],
        step: Annotated[int, Query(ge=1, le=10**9)] = 1,
    ) -> Response:
        if seed not in playing:
            playing[seed] = Inquiry(lambda: play_apart(watched, seed))
            while len(playing) > RUNS_MAX:
                playing.popitem(last=False)
        inquiry = playing[seed]
        if inquiry.last is None and not inquiry.failed:
            inquiry.begin()
            await inquiry.soon(PLAYED_SECONDS)
        lines = inquiry.last.lines if inquiry.last is not None else ()
        step = max(1, min(step, len(lines)))
        first = max(0, (step - 1) // LINES_MAX * LINES_MAX)
        return site.page(
            request,
            "proof_seed.html",
            title=f"Seed {seed}",
            command=f"saga verify --simulate --seed {seed} --seeds 1",
            seed=seed,
            inquiry=inquiry,
            run=inquiry.last,
            step=step,
            last=len(lines),
            first=first,
            lines=list(enumerate(lines[first : first + LINES_MAX], first + 1)),
            parts=_parts(lines, step),
        )

    return router


def _parts(lines: Sequence[PlayedLine], step: int) -> list[tuple[str, str, str]]:
    """Of everybody who has done something by a step: what they did last before it, and by then."""
    before: dict[str, str] = {}
    for line in lines[: step - 1]:
        before[line.who] = line.what
    now = dict(before)
    if lines:
        now[lines[step - 1].who] = lines[step - 1].what
    return [(who, before.get(who, ""), now[who]) for who in sorted(now)]
