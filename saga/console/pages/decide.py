"""What rules leave to people: decided by asking the service that knows how."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from saga.console.forms import Given, Reason
from saga.console.site import Site
from saga.deciding import DecidingError, decide
from saga.declaration import PersonsChoice
from saga.errors import InputError
from saga.runtime.problem import Problem, short


class DecisionAsked(BaseModel):
    """What is to be decided on: a rule, and a subject that it names."""

    model_config = ConfigDict(extra="forbid")

    rule: Given = None
    subject: Given = None


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

    def choice_of(asked: DecisionAsked) -> PersonsChoice | None:
        if asked.rule is not None and asked.rule not in choices:
            raise InputError(
                f"nothing is said of how to decide on {short(asked.rule)!r}; there are "
                f"{', '.join(choices) or 'no such rules in this saga'}"
            )
        return None if asked.rule is None else choices[asked.rule]

    @router.get("/decide")
    async def ask(request: Request, asked: Annotated[DecisionAsked, Query()]) -> Response:
        return site.page(
            request,
            "decide.html",
            title="For a person to decide",
            command="saga reconcile",
            asked=asked,
            choice=choice_of(asked),
            rules={rule.name: rule.function.__doc__ or "" for rule in saga.left_to_people},
            choices=choices,
        )

    @router.post("/decide")
    async def make(
        asked: Annotated[DecisionAsked, Query()], made: Annotated[DecisionMade, Form()]
    ) -> Response:
        choice = choice_of(asked)
        if choice is None or asked.subject is None or made.way not in choice.paths:
            raise InputError("name a rule, a subject that it names, and one of the ways to decide")
        desk = await site.letters.desk()
        result = {"participant": choice.participant, "done": True}
        trouble: DecidingError | None = None
        try:
            await decide(site.watched.deployment, choice, made.way, asked.subject)
        except DecidingError as error:
            trouble = error
            result = {"participant": choice.participant, "failed": str(error)}
        selection = {"rule": asked.rule, "subject": asked.subject}
        action = f"decide: {made.way}"
        await asyncio.to_thread(desk.store.note, action, made.reason, selection, result)
        if trouble is not None:
            raise Problem(409, str(trouble)) from trouble
        return RedirectResponse(site.url("/audit"), 303)

    return router
