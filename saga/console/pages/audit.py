"""What was done by people: to dead letters, and with what is due; one list, the newest first."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga import dues
from saga.console.access import needs
from saga.console.forms import PAGE, After, Given, place_of, read_place
from saga.console.site import Site, segment
from saga.dlq.audit import AuditEntry
from saga.dues import Entry
from saga.errors import Explained, InputError
from saga.runtime.problem import Problem

LETTERS: Final = "dead letters"
NUMBERS_MAX: Final = 20
"""Letters that are named one by one in a line."""


class AuditListed(BaseModel):
    """Whose record is listed; all of them, by default."""

    model_config = ConfigDict(extra="forbid")

    record: Given = None
    after: After = None


@dataclass(frozen=True, slots=True)
class AuditLine:
    """One line of a record: who did what, to what, why, and what came of it. `record` and `place`
    tell where the line is."""

    record: str
    place: tuple[str, str]
    at: datetime
    who: str
    action: str
    about: str
    reason: str
    outcome: str
    address: str = ""
    """Of the page that tells more."""


def routes(site: Site) -> APIRouter:
    """`/audit`."""
    router = APIRouter()
    watched = site.watched

    async def of_letters(bodies: bool, seen: tuple[str, str] | None) -> Sequence[AuditLine]:
        desk = await site.letters.desk()
        before = None if seen is None else _number(seen[1])
        found = await asyncio.to_thread(desk.store.actions, PAGE + 1, before)
        return [_of_letters(entry, bodies=bodies) for entry in found]

    async def of_dues(participant: str, seen: tuple[str, str] | None) -> Sequence[AuditLine]:
        before = None if seen is None else (_moment(seen[0]), seen[1])
        found = await dues.audit(
            watched.deployment,
            watched.graph,
            participant=participant,
            limit=PAGE + 1,
            before=before,
        )
        return [_of_due(entry) for entry in found]

    @router.get("/audit", dependencies=[needs("audit:read", personal=True)])
    async def audit(request: Request, wanted: Annotated[AuditListed, Query()]) -> Response:
        seen = {} if wanted.after is None else _read(wanted.after)
        readers = {LETTERS: partial(of_letters, site.clear(request))} | {
            name: partial(of_dues, name) for name in dues.auditing(watched.graph)
        }
        if wanted.record is not None and wanted.record not in readers:
            raise InputError(
                f"there is no record of {wanted.record!r}; there are {', '.join(readers)}"
            )
        records = [wanted.record] if wanted.record else list(readers)
        found: list[AuditLine] = []
        unread: dict[str, str] = {}
        for name in records:
            try:
                found += await readers[name](seen.get(name))
            except Explained as error:
                unread[name] = str(error)
        found.sort(key=lambda deed: deed.at, reverse=True)
        shown = found[:PAGE]
        seen |= {deed.record: deed.place for deed in shown}
        return site.page(
            request,
            "audit.html",
            title="Audit",
            command="saga dlq audit; saga due --audit",
            wanted=wanted,
            records=list(readers),
            deeds=shown,
            unread=unread,
            next=place_of(json.dumps(seen, ensure_ascii=False)) if len(found) > PAGE else None,
        )

    return router


def _of_letters(entry: AuditEntry, *, bodies: bool) -> AuditLine:
    return AuditLine(
        LETTERS,
        ("", f"{entry.number}"),
        entry.at,
        entry.who,
        entry.action,
        _said(entry.selection) or "all letters",
        entry.reason,
        _said(entry.result if bodies else _without_payload(entry.result)),
        _address(entry),
    )


def _address(entry: AuditEntry) -> str:
    """Of the page that tells more of it."""
    run = entry.result.get("run")
    if isinstance(run, int):
        return f"/replays/{run}"
    numbers = entry.result.get("letters")
    if isinstance(numbers, list) and len(numbers) == 1:
        return f"/letters/{numbers[0]}"
    return ""


def _of_due(entry: Entry) -> AuditLine:
    return AuditLine(
        entry.participant,
        (entry.at.isoformat(), entry.id),
        entry.at,
        entry.who,
        f"brought forward: {entry.command}",
        f"{entry.kind} {entry.subject}",
        entry.reason,
        entry.outcome,
        f"/due/{entry.participant}/{entry.kind}/{segment(entry.subject)}",
    )


def _without_payload(result: Mapping[str, Any]) -> dict[str, Any]:
    """What came of it, without what an edit has changed in a payload."""
    return {name: value for name, value in result.items() if name != "diff"}


def _said(values: Mapping[str, Any]) -> str:
    """What is not empty among these, in one line; no is not empty."""
    return "; ".join(
        f"{name.replace('_', ' ')}: {_in_words(value)}"
        for name, value in values.items()
        if value is False or value not in (None, 0, "", [])
    )


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, list):
        return str(value)
    named = ", ".join(map(str, value[:NUMBERS_MAX]))
    return named if len(value) <= NUMBERS_MAX else f"{named} and {len(value) - NUMBERS_MAX} more"


def _read(after: str) -> dict[str, tuple[str, str]]:
    """Where each record was left. Raises `Problem`."""
    (text,) = read_place(after, str)
    try:
        said = json.loads(text)
        if "\0" in text or "\\u" in text:  # What no database takes.
            raise _no_place()
        return {str(name): (str(at), str(id)) for name, (at, id) in said.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        raise _no_place() from None


def _number(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise _no_place()
    return int(text)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _no_place() from None
    if moment.tzinfo is None:
        raise _no_place()
    return moment


def _no_place() -> Problem:
    return Problem(422, "after: it is no place in this list; begin at its first page")
