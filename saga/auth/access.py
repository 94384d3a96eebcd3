"""Who may ask a process, as its settings say; and that it does not start open by mistake."""

from __future__ import annotations

import logging
from functools import lru_cache
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute

from saga.auth.audit import AuditError, AuditTrail
from saga.auth.caller import Caller, NotAllowed
from saga.auth.keys import PREFIX, ApiKeys, KeysError
from saga.auth.scopes import AskingRoute, need_of, takes_its_caller
from saga.auth.settings import Auth, AuthSettings, is_loopback
from saga.runtime.personal import no_route
from saga.runtime.problem import problems
from saga.runtime.settings import HttpSettings, SettingsError

if TYPE_CHECKING:
    from saga.auth.tokens import Tokens

log = logging.getLogger(__name__)

REFUSING = (401, 403)
"""The problems that a request may meet which takes a known caller."""
_REMEMBERED_MAX = 16
_OF_A_ROUTE = frozenset(signature(APIRouter.add_api_route).parameters)
"""What a route is made with, each of which it keeps under the same name."""


class Access:
    """Knows callers by their tokens and keys. One per process."""

    def __init__(self, tokens: Tokens | None, keys: ApiKeys) -> None:
        self._tokens, self._keys = tokens, keys

    def known(self, credentials: str) -> Caller | None:
        """Who presents a key, or a token that was checked before. Raises `NotAllowed`."""
        if credentials.startswith(PREFIX):
            return self._keys.caller(credentials)
        return None if self._tokens is None else self._tokens.known(credentials)

    async def caller(self, credentials: str) -> Caller:
        """Who presents a token or a key. Raises `NotAllowed`, `IssuerAway`."""
        if (known := self.known(credentials)) is not None:
            return known
        if self._tokens is None:
            raise NotAllowed("no tokens are believed here")
        return await self._tokens.caller(credentials)


def access_of(settings: HttpSettings) -> Access | None:
    """Who may ask; None where all clients may. Raises `SettingsError` where that is not said on
    purpose, or no caller could be known."""
    if is_open(settings):
        return None
    try:
        return _made(settings, _state(settings.keys_file))
    except KeysError as error:
        raise SettingsError(str(error)) from None


def is_open(settings: HttpSettings) -> bool:
    """Whether authentication is off. Raises `SettingsError` where others reach the address,
    and no reason is given."""
    local = is_loopback(settings.http_host)
    wanted = settings.auth or (Auth.OFF if local else Auth.ON)
    if wanted is Auth.ON:
        return False
    if not local and not settings.auth_off_reason:
        raise SettingsError(
            f"AUTH is off, and others reach {settings.http_host} (HTTP_HOST): say why in "
            f"AUTH_OFF_REASON, or unset AUTH and give AUTH_ISSUER or API keys"
        )
    return True


def check_said(settings: HttpSettings) -> None:
    """Raises `SettingsError` where authentication is off because of the address alone: within
    another application, that does not say who reaches it."""
    if is_open(settings) and not (settings.auth is Auth.OFF and settings.auth_off_reason):
        raise SettingsError(
            "in another application, HTTP_HOST does not say who reaches the routes of this one: "
            "set AUTH=on, or say AUTH=off and why in AUTH_OFF_REASON"
        )


@lru_cache(_REMEMBERED_MAX)
def _made(settings: HttpSettings, _: object) -> Access:
    # Once per settings and file, so that all applications of a process know the same callers.
    tokens = None
    if settings.auth_issuer is not None or settings.auth_audience is not None:
        from saga.auth.tokens import Tokens  # An HTTP client and signatures take long to import.

        tokens = Tokens(settings)
    file = settings.keys_file
    if settings.api_keys_file is not None and not file.is_file():
        raise SettingsError(
            f"API_KEYS_FILE names {file}, which is no file; make a key: "
            f"saga keys create --file {file}"
        )
    keys = ApiKeys(file, settings.audit_folder)  # Whose file may be made later.
    if tokens is None and not keys:
        raise SettingsError(
            f"no caller could be known on {settings.http_host} (HTTP_HOST): set AUTH_ISSUER and "
            f"AUTH_AUDIENCE, or make an API key (saga keys create --file {file}), or say "
            f"AUTH=off and AUTH_OFF_REASON"
        )
    return Access(tokens, keys)


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def begin(settings: HttpSettings, process: str) -> None:
    """Say at a process's start who may ask it, and that its decisions can be kept. Raises
    `SettingsError`."""
    if access_of(settings) is None:
        why = f": {settings.auth_off_reason}" if settings.auth_off_reason else ""
        log.info(
            "AUTH is off: every client that reaches %s may do everything%s", settings.http_host, why
        )
        return
    trail_of(settings, process).close()  # Its application has its own.
    log.info("callers of %s are known by %s", settings.http_host, _known_by(settings))


def trail_of(settings: HttpSettings, process: str) -> AuditTrail:
    """The audit trail of a process. Raises `SettingsError` where its folder was asked for and takes
    none."""
    try:
        return AuditTrail.kept(
            settings.audit_folder,
            process,
            settings.audit_keep_bytes,
            asked_for=settings.audit_dir is not None,
        )
    except AuditError as error:
        raise SettingsError(str(error)) from None


def _known_by(settings: AuthSettings) -> str:
    ways = []
    if settings.auth_issuer is not None:
        ways.append(f"tokens of {settings.auth_issuer}")
    if settings.keys_file.is_file():
        ways.append(f"the API keys in {settings.keys_file}")
    return " and ".join(ways)


def serve_routes(app: FastAPI, router: APIRouter) -> None:
    """Add routes to an application, each of which declares what it takes of its caller. Raises
    `SettingsError` where callers are to be known and a route does not."""
    if app.state.closed:
        check_declared(router)
    for route in router.routes:
        if not isinstance(route, APIRoute):
            app.router.routes.append(route)
            continue
        same = {name: getattr(route, name) for name in _OF_A_ROUTE if hasattr(route, name)}
        same["responses"] = {**problems(*REFUSING), **route.responses}
        app.router.add_api_route(**same, route_class_override=AskingRoute)


def check_declared(router: APIRouter) -> None:
    """Raises `SettingsError` for a route that declares nothing, or lets in callers who act for one
    owner and never learns who asks."""
    for route in router.routes:
        if not isinstance(route, APIRoute):
            raise SettingsError(no_route(route))
        where = f"{'/'.join(sorted(route.methods or ()))} {route.path}"
        need = need_of(route)
        if need is None:
            raise SettingsError(
                f"the route {where} does not say who may ask: declare a scope beside it, "
                f"dependencies=[needs('things:read')], or run it on loopback with AUTH=off"
            )
        if need.own and not takes_its_caller(route):
            raise SettingsError(
                f"the route {where} is for owners (own=True), and does not take its caller: write "
                f"caller: Annotated[Caller, needs('{need.scope}', own=True)]"
            )
