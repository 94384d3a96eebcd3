"""What rules leave to people: decided by asking the service that knows how."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga.console.access import needs
from saga.console.forms import PAGE, After, Given, Reason, place_of, read_place
from saga.console.people import Undecided, undecided_in
from saga.console.site import Site
from saga.deciding import DecidingError, decide
from saga.declaration import PersonsChoice
from saga.errors import InputError
from saga.http import KeyRefused
from saga.runtime.problem import Problem, short
from saga.runtime.tasks import in_thread


class DecisionAsked(BaseModel):
    """What is to be decided on: a rule, and a subject that it names. `after` is a place in the list
    of those that wait."""

    model_config = ConfigDict(extra="forbid")

    rule: Given = None
    subject: Given = None
    after: After = None


class DecisionMade(BaseModel):
    """How, and why."""

    model_config = ConfigDict(extra="forbid")

    way: str
    reason: Reason


def routes(site: Site) -> APIRouter:
    """`/decide`."""
    router = APIRouter()
    saga = site.watched.saga
    choices = {choice.rule: choice for choice in saga.choices}
    rules = {rule.name: rule for rule in saga.left_to_people}
    deeds: set[asyncio.Task[str]] = set()
    """What is being decided, which goes on even if no client waits for it."""

    def choice_of(asked: DecisionAsked) -> PersonsChoice | None:
        if asked.rule is not None and asked.rule not in choices:
            raise InputError(
                f"nothing is said of how to decide on {short(asked.rule)!r}; there are "
                f"{', '.join(choices) or 'no such rules in this saga'}"
            )
        return None if asked.rule is None else choices[asked.rule]

    async def waiting(asked: DecisionAsked) -> dict[str, Undecided]:
        """Keyed by rule: what waits; empty where it is clear what it is about."""
        if asked.subject is not None:
            return {}
        after = None if asked.after is None else read_place(asked.after, str)[0]
        names = choices if asked.rule is None else [asked.rule]
        return {name: await undecided_in(site.watched, rules[name], PAGE, after) for name in names}

    async def done(choice: PersonsChoice, subject: str, made: DecisionMade) -> str:
        """Decide it: written to the audit record before it is asked, and its result after.
        Returns why it was not, if so."""
        desk = await site.letters.desk()
        action, selection = f"decide: {made.way}", {"rule": choice.rule, "subject": subject}

        async def note(result: dict[str, str]) -> None:
            said = {"participant": choice.participant, **result}
            await in_thread(desk.store.note, action, made.reason, selection, said)

        await note({"state": "asked"})
        try:
            await decide(site.watched.deployment, choice, made.way, subject)
        except (DecidingError, KeyRefused) as error:
            await note({"failed": str(error)})
            return str(error)
        await note({"state": "done"})
        return ""

    @router.get("/decide", dependencies=[needs("decisions:read")])
    async def ask(request: Request, asked: Annotated[DecisionAsked, Query()]) -> Response:
        return site.page(
            request,
            "decide.html",
            title="For an operator to decide",
            command="saga reconcile",
            asked=asked,
            choice=choice_of(asked),
            rules={name: rule.function.__doc__ or "" for name, rule in rules.items()},
            choices=choices,
            waiting=(found := await waiting(asked)),
            places={name: place_of(each.next) for name, each in found.items() if each.next},
        )

    @router.post("/decide", dependencies=[needs("decisions:write")])
    async def make(
        asked: Annotated[DecisionAsked, Query()], made: Annotated[DecisionMade, Form()]
    ) -> Response:
        choice = choice_of(asked)
        if choice is None or asked.subject is None or made.way not in choice.paths:
            raise InputError("name a rule, a subject that it names, and one of the ways to decide")
        deed = asyncio.create_task(done(choice, asked.subject, made))
        deeds.add(deed)
        deed.add_done_callback(deeds.discard)
        # Where the answer's deadline passes first, it is noted all the same what came of it.
        if trouble := await asyncio.shield(deed):
            raise Problem(409, trouble)
        return RedirectResponse(site.url("/audit"), 303)

    return router
