"""Personal data at the doors of HTTP: sealed before a route sees it, opened for who may read it.

A route is written as if nothing were sealed. What its parameters mark as `Personal` is sealed when
it is called, and what its answer marks is opened again for a caller who named it themselves or may
read it, and masked for all others.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.routing import BaseRoute

from saga.auth.caller import Caller
from saga.personal.marks import Personal, personal_fields, personal_values, with_personal
from saga.personal.masks import Hidden, Masks
from saga.personal.persons import Persons, SealingAway
from saga.personal.seal import Forgotten, Unsealable, sealed, shown
from saga.runtime.problem import Problem, unavailable
from saga.runtime.settings import PersonalShown, SettingsError
from saga.runtime.telemetry import NAMED

MayRead = Callable[[str], bool]
"""Whether the caller may read this value, which is given in clear."""

MAY_READ: ContextVar[MayRead | None] = ContextVar("may_read", default=None)
"""Of the request that is answered: set by what knows its caller, from a dependency that is async.
Without it `PERSONAL_SHOWN` decides."""

_ASKED: ContextVar[_Asked | None] = ContextVar("asked", default=None)
_LOOKING_UP: Final = frozenset({"GET", "HEAD"})


async def texts_of(value: str) -> tuple[str, ...]:
    """The texts to look for where a request asks for what belongs to a person: the clear value,
    as from before anything was sealed, and its sealed form. Raises `Problem` while the key store
    is away."""
    asked = _ASKED.get()
    if asked is None or not asked.persons.sealing or sealed(value):
        return (value,)
    try:
        return await asked.persons.texts_of(value)
    except SealingAway as error:
        raise unavailable(f"{error}; try again later") from error


def guarded(router: APIRouter, persons: Persons) -> APIRouter:
    """The router, whose routes see sealed values only, if these are sealed here, and whose answers
    show others' values to who may read them. Raises `SettingsError` where values are sealed, and it
    holds what cannot be guarded."""
    for route in router.routes:
        if isinstance(route, APIRoute):
            _guard(route, persons)
        elif persons.sealing:
            raise SettingsError(no_route(route))
    return router


def no_route(route: BaseRoute) -> str:
    """What to tell whose router holds something else: who asks there, and for what, is unknown."""
    return (
        f"a service's router holds {route}, which is no path operation of FastAPI's but a router "
        f"that it includes, a mount or a web socket: neither its callers nor personal data can be "
        f"seen to there; add path operations to the service's own router instead"
    )


async def data_as_shown(masks: Masks, type_: str, data: Any) -> Any:
    """The data of a message of that type as the caller may see it, of the request that is being
    answered by a route that is `guarded`."""
    asked = _ASKED.get()
    if asked is None:
        return masks.changed(type_, data, shown)
    if asked.shows_all():
        return data
    found: dict[str, str] = {}

    def note(value: str) -> str:
        found[value] = value
        return value

    masks.changed(type_, data, note)
    for value in found:
        found[value] = await asked.readable(value)
    return masks.changed(type_, data, lambda value: found[value])


async def seal_given(persons: Persons, message: BaseModel) -> Any:
    """A command or a body as it is given by a caller, sealed where values are. Raises `Problem`:
    503 while nothing can be sealed, 422 for what cannot, or only looks sealed."""
    try:
        for value in personal_values(message):
            if sealed(value):  # No client may pass off its own text as a sealed one.
                await persons.open_now(value)
        return await persons.as_given(message)
    except SealingAway as error:
        raise unavailable(f"{error}; try again later") from error
    except Forgotten as error:
        raise Problem(422, f"{error}; name the person in clear") from error
    except (Unsealable, ValueError) as error:
        raise Problem(422, str(error)) from error


def _guard(route: APIRoute, persons: Persons) -> None:
    """Put sealing and opening around the function of a route."""
    endpoint: Callable[..., Awaitable[Any]] = route.endpoint
    if not inspect.iscoroutinefunction(endpoint):  # Which FastAPI gives a thread as well.
        endpoint = functools.partial(run_in_threadpool, endpoint)
    marked, looking_up = marked_in(route), looks_up(route)

    @functools.wraps(route.endpoint)
    async def sealed_endpoint(**given: Any) -> Any:
        named = frozenset(value for value in named_in(given, marked) if not sealed(value))
        asked = _Asked(persons, named)
        _ASKED.set(asked)
        if named:
            NAMED.set(Hidden(named))
        if not looking_up:
            given = {
                name: await _sealed(persons, value, name in marked) for name, value in given.items()
            }
        if persons.sealing:  # After the bodies, in which a person may be new.
            for name, value in given.items():
                if isinstance(value, Caller) and value.owner is not None:
                    texts = await texts_of(value.owner)
                    given[name] = replace(value, sealed_owner=texts[-1])
        return await _for_reader(asked, await endpoint(**given))

    route.endpoint = route.dependant.call = sealed_endpoint


def looks_up(route: APIRoute) -> bool:
    """Whether what a caller gives is only looked for, and so never becomes a new person."""
    return route.methods is not None and route.methods <= _LOOKING_UP


def marked_in(route: APIRoute) -> frozenset[str]:
    """The parameters of a route that are personal values themselves."""
    return frozenset(
        parameter.name
        for parameter in (
            *route.dependant.path_params,
            *route.dependant.query_params,
            *route.dependant.header_params,
            *route.dependant.body_params,
        )
        if any(mark is Personal for mark in parameter.field_info.metadata)
    )


def named_in(given: Mapping[str, Any], marked: frozenset[str]) -> list[str]:
    """The personal values that a caller has given, by a route's parameters; `marked` are those of
    them that are such values themselves."""
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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What a request is answered with regard to."""

    persons: Persons
    named: frozenset[str]
    """The personal values that it gave in clear."""

    def shows_all(self) -> bool:
        """Whether nothing has to be opened or masked: nothing is sealed, and `AUTH`
        is off."""
        return MAY_READ.get() is None and not self.persons.sealing

    async def readable(self, value: str) -> str:
        """A value as the caller may see it."""
        try:
            clear = await self.persons.open_now(value)
        except (SealingAway, Forgotten, Unsealable):
            return shown(value)
        may_read = MAY_READ.get() or _by_settings(self.persons)
        return clear if clear in self.named or may_read(clear) else shown(value)


async def _for_reader(asked: _Asked, answer: Any) -> Any:
    """An answer as its reader may see it."""
    if isinstance(answer, list):
        return [await _for_reader(asked, each) for each in answer]
    if not isinstance(answer, BaseModel) or not personal_fields(type(answer)) or asked.shows_all():
        return answer
    values = {*personal_values(answer)}
    if values <= asked.named:
        return answer  # In clear, and no more than what the caller has said.
    readable = {value: await asked.readable(value) for value in values}
    return with_personal(answer, lambda value: readable.get(value, value))


def _by_settings(persons: Persons) -> MayRead:
    """Whether values are shown where `AUTH` is off: those in clear where nothing is
    sealed, and else as `PERSONAL_SHOWN` says."""
    clear = not persons.sealing or persons.settings.personal_shown is PersonalShown.CLEAR
    return lambda _: clear
