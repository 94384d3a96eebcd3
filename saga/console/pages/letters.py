"""Dead letters: what went wrong, and what to do about it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from shlex import quote
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Form, Path, Query
from fastapi.responses import RedirectResponse, Response
from markupsafe import escape
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga.console.access import PERSONAL, needs
from saga.console.forms import PAGE, After, Given, Rate, Reason, asked_here, place_of, read_place
from saga.console.masking import masked_headers
from saga.console.site import Site
from saga.dlq import DlqError, SelectionChanged
from saga.dlq.desk import ReadingDesk
from saga.dlq.edit import ENVELOPE, corrected, editable, text_of
from saga.dlq.examine import REPLAYS_MAX, counts_of
from saga.dlq.letters import DeadLetter
from saga.dlq.quotations import masked
from saga.dlq.replay import FAILING_MAX, ReplaySettings, dry_run
from saga.dlq.selection import FrozenSelection, Selection, age_seconds
from saga.dlq.states import HERE, LetterScope, LetterState
from saga.errors import InputError
from saga.limits import INTEGER_MAX
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.topology import queues_of
from saga.runtime.problem import Problem
from saga.text import harmless
from saga.wording import counted

EXAMINED_MAX: Final = 1_000
"""Letters that a dry run examines for one page."""
SPARKS: Final = 24
"""Parts of the time in a sparkline."""
EXAMPLES_MAX: Final = 20
"""Letters that are named where many are dealt with together."""
DEATHS_MAX: Final = 50
SHOWN_MAX: Final = 20_000
"""Characters of a payload, as HTML."""
EDITABLE_MAX: Final = 50_000
"""The same, of one that can be edited here."""
DIFF_MAX: Final = 15_000
EDITING: Final = [needs("letters:write", PERSONAL, personal=True)]
"""Who edits a payload sees it."""

Number = Annotated[int, Path(ge=1, le=INTEGER_MAX)]


class LetterFilters(BaseModel):
    """Which letters: all that is given has to fit. `id` are numbers or message ids, with spaces
    between them."""

    model_config = ConfigDict(extra="forbid")

    id: Given = None
    queue: Given = None
    service: Given = None
    type: Given = None
    error: Given = None
    fingerprint: Given = None
    subject: Given = None
    older_than: Given = None
    newer_than: Given = None

    @property
    def filters(self) -> dict[str, str]:
        """Those given, as they stand in an address."""
        return self.model_dump(include=set(LetterFilters.model_fields), exclude_none=True)

    @property
    def options(self) -> str:
        """The same as options of `saga dlq`."""
        said = [quote(each) for each in (self.id or "").split()]
        for name, value in self.filters.items():
            if name != "id":
                said.append(f"--{name.replace('_', '-')} {quote(value)}")
        return "".join(f" {each}" for each in said)

    async def selection(self, desk: ReadingDesk, *, clear: bool) -> Selection:
        """`clear` says that who asks is shown what errors quote. Raises `InputError` for what does
        not exist."""
        filters = Selection(
            queue=self.queue,
            service=self.service,
            type=self.type,
            error=self.error if clear else None,
            masked_error=None if clear else self.error,
            fingerprint=self.fingerprint,
            subject=self.subject,
            older_than=age_seconds("older than", self.older_than),
            newer_than=age_seconds("newer than", self.newer_than),
        )
        return await desk.selection(filters, (self.id or "").split())


class LettersListed(LetterFilters):
    """How letters are listed."""

    by: Literal["fingerprint", "type", "service", "letter"] = "fingerprint"
    state: LetterScope = LetterScope.DEAD
    after: After = None


class ReplayWanted(LetterFilters):
    """What is to be replayed, and what of it may be."""

    force: bool = False
    max_replays: int = REPLAYS_MAX
    after: After = None

    @property
    def settings(self) -> ReplaySettings:
        """Raises `InputError`."""
        return ReplaySettings(force=self.force, max_replays=self.max_replays)

    @property
    def address(self) -> dict[str, Any]:
        """What stands in an address, but for the place."""
        return self.model_dump(exclude={"after"}, exclude_none=True, exclude_defaults=True)


class ReplayConfirmed(BaseModel):
    """How a replay is to be done, of the letters that were confirmed."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason
    confirmed: str
    rate: Rate = None
    max_failing: float = FAILING_MAX


class TurnConfirmed(BaseModel):
    """Letters that were confirmed, and why they are discarded or restored."""

    model_config = ConfigDict(extra="forbid")

    reason: Reason
    confirmed: str


class EditedText(BaseModel):
    """A payload as it was sent by a form, whose lines end as forms have it."""

    model_config = ConfigDict(extra="forbid")

    text: str

    @property
    def payload(self) -> str:
        """As `text_of` writes it, where it is a JSON object."""
        lines = self.text.replace("\r\n", "\n")
        return text_of(lines.encode("utf-8", "surrogatepass"))


class EditConfirmed(EditedText):
    """A corrected payload, and why."""

    reason: Reason


@dataclass(frozen=True, slots=True)
class Turning:
    """What happens to letters that are dealt with together without being sent."""

    verb: Literal["discard", "restore"]
    old: LetterState
    new: LetterState
    what_for: str


TURNINGS: Final = (
    Turning(
        "discard",
        LetterState.DEAD,
        LetterState.DISCARDED,
        "They are set aside for good, and need not be replayed. They can be restored.",
    ),
    Turning(
        "restore",
        LetterState.DISCARDED,
        LetterState.DEAD,
        "They become dead letters again, which can be replayed.",
    ),
)


def routes(site: Site) -> APIRouter:
    """`/letters`."""
    router = APIRouter()
    letters = site.letters

    @router.get("/letters", dependencies=[needs("letters:read", personal=True)])
    async def list_(request: Request, wanted: Annotated[LettersListed, Query()]) -> Response:
        desk = await letters.collected()
        context: dict[str, Any] = {"said": "", "groups": [], "letters": [], "next": None}
        context |= {"count": None, "sparks": {}}
        status = 200
        try:
            selection = await wanted.selection(desk, clear=site.clear(request))
        except InputError as error:
            status, context["said"] = 422, str(error)
        else:
            context |= await asyncio.to_thread(_listed, desk, selection, wanted)
        return site.page(
            request,
            "letters.html",
            title="Dead letters",
            status=status,
            command=f"saga dlq list --by {wanted.by} --state {wanted.state}{wanted.options}",
            wanted=wanted,
            choices=_choices(desk),
            collected_at=letters.collected_at,
            trouble=letters.trouble,
            replay=await asyncio.to_thread(desk.store.replays.unfinished),
            **context,
        )

    # --- replaying ---------------------------------------------------------------------------

    async def replay_page(
        request: Request, wanted: ReplayWanted, said: str = "", status: int = 200
    ) -> Response:
        desk = await letters.collected()
        selection = await wanted.selection(desk, clear=site.clear(request))
        place = None if wanted.after is None else read_place(wanted.after, datetime, int)
        at = utc_now()
        found = await asyncio.to_thread(desk.store.numbers, selection, HERE, now=at)
        limit = PAGE if place else EXAMINED_MAX
        verdicts = await dry_run(desk, selection, wanted.settings, limit=limit, after=place)
        counts: dict[str, int] = {}
        if place is None:
            counts = counts_of(verdict for _, verdict in verdicts)
            # As the command does; but a page of elsewhere, which may link here, writes nothing.
            if asked_here(request):
                left = len(found) - len(verdicts)
                result = counts | ({"not examined": left} if left else {})
                selected = selection.to_json()
                await asyncio.to_thread(desk.store.note, "dry run", "", selected, result)
        shown = verdicts[:PAGE]
        return site.page(
            request,
            "replaying.html",
            title=f"Replay {counted(len(found), 'letter')}",
            status=status,
            command=f"saga dlq replay --dry-run{' --force' if wanted.force else ''}"
            f"{wanted.options}",
            wanted=wanted,
            said=said,
            count=len(found),
            confirmed=FrozenSelection.of(found, at),
            counts=counts,
            unexamined=0 if place else len(found) - len(verdicts),
            verdicts=shown,
            next=_next([letter for letter, _ in shown]) if len(found) > PAGE else None,
            unfinished=await asyncio.to_thread(desk.store.replays.unfinished),
        )

    @router.get("/letters/replay", dependencies=[needs("letters:read", personal=True)])
    async def dry(request: Request, wanted: Annotated[ReplayWanted, Query()]) -> Response:
        return await replay_page(request, wanted)

    @router.post("/letters/replay", dependencies=[needs("letters:write")])
    async def begin(
        request: Request,
        wanted: Annotated[ReplayWanted, Query()],
        form: Annotated[ReplayConfirmed, Form()],
    ) -> Response:
        settings = ReplaySettings(
            rate=form.rate,
            max_failing=form.max_failing,
            max_replays=wanted.max_replays,
            force=wanted.force,
        )
        confirmed = FrozenSelection.read(form.confirmed)
        selection = await wanted.selection(await letters.desk(), clear=site.clear(request))
        try:
            run = await letters.begin(selection, settings, form.reason, confirmed)
        except SelectionChanged as error:
            return await replay_page(request, wanted, str(error), 409)
        except DlqError as error:
            raise Problem(409, str(error)) from error
        return RedirectResponse(site.url(f"/replays/{run}"), 303)

    # --- discarding and restoring ------------------------------------------------------------

    async def turn_page(
        request: Request,
        wanted: LetterFilters,
        turning: Turning,
        said: str = "",
        status: int = 200,
    ) -> Response:
        desk = await letters.collected()
        selection = await _selected(wanted, desk, clear=site.clear(request))
        at = utc_now()
        found = await asyncio.to_thread(desk.store.numbers, selection, [turning.old], now=at)
        examples = await asyncio.to_thread(desk.store.page, selection, [turning.old], EXAMPLES_MAX)
        return site.page(
            request,
            "turning.html",
            title=f"{turning.verb.capitalize()} {counted(len(found), 'letter')}",
            status=status,
            command=f'saga dlq {turning.verb}{wanted.options} --reason "..."',
            wanted=wanted,
            turning=turning,
            said=said,
            count=len(found),
            confirmed=FrozenSelection.of(found, at),
            examples=examples,
        )

    def turns(turning: Turning) -> None:
        path = f"/letters/{turning.verb}"

        async def look(request: Request, wanted: Annotated[LetterFilters, Query()]) -> Response:
            return await turn_page(request, wanted, turning)

        async def turn(
            request: Request,
            wanted: Annotated[LetterFilters, Query()],
            form: Annotated[TurnConfirmed, Form()],
        ) -> Response:
            confirmed = FrozenSelection.read(form.confirmed)
            desk = await letters.desk()
            selection = await _selected(wanted, desk, clear=site.clear(request))
            change = desk.store.discard if turning.verb == "discard" else desk.store.restore
            try:
                await asyncio.to_thread(change, selection, form.reason, confirmed=confirmed)
            except SelectionChanged as error:
                return await turn_page(request, wanted, turning, str(error), 409)
            query = {"state": turning.new, "by": "letter", **wanted.filters}
            return RedirectResponse(site.url("/letters", **query), 303)

        router.add_api_route(
            path,
            look,
            methods=["GET"],
            response_class=Response,
            dependencies=[needs("letters:write", personal=True)],
        )
        router.add_api_route(
            path,
            turn,
            methods=["POST"],
            response_class=Response,
            dependencies=[needs("letters:write")],
        )

    for each in TURNINGS:
        turns(each)

    # --- one of them -------------------------------------------------------------------------

    @router.get("/letters/{number}", dependencies=[needs("letters:read", personal=True)])
    async def one(request: Request, number: Number) -> Response:
        desk = await letters.collected()
        await _must_be_known(desk, number)
        document = await desk.document_about(number)
        died, headers = document.pop("died"), document["headers"]
        replays = await asyncio.to_thread(desk.store.replays.of_letter, number)
        return site.page(
            request,
            "letter.html",
            title=f"Dead letter {number}",
            command=f"saga dlq show {number}",
            number=number,
            letter=document,
            payload=_payload(document, bodies=site.clear(request)),
            headers=headers if site.clear(request) else masked_headers(headers),
            died=died[-DEATHS_MAX:],
            deaths=len(died),
            replays=replays[-DEATHS_MAX:],
            verdict=document["replay"],
        )

    async def edit_page(
        request: Request, number: int, text: str, *, diff: str | None = None, said: str = ""
    ) -> Response:
        return site.page(
            request,
            "editing.html",
            title=f"Edit dead letter {number}",
            status=422 if said else 200,
            command=f'saga dlq edit {number} --reason "..."',
            number=number,
            payload=_in_json(text),
            too_long=len(escape(text)) > EDITABLE_MAX,
            diff=diff,
            said=said,
        )

    async def letter_to_edit(request: Request, number: int) -> DeadLetter:
        if not site.clear(request):
            way = (
                f"it takes the scope {PERSONAL}"
                if site.bodies
                else "start the console with --bodies"
            )
            raise Problem(
                403,
                "what is in messages is not shown to you here, so it cannot be edited; "
                f"{way}, or use `saga dlq edit {number}`",
            )
        desk = await letters.desk()
        await _must_be_known(desk, number)
        try:
            return await asyncio.to_thread(editable, desk, number)
        except InputError as error:
            raise Problem(409, str(error)) from error

    @router.get("/letters/{number}/edit", dependencies=EDITING)
    async def edit(request: Request, number: Number) -> Response:
        letter = await letter_to_edit(request, number)
        return await edit_page(request, number, text_of(letter.body))

    @router.post("/letters/{number}/edit", dependencies=EDITING)
    async def difference(
        request: Request, number: Number, form: Annotated[EditedText, Form()]
    ) -> Response:
        letter = await letter_to_edit(request, number)
        try:
            made = corrected(site.watched.graph, letter, form.payload)
        except InputError as error:
            return await edit_page(request, number, form.text, said=str(error))
        if made is None:
            said = "Nothing was changed, so there is nothing to send."
            return await edit_page(request, number, form.payload, said=said)
        return await edit_page(request, number, form.payload, diff=made.diff[:DIFF_MAX])

    @router.post("/letters/{number}/send", dependencies=EDITING)
    async def send(
        request: Request, number: Number, form: Annotated[EditConfirmed, Form()]
    ) -> Response:
        await letter_to_edit(request, number)
        try:
            await letters.edit(number, form.payload, form.reason)
        except InputError as error:
            return await edit_page(request, number, form.payload, said=str(error))
        except DlqError as error:
            raise Problem(409, str(error)) from error
        return RedirectResponse(site.url(f"/letters/{number}"), 303)

    return router


def _listed(desk: ReadingDesk, selection: Selection, wanted: LettersListed) -> dict[str, Any]:
    """What a list shows; blocks."""
    states, store = wanted.state.states, desk.store
    found: dict[str, Any] = {"count": store.count(selection, states)}
    if wanted.by == "letter":
        place = None if wanted.after is None else read_place(wanted.after, datetime, int)
        shown = store.page(selection, states, PAGE + 1, place)
        next_ = _next(shown[:PAGE]) if len(shown) > PAGE else None
        return found | {"letters": shown[:PAGE], "next": next_}
    place = None if wanted.after is None else read_place(wanted.after, int, str)
    groups = store.groups(selection, states, wanted.by, limit=PAGE + 1, after=place)
    next_ = None
    if len(groups) > PAGE:
        groups = groups[:PAGE]
        next_ = place_of(groups[-1].letters, groups[-1].key)
    sparks = store.deaths(selection, states, wanted.by, groups, datetime.now(UTC), SPARKS)
    return found | {"groups": groups, "sparks": sparks, "next": next_}


def _next(letters: Sequence[DeadLetter]) -> str | None:
    """The place behind these."""
    return place_of(letters[-1].first_failed_at, letters[-1].number) if letters else None


def _choices(desk: ReadingDesk) -> dict[str, Sequence[str]]:
    """What may be chosen in a form."""
    graph = desk.graph
    types = {message.type for message in graph.recorded}
    return {
        "service": desk.participants,
        "queue": [queue for participant in graph.participants for queue in queues_of(participant)],
        "type": sorted(types | {c.type for p in graph.participants for c in p.intake}),
    }


async def _selected(wanted: LetterFilters, desk: ReadingDesk, *, clear: bool) -> Selection:
    """What is to be discarded or restored: never simply all. Raises `InputError`."""
    if not wanted.filters:
        raise InputError("name the letters, by number or by a filter")
    return await wanted.selection(desk, clear=clear)


async def _must_be_known(desk: ReadingDesk, number: int) -> None:
    if not await asyncio.to_thread(desk.store.numbers_known, [number]):
        raise Problem(404, f"there is no dead letter {number}; the list names those known")


def _payload(document: dict[str, Any], *, bodies: bool) -> str:
    """What the message holds, as far as it is shown."""
    if "payload" in document:
        payload = document["payload"]
        if not bodies:
            payload = {
                name: value if name in ENVELOPE and isinstance(value, str) else masked(value)
                for name, value in payload.items()
            }
        text = json.dumps(payload, indent=2, ensure_ascii=False)
    elif not bodies:
        kind = "text" if "payload_text" in document else "bytes, in Base64"
        size = len(document.get("payload_text") or document.get("payload_base64") or "")
        text = f"‹no JSON object: {kind} of {size} characters›"
    else:
        text = document.get("payload_text") or f"Base64: {document.get('payload_base64')}"
    return _within(text, SHOWN_MAX)


def _within(text: str, most: int) -> str:
    """The beginning of a text that is not longer than that in HTML."""
    shown = text[:most]
    while len(escape(harmless(shown, lines=True))) > most:
        shown = shown[: len(shown) * 3 // 4]
    return text if shown == text else f"{shown}\n… (the command line shows all of it)"


def _in_json(text: str) -> str:
    """A JSON document with what is not printed spelt out as JSON has it, and so shown as it is."""
    return "".join(
        char if char == "\n" or harmless(char) == char else json.dumps(char)[1:-1] for char in text
    )
