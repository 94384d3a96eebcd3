"""What callers may do: scopes declared beside routes, and roles as sets of scopes.

@router.get("/rooms/{room}")
async def get(room: str, caller: Annotated[Caller, needs("rooms:read", own=True)]) -> Room: ...

@router.post("/rooms", dependencies=[needs("rooms:write")])
async def add(...) -> None: ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from fastapi import Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.openapi.models import HTTPBearer
from fastapi.routing import APIRoute
from fastapi.security.base import SecurityBase

from saga.auth.audit import AuditTrail
from saga.auth.caller import ANYBODY, EVERYTHING, Caller, NotAllowed
from saga.auth.keys import SCOPE
from saga.personal.seal import sealed
from saga.runtime.metrics import refused
from saga.runtime.personal import MAY_READ, looks_up, marked_in, named_in
from saga.runtime.problem import Problem

READER, OPERATOR, ADMIN = "reader", "operator", "admin"
ROLES: Final[Mapping[str, frozenset[str]]] = {
    READER: frozenset({"*:read"}),
    OPERATOR: frozenset({"*:read", "*:write"}),
    ADMIN: frozenset({EVERYTHING}),
}
"""`personal:read` is in none but the last."""
SCHEME: Final = "bearer"
"""As OpenAPI calls it."""
ASKING: Final = "saga.asking"
"""Where in a request's ASGI scope it stands who asks: an `Asking`."""
REALM: Final = "saga"
_CALLERS: Final = "saga.callers"
"""Where in a request's ASGI scope the callers stand that its route takes, by parameter."""
_REQUEST: Final = "request"
"""What the parameter for the request is called, of a route that takes none itself."""


def in_claim(claims: Mapping[str, Any], path: str) -> list[str]:
    """The texts that a claim holds, one or a list of them. A dot leads into an object, unless the
    whole path is a claim's name (such as `https://example.com/roles`)."""
    found: Any = claims.get(path)
    if found is None:
        found = claims
        for name in path.split("."):
            found = found.get(name) if isinstance(found, Mapping) else None
    values = found if isinstance(found, list) else [found]
    return [value for value in values if isinstance(value, str)]


def needs(
    scope: str, *, own: bool = False, personal: bool = False, names_others: bool = False
) -> Any:
    """What a route takes of its caller, who is the dependency's value.

    With `own`, callers who act for one owner only are let in too: the route has to ask `theirs`
    about what it shows or changes. In what changes something they name no other person than
    themselves, unless it has `names_others`: sealing a name takes longer where it is new, and so
    would tell who is known. `personal` says that it shows data of people. Raises `ValueError` for a
    scope that does not read like `rooms:read`.
    """
    needed = Needs(scope, own=own, personal=personal, names_others=names_others)
    return Security(needed, scopes=[scope])


class Needs(SecurityBase):
    """The dependency, and what OpenAPI shows of it."""

    def __init__(self, scope: str, *, own: bool, personal: bool, names_others: bool) -> None:
        if not SCOPE.fullmatch(scope) or "*" in scope:
            raise ValueError(f"{scope!r} is no scope; write it like rooms:read")
        self.scope, self.own, self.personal = scope, own, personal
        self.names_others = names_others
        self.model = HTTPBearer(
            description="A token of the issuer, or an API key (`saga keys create`)."
        )
        self.scheme_name = SCHEME

    async def __call__(self, request: Request) -> Caller:
        return self.ask(request)

    def ask(self, request: Request) -> Caller:
        """Who asks, if they may. Raises `Problem`."""
        asking: Asking | None = request.scope.get(ASKING)
        if asking is None:
            return ANYBODY  # There is no gate: `AUTH` is off.
        caller = asking.caller
        if caller is None:  # A route that takes a caller, below a path that is open to all.
            raise unknown(NotAllowed("no caller is known on a path that is open", presented=False))
        if not caller.may(self.scope):
            self._deny(request, caller, f"needs {self.scope}")
        if caller.owner is not None and not self.own:
            self._deny(request, caller, "acts for one owner only")
        if caller.owner is None:
            self.record(request, caller)
        else:  # Whose it is, the route will know.
            asking.decide = partial(self.record, request, caller)
        MAY_READ.set(caller.may_read)
        return caller

    def _deny(self, request: Request, caller: Caller, reason: str) -> None:
        self.record(request, caller, reason)
        refused("forbidden")
        words = f'Bearer realm="{REALM}", error="insufficient_scope", scope="{self.scope}"'
        raise Problem(
            403,
            f"this takes {self.scope}, which the caller does not have"
            if not caller.may(self.scope)
            else "this is not for callers who act for one owner only",
            headers={"WWW-Authenticate": words},
        )

    def record(self, request: Request, caller: Caller, reason: str = "") -> None:
        """Write the decision down; with a reason, the caller was denied."""
        scope = request.scope
        about = next(iter(scope["path_params"].values()), None)
        client = scope.get("client")
        asking: Asking = scope[ASKING]
        asking.recorded = True
        if asking.trail is None:
            return
        asking.trail.decided(
            caller,
            action=action_of(request),
            scope=self.scope,
            subject=None if about is None else str(about),
            allowed=not reason,
            reason=reason,
            personal=self.personal and not reason,
            address=client[0] if client else "",
            before_answer=True,  # Which the gate hands on.
        )


class AskingRoute(APIRoute):
    """A route that asks for what it needs before its request's body is read.

    FastAPI would resolve the dependencies after that, and takes ten times as long for it: each as
    if it had parameters of its own. OpenAPI still shows them.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        declared = self.dependant
        asked, others = [], []
        for dependency in declared.dependencies:
            if isinstance(dependency.call, Needs):
                asked.append((dependency.call, dependency.name))
            else:
                others.append(dependency)
        if not asked:
            return super().get_route_handler()
        endpoint, request_name = self.endpoint, declared.request_param_name
        marked = marked_in(self)
        own_names_only = not looks_up(self) and not any(need.names_others for need, _ in asked)

        @functools.wraps(endpoint)
        async def given_callers(**given: Any) -> Any:
            request = given[request_name] if request_name else given.pop(_REQUEST)
            callers = request.scope[_CALLERS]
            owners = {caller.owner for caller in callers.values() if caller.owner is not None}
            if owners and own_names_only:
                _check_own(owners, named_in(given, marked))
            return await endpoint(**given, **callers)

        self.dependant = replace(
            declared,
            call=given_callers,
            dependencies=others,
            request_param_name=request_name or _REQUEST,
        )
        try:
            answer = super().get_route_handler()
        finally:
            self.dependant = declared

        async def ask_first(request: Request) -> Response:
            callers = [(name, need.ask(request)) for need, name in asked]
            request.scope[_CALLERS] = {name: caller for name, caller in callers if name}
            return await answer(request)

        return ask_first


@dataclass(slots=True)
class Asking:
    """Who asks, of one request. `caller` is None where a path is open to all."""

    caller: Caller | None
    trail: AuditTrail | None = None
    """Where it is written down what they may."""
    recorded: bool = False
    """Whether it is."""
    decide: Callable[[str], None] | None = None
    """Writes down a decision that only the route can make: whose it is."""

    def settle(self, reason: str = "") -> None:
        """Write down what is undecided, once; with a reason, it was denied."""
        decide, self.decide = self.decide, None
        if decide is not None:
            decide(reason)


def settle(request: Request, reason: str) -> None:
    """Write down that a caller was denied by the route."""
    asking: Asking | None = request.scope.get(ASKING)
    if asking is not None:
        asking.settle(reason)


def unknown(error: NotAllowed) -> Problem:
    """The answer to a caller who is not known. Why not, the audit trail tells."""
    invalid = ', error="invalid_token"' if error.presented else ""
    return Problem(
        401,
        "the token or key is not accepted; the service's audit trail tells why"
        if error.presented
        else "this takes a token or an API key: send Authorization: Bearer <token>",
        headers={"WWW-Authenticate": f'Bearer realm="{REALM}"{invalid}'},
    )


class OwnedByAnother(Problem):
    """What a caller asks for belongs to another: as if it were not there."""


def theirs(caller: Caller, owner: str, otherwise: Problem) -> None:
    """Let only those see or change what belongs to `owner` who act for all, or for that owner.
    Raises `OwnedByAnother`, which is answered as `otherwise`: as if it were not there."""
    if not caller.acts_for(owner):
        raise OwnedByAnother(
            otherwise.status, otherwise.detail, headers=otherwise.headers, **otherwise.more
        )


def _check_own(owners: Collection[str], names: Iterable[str]) -> None:
    """Raises `OwnedByAnother` where one who acts for one owner names another person, before the
    key store is asked: how long that takes would tell whether it knows them. A sealed text is left
    to the route."""
    if any(name not in owners and not sealed(name) for name in names):
        raise OwnedByAnother(403, "this is done in one's own name only")


def action_of(request: Request) -> str:
    """The request's method and its route's path, which has no data in it."""
    route = request.scope.get("route")
    path = getattr(route, "path", None) or request.scope.get("path", "")
    return f"{request.method} {path}"


def need_of(route: APIRoute) -> Needs | None:
    """What a route declares; None if nothing."""
    return next((need for need, _ in _declared(route.dependant)), None)


def takes_its_caller(route: APIRoute) -> bool:
    """Whether a route is given the caller that it declares."""
    return any(need.own and name is not None for need, name in _declared(route.dependant))


def _declared(dependant: Dependant) -> Iterator[tuple[Needs, str | None]]:
    for dependency in dependant.dependencies:
        if isinstance(dependency.call, Needs):
            yield dependency.call, dependency.name
        yield from _declared(dependency)
