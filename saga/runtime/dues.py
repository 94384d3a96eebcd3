"""What is due about a service's states, over HTTP: listed, and brought forward."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Annotated, Final
from uuid import uuid4

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from saga.auth.caller import AuthMethod, Caller
from saga.auth.scopes import needs
from saga.choreography import State
from saga.limits import TEXT_MAX_BYTES, Plain
from saga.message import Priority
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.step import Firing, ForwardRequest
from saga.runtime.kernel.timer import Listed, dues_in
from saga.runtime.kernel.transaction import audit_entry
from saga.runtime.kernel.work import Done
from saga.runtime.problem import Problem, problems, short
from saga.runtime.web import WITH_BODY, answer_from

if TYPE_CHECKING:
    from saga.runtime.service import Running

log = logging.getLogger(__name__)

LISTED_MAX: Final = 500
WHO_MAX, REASON_MAX = 255, 1_000
"""Characters."""


Key = Annotated[str, Path(max_length=TEXT_MAX_BYTES), Plain]


class BringForward(BaseModel):
    """Why what is due is to be done now, and who says so: kept in the audit record.

    Where callers are known, the record names the caller, and `who` is no more than a part of the
    reason.
    """

    model_config = ConfigDict(extra="forbid")

    who: Annotated[str, Field(min_length=1, max_length=WHO_MAX), Plain]
    reason: Annotated[str, Field(min_length=1, max_length=REASON_MAX), Plain]

    def of(self, caller: Caller) -> ForwardRequest:
        """The wish as it is recorded."""
        if caller.how is AuthMethod.OFF:
            return ForwardRequest(self.who, self.reason)
        return ForwardRequest(
            caller.recorded_as, f"{self.reason} (for {self.who}, as the caller says)"
        )


class DueView(BaseModel):
    """What is due about one state, and when. Times are UTC."""

    state: str
    key: str
    due_at: datetime
    command: str | None = None
    """None if the state cannot be read."""
    priority: Priority | None = None
    late_seconds: float
    """How long its time has passed; negative before."""
    why: str = ""
    """Why the state cannot be read."""

    @classmethod
    def of(cls, listed: Listed, now: datetime) -> DueView:
        return cls(
            state=listed.kind,
            key=listed.key,
            due_at=listed.at,
            command=listed.due.command.type if listed.due else None,
            priority=listed.due.priority if listed.due else None,
            late_seconds=listed.late_seconds(now),
            why=listed.why,
        )


class BroughtForward(BaseModel):
    """What was done before its time. Times are UTC."""

    state: str
    key: str
    command: str
    due_at: datetime
    events: list[str]
    """Their types."""


def routes(running: Running, kinds: Iterable[type[State]]) -> APIRouter:
    """`/due`, of a service about whose states of these kinds something may be due."""
    router = APIRouter(prefix="/due", tags=["due"])

    @router.get("", responses=problems(422), dependencies=[needs("dues:read")])
    async def list_(
        limit: Annotated[int, Query(ge=1, le=LISTED_MAX)] = 100,
    ) -> list[DueView]:
        """What is due and when, earliest first."""
        found = await answer_from(
            running.database, partial(dues_in, tables=running.tables.with_dues, limit=limit)
        )
        now = running.clock()
        return [DueView.of(one, now) for one in found]

    for kind in kinds:
        router.add_api_route(
            f"/{kind.__name__}/{{key}}/bring-forward",
            _bringing_forward(running, kind),
            methods=["POST"],
            responses=problems(404, 409, 500, *WITH_BODY),
        )
    return router


def _bringing_forward(
    running: Running, kind: type[State]
) -> Callable[[str, BringForward, Caller], Awaitable[BroughtForward]]:
    async def bring_forward(
        key: Key, wish: BringForward, caller: Annotated[Caller, needs("dues:write")]
    ) -> BroughtForward:
        """Do now what is due about one state later; 404 if nothing is, 409 if something else is
        faster. Who wants it and why is kept, with the result."""
        table = running.tables.states[kind]
        found = await answer_from(running.database, lambda connection: table.find(connection, key))
        firing = found and Firing.of(found, brought_forward=wish.of(caller))
        if firing is None:
            raise Problem(404, f"nothing is due about {kind.__name__} {short(key)!r}")
        what = f"{firing.due.command.type} about {kind.__name__} {short(key)!r}"
        try:
            outcome = await running.fire(firing)
        except Problem:
            raise
        except Exception as error:
            log.warning("%s was brought forward and failed: %s", what, error)
            await _note_failure(running, firing, error)
            raise Problem(500, f"{what} failed, and is due as before: {error}") from error
        if not isinstance(outcome, Done):
            raise Problem(409, f"{what}: something else was faster; look again")
        return BroughtForward(
            state=kind.__name__,
            key=key,
            command=firing.due.command.type,
            due_at=firing.due.at,
            events=[event.type for event in outcome.events],
        )

    return bring_forward


async def _note_failure(running: Running, firing: Firing, error: Exception) -> None:
    def note(connection: Connection) -> None:
        with writing(connection) as writes:
            outcome = f"failed: {type(error).__name__}: {error}".partition("\n")[0]
            entry = audit_entry(str(uuid4()), firing, running.clock(), outcome)
            running.tables.note_brought_forward(writes, [entry])

    await running.database.transaction(note)
