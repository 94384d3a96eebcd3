"""The proof: what the scenarios came to, what production does beyond them, and players for what
went wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from shlex import quote as quoted
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query
from fastapi.responses import RedirectResponse, Response
from markupsafe import Markup
from starlette.requests import Request

from saga.console.access import needs
from saga.console.forms import asked_here
from saga.console.inquiry import SHOWN_SECONDS, Inquiry, begun_by
from saga.console.live import is_live
from saga.console.playing import SeedRuns
from saga.console.proving import PlayedLine, play_apart, prove_apart
from saga.console.site import Site
from saga.console.watched import Watched
from saga.deployment import DeploymentError
from saga.graph.flow import Flow
from saga.graph.svg import svg
from saga.history import HistoryError
from saga.past.production import production, unmodelled
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.problem import Problem
from saga.simulation.tried import SimulatedRuns
from saga.verify.coverage import CoverageRow, coverage, tried_on, untried
from saga.verify.proof import Proof
from saga.verify.sources import changed

SEED_MAX: Final = 2**31
LINES_MAX: Final = 25
"""Of a run, on one page."""


def routes(site: Site) -> APIRouter:
    """`/proof`."""
    router = APIRouter()
    watched = site.watched
    proofs = _Proofs(watched)
    proving = proofs.exploring
    runs = SeedRuns(lambda seed: play_apart(watched, seed))

    @router.get("/proof", dependencies=[needs("proof:read")])
    async def proof(
        request: Request, run: Annotated[int | None, Query(ge=1, le=10**9)] = None
    ) -> Response:
        if (begun := begun_by(request, proving, run, site.url("/proof"))) is not None:
            return begun
        found = await proofs.finished()
        taken, unread = None, ""
        try:
            taken = await watched.read(lambda connection: production(connection, watched.graph))
        except (HistoryError, DeploymentError, DatabaseError) as error:
            unread = str(error)
        missing = unmodelled(taken.transitions, found.answered) if taken and found else []
        known = {each.key for each in taken.transitions} if taken else set()
        runs = await asyncio.to_thread(SimulatedRuns.load, watched.folder)
        covered = _covered(watched, found, runs)
        return site.page(
            request,
            "proof.html",
            title="Proof",
            command="saga verify",
            proving=proving,
            proof=found or proofs.growing,
            growing=proofs.growing,
            unsaved=proofs.unsaved,
            changed=await asyncio.to_thread(changed, found.code) if found and found.code else None,
            taken=taken,
            unread=unread,
            missing=missing,
            only_modelled=[each for each in found.answered if each not in known] if found else [],
            runs=runs,
            covered=covered,
            untried=untried(covered),
            begin=site.url("/proof", run=proving.number + 1),
            scenarios=[scenario.name for scenario in watched.saga.scenarios],
        )

    @router.get("/proof/map", dependencies=[needs("proof:read")])
    async def tried_map(request: Request) -> Response:
        found = await proofs.finished()
        runs = await asyncio.to_thread(SimulatedRuns.load, watched.folder)
        flow = Flow(watched.graph)
        overlay = tried_on(flow, _covered(watched, found, runs))
        return site.page(
            request,
            "proof_map.html",
            title="What was tried, on the map",
            command="saga verify --coverage",
            proof=found,
            runs=runs,
            picture=Markup(svg(flow, overlay)),  # noqa: S704 - escaped by `svg`
        )

    @router.get("/proof/scenario/{name:path}", dependencies=[needs("proof:read")])
    async def scenario(
        request: Request, name: str, step: Annotated[int, Query(ge=0, le=10**9)] = 0
    ) -> Response:
        found = await proofs.finished() or proofs.growing
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

    @router.get("/proof/seed", dependencies=[needs("proof:read")])
    async def chosen(seed: Annotated[int, Query(ge=0, le=SEED_MAX)]) -> Response:
        return RedirectResponse(site.url(f"/proof/seed/{seed}"), status_code=303)

    @router.get("/proof/seed/{seed}", dependencies=[needs("proof:read")])
    async def play(
        request: Request,
        seed: Annotated[int, Path(ge=0, le=SEED_MAX)],
        step: Annotated[int, Query(ge=1, le=10**9)] = 1,
    ) -> Response:
        # A page that was left open begins nothing, nor does one of another site.
        if asked_here(request) and not is_live(request):
            await runs.begin(seed).soon(SHOWN_SECONDS)
        inquiry = runs.get(seed)
        run = inquiry.last if inquiry is not None else None
        lines = run.lines if run is not None else ()
        step = max(1, min(step, len(lines)))
        first = max(0, (step - 1) // LINES_MAX * LINES_MAX)
        return site.page(
            request,
            "proof_seed.html",
            title=f"Seed {seed}",
            command=f"saga verify --simulate --seed {seed} --seeds 1",
            seed=seed,
            inquiry=inquiry,
            run=run,
            step=step,
            last=len(lines),
            first=first,
            lines=list(enumerate(lines[first : first + LINES_MAX], first + 1)),
            parts=_parts(lines, step),
        )

    return router


def _covered(
    watched: Watched, proof: Proof | None, runs: SimulatedRuns | None
) -> list[CoverageRow]:
    return coverage(watched.saga, proof.took if proof else None, runs.took if runs else None)


class _Proofs:
    """The last exploration that was finished, and the one that is under way. Belongs to one event
    loop."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.growing: Proof | None = None
        """What is known so far of the one that is under way."""
        self.unsaved = ""
        """Why the last one is not in the data folder; empty if it is."""
        self.exploring: Inquiry[Proof] = Inquiry(self._explore)

    async def _explore(self) -> Proof:
        try:
            proof = await prove_apart(self._watched, self._grow)
        finally:
            self.growing = None
        self.unsaved = ""
        try:
            await asyncio.to_thread(proof.save, self._watched.folder)
        except OSError as error:
            self.unsaved = f"cannot write {error.filename}: {error.strerror}"
        return proof

    def _grow(self, proof: Proof) -> None:
        if not proof.finished_at:  # That is shown once it is saved.
            self.growing = proof

    async def finished(self) -> Proof | None:
        """The last that was finished, by this console or by one that saved it."""
        saved = await asyncio.to_thread(Proof.load, self._watched.folder)
        found = [
            proof
            for proof in (saved, self.exploring.last)
            if proof is not None and proof.finished_at and proof.saga == self._watched.saga.name
        ]
        return max(found, key=lambda proof: proof.began_at, default=None)


def _parts(lines: Sequence[PlayedLine], step: int) -> list[tuple[str, str, str]]:
    """Of each participant that has done something by a step: what they did last before it, and by
    then."""
    before: dict[str, str] = {}
    for line in lines[: step - 1]:
        before[line.who] = line.what
    now = dict(before)
    if lines:
        now[lines[step - 1].who] = lines[step - 1].what
    return [(who, before.get(who, ""), now[who]) for who in sorted(now)]
