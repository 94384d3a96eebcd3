"""Replays: what became of each, the one that is under way, and the one that waits to be resumed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga.console.access import needs
from saga.console.forms import PAGE, After, Rate, Reason, place_of, read_place
from saga.console.pages.letters import Number
from saga.console.site import Site
from saga.dlq import DlqError
from saga.dlq.desk import ReadingDesk
from saga.dlq.examine import REPLAYS_MAX
from saga.dlq.replay import FAILING_MAX, RAMP, ReplaySettings, at_work
from saga.dlq.replays import Replay
from saga.dlq.states import OPEN, ItemState
from saga.errors import InputError
from saga.runtime.problem import Problem
from saga.wording import counted


class ReplaysListed(BaseModel):
    """A place in a list."""

    model_config = ConfigDict(extra="forbid")

    after: After = None


class StopWanted(BaseModel):
    """Why a replay is to stop."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason


class ResumeWanted(StopWanted):
    """How a replay is to go on. `open` is how many letters its page has said it goes on with."""

    open: int
    rate: Rate = None
    max_failing: float = FAILING_MAX
    max_replays: int = REPLAYS_MAX
    force: bool = False


@dataclass(frozen=True, slots=True)
class RampStep:
    """So many letters that are sent together, and whether all of them were heard of."""

    letters: int
    heard: bool


@dataclass(frozen=True, slots=True)
class ReplayProgress:
    """How far a replay has come."""

    counts: Mapping[ItemState, int]

    @property
    def letters(self) -> int:
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        return sum(self.counts.get(state, 0) for state in OPEN)

    @property
    def heard(self) -> int:
        """Letters of which it is known what became of them."""
        return self.letters - self.open

    @property
    def ramp(self) -> list[RampStep]:
        """The steps of a replay of so many letters, and the others at last."""
        ends = [end for end in itertools.accumulate(RAMP) if end < self.letters]
        ends.append(self.letters)
        begins = [0, *ends]
        return [
            RampStep(end - begin, self.heard >= end)
            for begin, end in zip(begins, ends, strict=False)
        ]


def routes(site: Site) -> APIRouter:
    """`/replays`."""
    router = APIRouter()
    letters = site.letters

    @router.get("/replays", dependencies=[needs("letters:read")])
    async def list_(request: Request, wanted: Annotated[ReplaysListed, Query()]) -> Response:
        desk = await letters.desk()
        before = None if wanted.after is None else read_place(wanted.after, int)[0]
        found = await asyncio.to_thread(desk.store.replays.newest, PAGE + 1, before)
        shown = found[:PAGE]
        return site.page(
            request,
            "replays.html",
            title="Replays",
            command="saga dlq audit",
            replays=shown,
            at_work=await asyncio.to_thread(at_work, desk.store.path),
            next=place_of(shown[-1].number) if len(found) > PAGE else None,
        )

    @router.get("/replays/{number}", dependencies=[needs("letters:read", personal=True)])
    async def one(
        request: Request, number: Number, wanted: Annotated[ReplaysListed, Query()]
    ) -> Response:
        desk = await letters.desk()
        run = await asyncio.to_thread(_known, desk, number)
        after = None if wanted.after is None else read_place(wanted.after, int)[0]
        replays = desk.store.replays
        counts = await asyncio.to_thread(replays.count, run)
        items = await asyncio.to_thread(replays.page_of, run, PAGE + 1, after)
        ours = letters.replaying == number
        waits = run.ended_at is None and not ours
        return site.page(
            request,
            "replay.html",
            title=f"Replay {number}",
            command="saga dlq replay --resume" if run.ended_at is None else "saga dlq audit",
            run=run,
            progress=ReplayProgress(counts),
            counts={str(state): counts.get(state, 0) for state in ItemState},
            items=items[:PAGE],
            next=place_of(items[PAGE - 1][0]) if len(items) > PAGE else None,
            ours=ours,
            elsewhere=waits and await asyncio.to_thread(at_work, desk.store.path),
            broke_off=letters.broke_off.get(number, ""),
        )

    @router.post("/replays/{number}/stop", dependencies=[needs("letters:write")])
    async def stop(number: Number, form: Annotated[StopWanted, Form()]) -> Response:
        try:
            letters.stop(number, form.reason)
        except DlqError as error:
            raise Problem(409, str(error)) from error
        return RedirectResponse(site.url(f"/replays/{number}"), 303)

    @router.post("/replays/{number}/resume", dependencies=[needs("letters:write")])
    async def resume(number: Number, form: Annotated[ResumeWanted, Form()]) -> Response:
        desk = await letters.desk()
        run = await asyncio.to_thread(_known, desk, number)
        settings = _settings(run, form)
        left = len(await asyncio.to_thread(desk.store.replays.open_items, run))
        if run.ended_at is not None:
            raise Problem(409, f"replay {number} has ended: {run.outcome}")
        if left != form.open:
            raise Problem(
                409,
                f"replay {number} goes on with {counted(left, 'letter')} by now, not with "
                f"{form.open}: look "
                f"at it again",
            )
        try:
            await letters.begin(None, settings, form.reason, None, resuming=number)
        except (DlqError, InputError) as error:
            raise Problem(409, str(error)) from error
        return RedirectResponse(site.url(f"/replays/{number}"), 303)

    return router


def _known(desk: ReadingDesk, number: int) -> Replay:
    run = desk.store.replays.get(number)
    if run is None:
        raise Problem(404, f"there is no replay {number}; the list names those known")
    return run


def _settings(run: Replay, form: ResumeWanted) -> ReplaySettings:
    """As the replay was begun, but for what the form says. Raises `InputError`."""
    timeout: Any = run.settings.get("timeout_seconds")
    settings = ReplaySettings(
        rate=form.rate,
        max_failing=form.max_failing,
        max_replays=form.max_replays,
        force=form.force,
    )
    return settings if timeout is None else replace(settings, timeout_seconds=timeout)
