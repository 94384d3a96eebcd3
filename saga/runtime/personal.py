"""Personal data at the doors of HTTP: sealed before a route sees it, opened for who may read it.

A route is written as if nothing were sealed. What its parameters mark as `Personal` is sealed when
it is called, and what its answer marks is opened again for a caller who named it themselves or may
read it, and masked for all others.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Annotated, Any, Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel

from saga.auth.caller import Caller
from saga.personal.marks import Personal, personal_fields, personal_values, with_personal
from saga.personal.persons import Persons, SealingAway
from saga.personal.seal import Forgotten, Unsealable, sealed, shown
from saga.runtime.problem import Problem, unavailable
from saga.runtime.settings import PersonalShown

MayRead = Callable[[str], bool]
"""Whether the caller may read this value, which is given in clear."""

MAY_READ: ContextVar[MayRead | None] = ContextVar("may_read", default=None)
"""Of the request that is answered: set by what knows its caller, from a dependency that is async.
Without it `PERSONAL_SHOWN` decides."""

_PERSONS: ContextVar[Persons | None] = ContextVar("persons", default=None)
_LOOKING_UP: Final = frozenset({"GET", "HEAD"})


async def texts_of(value: str) -> tuple[str, ...]:
    """The texts to look for where a request asks for what belongs to a person: the clear value,
    as from before anything was sealed, and its sealed form. Raises `Problem` while the key store
    is away."""
    persons = _PERSONS.get()
    if persons is None or sealed(value):
        return (value,)
    try:
        return await persons.texts_of(value)
    except SealingAway as error:
        raise unavailable(f"{error}; try again later") from error


def guarded(router: APIRouter, persons: Persons) -> APIRouter:
    """The router, whose routes see sealed values only. Nothing changes where nothing is sealed."""
    if persons.sealing:
        for route in router.routes:
            if isinstance(route, APIRoute):
                _guard(route, persons)
    return router


async def seal_given(persons: Persons, message: BaseModel) -> Any:
    """A command or a body as it is given by a caller, sealed. Raises `Problem`: 503 while nothing
    can be sealed, 422 for what cannot."""
    try:
        for value in personal_values(message):
            if sealed(value):  # No client may pass off its own text as a sealed one.
                await persons.open_now(value)
        return await persons.seal_message(message)
    except SealingAway as error:
        raise unavailable(f"{error}; try again later") from error
    except Forgotten as error:
        raise Problem(422, f"{error}; name the person in clear") from error
    except (Unsealable, ValueError) as error:
        raise Problem(422, str(error)) from error


def _guard(route: APIRoute, persons: Persons) -> None:
    """Put sealing and opening around the function of a route."""
    endpoint: Callable[..., Awaitable[Any]] = route.endpoint
    marked = frozenset(
        parameter.name
        for parameter in (
            *route.dependant.path_params,
            *route.dependant.query_params,
            *route.dependant.header_params,
            *route.dependant.body_params,
        )
        if any(mark is Personal for mark in parameter.field_info.metadata)
    )
    looking_up = route.methods is not None and route.methods <= _LOOKING_UP

    @functools.wraps(endpoint)
    async def sealed_endpoint(**given: Any) -> Any:
        _PERSONS.set(persons)
        named = frozenset(value for value in _named_in(given, marked) if not sealed(value))
        if not looking_up:
            given = {
                name: await _sealed(persons, value, name in marked) for name, value in given.items()
            }
        # After the bodies, in which a new person may be named.
        for name, value in given.items():
            if isinstance(value, Caller) and value.owner is not None:
                texts = await texts_of(value.owner)
                given[name] = replace(value, sealed_owner=texts[-1])
        return await _for_reader(persons, await endpoint(**given), named)

    route.endpoint = route.dependant.call = sealed_endpoint


def _named_in(given: Mapping[str, Any], marked: frozenset[str]) -> list[str]:
    """The personal values that a caller has given."""
    found = []
    for name, value in given.items():
        if name in marked and isinstance(value, str):
            found.append(value)
        elif isinstance(value, BaseModel) and personal_fields(type(value)):
            found += personal_values(value)
    return found


async def _sealed(persons: Persons, value: Any, marked: bool) -> Any:
    if isinstance(value, BaseModel) and personal_fields(type(value)):
        return await seal_given(persons, value)
    if marked and isinstance(value, str) and value:
        return (await seal_given(persons, _Given(value=value))).value
    return value


class _Given(BaseModel):
    """One value by itself."""

    value: Annotated[str, Personal]


async def _for_reader(persons: Persons, answer: Any, named: frozenset[str]) -> Any:
    """An answer as its reader may see it."""
    if isinstance(answer, list):
        return [await _for_reader(persons, each, named) for each in answer]
    if not isinstance(answer, BaseModel) or not personal_fields(type(answer)):
        return answer
    readable = {
        value: await _readable(persons, value, named) for value in {*personal_values(answer)}
    }
    return with_personal(answer, lambda value: readable.get(value, value))


async def _readable(persons: Persons, value: str, named: frozenset[str]) -> str:
    may_read = MAY_READ.get() or _by_settings(persons)
    try:
        clear = await persons.open_now(value)
    except (SealingAway, Forgotten, Unsealable):
        return shown(value)
    return clear if clear in named or may_read(clear) else shown(value)


def _by_settings(persons: Persons) -> MayRead:
    clear = persons.settings.personal_shown is PersonalShown.CLEAR
    return lambda _: clear
