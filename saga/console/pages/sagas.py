"""Sagas: found by what is known of them, and one of them told."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from enum import Enum
from functools import partial
from shlex import quote as quoted
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import APIRouter, Query
from fastapi.responses import Response
from markupsafe import Markup
from pydantic import ValidationError
from starlette.requests import Request

from saga.archive.finding import Findings, ListPlace, fields_of, find, text_columns
from saga.archive.routes import SubjectsWanted, cursor, read_cursor
from saga.archive.view import SubjectView
from saga.choreography import State
from saga.console import masking
from saga.console.access import needs
from saga.console.live import is_live
from saga.console.lookout import Lag
from saga.console.masking import headline_of, masked_diagram
from saga.console.one import (
    WHOLE_BODY_MAX_CHARACTERS,
    BrokerSight,
    Forecaster,
    Unforeseen,
    WhatIf,
    body_of,
    part_of,
    states_at,
)
from saga.console.people import AskedOnce, LeftToPeople, asked_once
from saga.console.site import Site
from saga.dlq.states import HERE
from saga.envelope import source_of, trace_id_of
from saga.errors import InputError
from saga.future.moment import moment_after
from saga.future.whatif import AskedStep, Consequences
from saga.history.debts import Debt
from saga.history.drawing import as_svg
from saga.history.sequence import either, owed_since
from saga.history.trace import Trace, UnknownSubject, trace
from saga.history.whereabouts import MessageLocations
from saga.limits import TEXT_MAX_BYTES, moment_of
from saga.runtime.problem import Problem

PAGE_SIZES: Final = (50, 20, 100)
ROWS_MAX: Final = 60
"""Of a sequence, on one page."""
MESSAGES_MAX: Final = 30
STATES_MAX: Final = 250
"""Fields of states, on one page."""
ENDS_MAX: Final = 12
"""Ends, and ways to them, on one page."""
WAY_MAX: Final = 30
"""Steps of a way that are shown."""
COLUMNS_MAX: Final = 4
"""Fields of a view that a list shows."""
_OF_VIEW: Final = "view."
"""Stands before the names of the view's fields in the address."""
_TABS: Final = (
    ("story", "Story"),
    ("states", "States"),
    ("messages", "Messages"),
    ("future", "What can still happen"),
    ("what-if", "What if"),
)
_LOOKING: Final = ("story", "future", "what-if")
"""Of these, those that say where messages are."""
_ENDS: Final = ("", "open", "ended", "settled")


def routes(site: Site) -> APIRouter:
    """`/sagas`."""
    router = APIRouter()
    foreseeing = Forecaster(site.watched)
    sight = BrokerSight.of(site.watched)

    @router.get("/sagas", dependencies=[needs("sagas:read", personal=True)])
    async def sagas(request: Request) -> Response:
        view = _view_of(site)
        unseen = () if site.clear(request) else text_columns(view)
        query = {name: value for name, value in request.query_params.items() if value.strip()}
        wanted = _Wanted.of(query)
        found: Findings = await site.watched.read(
            lambda connection: find(
                connection,
                wanted.subjects.search,
                wanted.subjects.limit,
                None if wanted.after is None else ListPlace(*read_cursor(wanted.after)),
                view=view,
                fields=wanted.fields,
                containing=wanted.text,
                unseen=unseen,
            )
        )
        following = None
        if found.next is not None:
            following = site.url(
                "/sagas", **{**query, "after": cursor(found.next.at, found.next.key)}
            )
        return site.page(
            request,
            "sagas.html",
            title="Sagas",
            found=found,
            rows=[
                (s, _columns(found.views.get(s.key), view, bodies=site.clear(request)))
                for s in found.subjects
            ],
            columns=[field.name for field in _shown(view)],
            fields=() if view is None else fields_of(view),
            view_name=None if view is None else view.name,
            of_view=_OF_VIEW,
            wanted=query,
            since=wanted.subjects.since,
            until=wanted.subjects.until,
            ends=sorted(t.type for t in site.watched.graph.events if t.role.terminal),
            types=[kind.type for kind in site.watched.graph.recorded],
            sizes=PAGE_SIZES,
            unseen=unseen if wanted.text else (),
            following=following,
        )

    @router.get("/sagas/{subject:path}", dependencies=[needs("sagas:read", personal=True)])
    async def one(
        request: Request,
        subject: str,
        show: Annotated[str, Query(max_length=20)] = "story",
        event: Annotated[int | None, Query(ge=0, le=10**9)] = None,
        row: Annotated[int, Query(ge=0, le=10**9)] = 0,
        do: Annotated[list[str] | None, Query(max_length=8)] = None,
    ) -> Response:
        watched = site.watched
        seen = partial(sight.seen, live=is_live(request)) if show in _LOOKING else _unseen
        try:
            found = await trace(watched.deployment, watched.graph, subject, seen=seen)
        except UnknownSubject as error:
            raise Problem(404, str(error)) from error
        page = _OnePage(site, request, found, foreseeing, event, sight, await site.lookout.lag())
        match show:
            case "story":
                return page.story(row, *await asked_once(watched, found.story))
            case "states":
                return page.states()
            case "messages":
                return page.messages(row)
            case "message":
                return page.message()
            case "future":
                return await page.future()
            case "what-if":
                return await page.what_if(do or [])
            case _:
                pass
        raise InputError(f"show={show!r}: there are {', '.join(name for name, _ in _TABS)}")

    return router


async def _unseen(_: Sequence[Debt]) -> MessageLocations | None:
    """For pages that say nothing of where messages are."""
    return None


def _view_of(site: Site) -> SubjectView[Any] | None:
    view = site.watched.saga.view
    return view if view is not None and view.belongs_to(site.watched.graph) else None


def _shown(view: SubjectView[Any] | None) -> Sequence[Any]:
    """The fields of a view that a list shows: words first, as these are short."""
    fields = [] if view is None else [f for f in fields_of(view) if not f.number]
    return sorted(fields, key=lambda field: not field.options)[:COLUMNS_MAX]


def _columns(state: State | None, view: SubjectView[Any] | None, *, bodies: bool) -> list[str]:
    told = {} if state is None else masking.fields_of(state, bodies=bodies)
    values = [told.get(field.name) for field in _shown(view)]
    return ["" if value is None else str(value) for value in values]


class _Wanted:
    """What is asked for, as the address says it."""

    def __init__(
        self, subjects: SubjectsWanted, fields: Mapping[str, str], text: str, after: str | None
    ) -> None:
        self.subjects = subjects
        self.fields = fields
        self.text = text
        self.after = after

    @classmethod
    def of(cls, query: Mapping[str, str]) -> _Wanted:
        """Raises `InputError`."""
        given: dict[str, Any] = {}
        fields: dict[str, str] = {}
        text, after = "", None
        for name, value in query.items():
            if "\0" in value:
                raise InputError(f"{name}: nothing that is kept has a NUL character in it")
            if name.startswith(_OF_VIEW):
                fields[name.removeprefix(_OF_VIEW)] = value
            elif name == "text":
                text = value.strip()
            elif name == "after":
                after = value
            elif name == "stands":
                given |= _standing(value)
            elif name in ("since", "until"):
                given[name] = _time(name, value)
            else:
                given[name] = value.strip()
        if len(text) > TEXT_MAX_BYTES:
            raise InputError(f"text: it has {len(text)} characters; up to {TEXT_MAX_BYTES} may be")
        try:
            subjects = SubjectsWanted(**given)
        except ValidationError as error:
            problems = "; ".join(f"{p['loc'][-1]}: {p['msg']}" for p in error.errors()[:5])
            raise InputError(problems) from None
        if subjects.limit > max(PAGE_SIZES):
            raise InputError(f"limit: a page has up to {max(PAGE_SIZES)} sagas")
        return cls(subjects, fields, text, after)


def _standing(value: str) -> dict[str, bool]:
    if value not in _ENDS:
        raise InputError(f"stands: {value!r} is none of {', '.join(filter(None, _ENDS))}")
    return {value: True} if value else {}


def _time(name: str, text: str) -> datetime:
    """A time as a form or an operator writes it; without an offset, it is UTC."""
    said = text.strip()
    moment = moment_of(said) or moment_of(said.replace(" ", "+"))  # A plus that was not encoded.
    if moment is None:
        raise InputError(
            f"{name}: {text!r} is no time; write it like 2030-01-31T12:00, which is UTC"
        )
    return moment


class _OnePage:
    """The pages about one subject."""

    def __init__(
        self,
        site: Site,
        request: Request,
        found: Trace,
        foreseeing: Forecaster,
        event: int | None,
        sight: BrokerSight,
        lag: Lag,
    ) -> None:
        self._site = site
        self._request = request
        self._clear = site.clear(request)
        self._found = found
        self._foreseeing = foreseeing
        self._subject = found.story.subject
        self._moment = moment_after(site.watched.graph, found, event)
        self._asked = event
        self._sight = sight
        self._lag = lag
        self._path = f"/sagas/{quote(self._subject, safe='')}"

    def _url(self, show: str, **query: Any) -> str:
        given = {"show": None if show == "story" else show, "event": self._asked, **query}
        return self._site.url(self._path, **given)

    def _page(self, template: str, show: str, command: str | None, **context: Any) -> Response:
        story = self._found.story
        tabs = [(self._url(name), text, name == show) for name, text in _TABS]
        return self._site.page(
            self._request,
            template,
            title=headline_of(story, bodies=self._clear),
            command=command,
            found=self._found,
            story=story,
            subject=self._subject,
            tabs=tabs,
            moment=self._moment,
            looking=show in _LOOKING and bool(self._found.debts),
            sight=self._sight,
            lag=self._lag,
            show=show,
            **context,
        )

    def story(
        self, first: int, asked: Sequence[AskedOnce], waits: Sequence[LeftToPeople]
    ) -> Response:
        found = self._found
        rows = found.diagram.rows
        last_page = max(0, (len(rows) - 1) // ROWS_MAX * ROWS_MAX)
        first = min(first // ROWS_MAX * ROWS_MAX, last_page)
        part = part_of(found, first, ROWS_MAX)
        diagram = part.diagram if self._clear else masked_diagram(part.diagram)
        picture = as_svg(diagram, self._subject)
        places = {
            step.attributes.id: number
            for number, step in enumerate(
                (s for s in found.story.steps if s.attributes.key in found.story.events), 1
            )
        }
        view = found.story.view
        letters = [life.letter for life in found.lives]
        return self._page(
            "saga.html",
            "story",
            f"saga trace {quoted(self._subject)}",
            picture=Markup(picture),  # noqa: S704 - escaped by `as_svg`
            rows=[
                (row, self._url("states", event=places[row.id]) if row.id in places else None)
                for row in diagram.rows
            ],
            first=first,
            count=len(rows),
            earlier=self._url("story", row=first - ROWS_MAX) if first else None,
            later=self._url("story", row=first + ROWS_MAX) if first < last_page else None,
            owed=[
                (debt, either(debt.answers), owed_since(debt, found.whereabouts, found.now))
                for debt in found.debts
            ],
            view=None if view is None else _facts(view, bodies=self._clear),
            letters=letters,
            asked=[(each, _words(each.state)) for each in asked],
            waits=waits,
            dead=sum(letter.state in HERE for letter in letters),
            trace_id=trace_id_of(self._subject),
            trace_link=_trace_link(self._site, self._subject),
        )

    def states(self) -> Response:
        found, moment = self._found, self._moment
        rows = states_at(self._site.watched, found, moment, bodies=self._clear)
        known = {row.participant for row in rows}
        graph = self._site.watched.graph
        event = "" if moment.step is None else moment.step.attributes.id
        return self._page(
            "saga_states.html",
            "states",
            f"saga show {quoted(self._subject)}" + (f" --before {quoted(event)}" if event else ""),
            states=rows[:STATES_MAX],
            more=max(0, len(rows) - STATES_MAX),
            silent=[p.name for p in graph.in_python if p.name not in known],
            foreign=[p.name for p in graph.foreign],
            before=self._url("states", event=moment.number - 1) if moment.number else None,
            after=None if moment.is_last else self._url("states", event=moment.number + 1),
            action=self._site.url(self._path),
        )

    def messages(self, first: int) -> Response:
        found = self._found
        steps = found.story.steps
        last_page = max(0, (len(steps) - 1) // MESSAGES_MAX * MESSAGES_MAX)
        first = min(first // MESSAGES_MAX * MESSAGES_MAX, last_page)
        graph = self._site.watched.graph
        numbers = {step.attributes.id: number for number, step in enumerate(steps, 1)}
        names = {source_of(p.name): p.name for p in graph.participants}
        shown = [
            (
                number,
                step,
                names.get(step.attributes.source, step.attributes.source),
                [p.name for p in graph.reacting_to(step.attributes.type)],
                numbers.get(step.attributes.causationid or ""),
                *body_of(step, bodies=self._clear),
                self._url("message", event=number),
            )
            for number, step in enumerate(steps[first : first + MESSAGES_MAX], first + 1)
        ]
        return self._page(
            "saga_messages.html",
            "messages",
            f"saga trace {quoted(self._subject)} --json",
            messages=shown,
            count=len(steps),
            first=first,
            earlier=self._url("messages", row=first - MESSAGES_MAX) if first else None,
            later=self._url("messages", row=first + MESSAGES_MAX) if first < last_page else None,
        )

    def message(self) -> Response:
        steps, number = self._found.story.steps, self._asked or 1
        step = steps[min(max(number, 1), len(steps)) - 1]
        body, characters = body_of(step, bodies=self._clear, characters=WHOLE_BODY_MAX_CHARACTERS)
        return self._page(
            "saga_message.html",
            "messages",
            f"saga trace {quoted(self._subject)} --json",
            step=step,
            body=body,
            characters=characters,
        )

    async def future(self) -> Response:
        found = await self._foreseeing.outlook(self._moment, self._found.whereabouts)
        unforeseen = found if isinstance(found, Unforeseen) else None
        return self._page(
            "saga_future.html",
            "future",
            self._future_command(),
            unforeseen=unforeseen,
            outlook=None if isinstance(found, Unforeseen) else found.outlook,
            ends_max=ENDS_MAX,
            way_max=WAY_MAX,
            present=None if isinstance(found, Unforeseen) else found.present,
        )

    async def what_if(self, given: Sequence[str]) -> Response:
        steps = [AskedStep.read(text) for text in given]
        found = await self._foreseeing.supposed(self._moment, self._found.whereabouts, steps)
        if isinstance(found, Unforeseen):
            found = WhatIf((), found, None, ())
        asked, usual = found.asked, found.usual
        return self._page(
            "saga_what_if.html",
            "what-if",
            self._future_command(*(f"--if {quoted(str(step))}" for step in steps)),
            unforeseen=next(
                (each for each in (usual, asked) if isinstance(each, Unforeseen)), None
            ),
            offers=[
                (offer.words, self._url("what-if", do=list(map(str, offer.steps))))
                for offer in found.offers
            ],
            words=next((o.words for o in found.offers if o.steps == tuple(steps)), ""),
            usual=usual if isinstance(usual, Consequences) else None,
            asked=asked if isinstance(asked, Consequences) else None,
            remarks=found.remarks,
        )

    def _future_command(self, *options: str) -> str:
        event = () if self._asked is None else (f"--event {min(self._asked, self._moment.last)}",)
        return " ".join(("saga future", quoted(self._subject), *event, *options))


def _facts(view: State, *, bodies: bool) -> list[tuple[str, Any]]:
    facts = []
    for name, told in masking.fields_of(view, bodies=bodies).items():
        if name not in ("key", "sequence"):
            value = getattr(view, name)
            facts.append((name.replace("_", " "), value if isinstance(value, datetime) else told))
    return facts


def _words(state: State) -> list[tuple[str, Any]]:
    """What a state says in words and times, which need not be masked."""
    values = {field.name.replace("_", " "): getattr(state, field.name) for field in fields(state)}
    return [
        (name, value.value if isinstance(value, Enum) else value)
        for name, value in values.items()
        if isinstance(value, Enum | datetime)
    ]


def _trace_link(site: Site, subject: str) -> str | None:
    pattern = getattr(site, "trace_url", "")
    return pattern.replace("{trace_id}", trace_id_of(subject)) if pattern else None
