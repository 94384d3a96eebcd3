"""Who may see and do what at a console.

Each route says beside itself what it takes, by `needs`, or that it is open, by `OPEN_ROUTE`;
a console with a route that says neither does not start. `AuthenticationMiddleware` finds out who
asks, before any route; what is asked of the route is checked before anything of it runs.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

from fastapi import Depends
from fastapi.responses import Response
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saga.auth.access import is_open, trail_of
from saga.auth.audit import AuditTrail
from saga.auth.caller import AuthMethod, Caller, NotAllowed
from saga.auth.gate import Answering
from saga.auth.keys import SCOPE, ApiKeys, KeysError
from saga.auth.scopes import action_of
from saga.auth.settings import is_loopback
from saga.console import NAME
from saga.console.live import is_live
from saga.console.oidc import LoginProvider
from saga.console.sessions import LoginSession, Sessions, random_id
from saga.console.settings import ConsoleSettings
from saga.dlq.audit import acting_as
from saga.runtime.doors import SAFE_METHODS
from saga.runtime.metrics import refused
from saga.runtime.problem import Problem
from saga.runtime.settings import SettingsError

if TYPE_CHECKING:
    from saga.console.site import Site

CSRF: Final = "csrf"
"""The field that each form has, with what its page was given for it."""
PERSONAL: Final = "personal:read"
"""What it takes to see what messages say."""
_BY_PROXIES: Final = ("forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")
_SESSION, _CSRF, _REACHED = "session", "csrf", "reached"


class PageNeeds:
    """What a route takes of who asks: scopes, or without one that they are logged in. With
    `personal`, it shows what messages say to those who may see that."""

    def __init__(self, *scopes: str, personal: bool = False) -> None:
        """Raises `ValueError` for a scope that does not read like `letters:read`."""
        for scope in scopes:
            if not SCOPE.fullmatch(scope) or "*" in scope:
                raise ValueError(f"{scope!r} is no scope; write it like letters:read")
        self.scopes = scopes
        self.personal = personal

    async def __call__(self, request: Request) -> None:
        """Raises `NotLoggedIn`, and `Problem` for who may not."""
        site: Site = request.app.state.site
        _reached(request)
        if site.access is None:
            return
        session = session_of(request)
        if session is None:
            self._note(request, None, "no user is logged in")
            raise NotLoggedIn
        refusal = self._refusal(request, session)
        # A page that brings itself up to date is one look; what changes something is none.
        live = request.method in SAFE_METHODS and is_live(request)
        address = f"{request.method} {request.url.path}?{request.url.query}"
        if session.is_news(address) or not live or refusal:
            self._note(
                request,
                session.caller,
                refusal,
                personal=self.personal and not refusal and site.clear(request),
            )
        if refusal:
            refused("forbidden")
            raise Problem(403, refusal)

    def _refusal(self, request: Request, session: LoginSession) -> str:
        if request.method not in SAFE_METHODS and not _is_own_form(request, session.csrf):
            return "this form is from no page that you were given here: load its page again"
        for scope in self.scopes:
            if not session.caller.may(scope):
                return f"that takes the scope {scope}, which {session.caller.recorded_as} has not"
        return ""

    def _note(
        self, request: Request, caller: Caller | None, reason: str = "", *, personal: bool = False
    ) -> None:
        about = request.path_params
        subject = next((str(about[name]) for name in ("subject", "number") if name in about), None)
        site: Site = request.app.state.site
        if site.access is None:
            return
        site.access.trail.decided(
            caller,
            action=action_of(request),
            scope=" ".join(self.scopes),
            subject=subject,
            allowed=not reason,
            reason=reason,
            personal=personal,
            address=address_of(request),
        )


class OpenRoute:
    """Marks a route as open: it is needed before a login, and shows nothing of the system."""

    async def __call__(self, request: Request) -> None:
        _reached(request)


def _reached(request: Request) -> None:
    """A route decides who may; what reaches none is recorded by the `AuthenticationMiddleware`."""
    request.scope.setdefault("state", {})[_REACHED] = True


OPEN_ROUTE: Final = Depends(OpenRoute())
LOGGED_IN: Final = Depends(PageNeeds())
"""Declares that a route is for all who are logged in."""


def needs(*scopes: str, personal: bool = False) -> Any:
    """Declares beside a route what it takes; see `PageNeeds`."""
    return Depends(PageNeeds(*scopes, personal=personal))


class NotLoggedIn(Exception):
    """The client is not logged in; it may log in, and ask again."""


def routes_in(routes: Iterable[Any]) -> Iterator[Any]:
    """Each route, those of included routers among them."""
    for route in routes:
        if (router := getattr(route, "original_router", None)) is not None:
            yield from routes_in(router.routes)
        else:
            yield route


def declared(route: Any) -> PageNeeds | OpenRoute | None:
    """What a route has said that it takes; None if it has not."""
    found = [depends.dependency for depends in getattr(route, "dependencies", ())]
    return next((each for each in found if isinstance(each, PageNeeds | OpenRoute)), None)


class ConsoleAccess:
    """Who is logged in at a console, and how they log in: at a provider, by an API key, or both."""

    def __init__(
        self,
        sessions: Sessions,
        trail: AuditTrail,
        *,
        provider: LoginProvider | None,
        keys: ApiKeys | None,
    ) -> None:
        self.sessions = sessions
        self.trail = trail
        """Where it is written down who was let in, and who was not."""
        self.provider = provider
        self.keys = keys

    # --- cookies -----------------------------------------------------------------------------

    def session_id(self, request: Request) -> str | None:
        """What the browser says is its session."""
        return request.cookies.get(_cookie(request, "session"))

    def browser_id(self, request: Request) -> str | None:
        """What stands for a browser in which no user is logged in."""
        return request.cookies.get(_cookie(request, "login"))

    def open_session(self, request: Request, answer: Response, id_: str) -> None:
        """Set a session's id in the browser, in place of what came before it."""
        _set(request, answer, "session", id_)
        _delete(request, answer, "login")

    def close_session(self, request: Request, answer: Response) -> None:
        """End the browser's session, and have it forget its id."""
        if (id_ := self.session_id(request)) is not None:
            self.sessions.end(id_)
        _delete(request, answer, "session")

    def with_browser_id(self, request: Request, answer: Response, id_: str) -> None:
        """Set in the browser what stands for it until a user is logged in."""
        _set(request, answer, "login", id_)

    # --- who asks ----------------------------------------------------------------------------

    def find(self, request: Request) -> LoginSession | None:
        """The session of who asks. What a page that is open asks by itself keeps none alive."""
        id_ = self.session_id(request)
        if id_ is None:
            return None
        live = is_live(request) or "text/event-stream" in request.headers.get("accept", "")
        session = self.sessions.find(id_, active=not live)
        if session is not None and session.caller.how is AuthMethod.KEY:
            try:
                session.caller = self._again(session.caller)
            except NotAllowed:
                self.sessions.end(id_)
                return None
        return session

    def _again(self, caller: Caller) -> Caller:
        """What an API key may by now. Raises `NotAllowed` where it is revoked, or has expired."""
        if self.keys is None:
            raise NotAllowed("no API keys are known here")
        return self.keys.again(caller)


def access_of(settings: ConsoleSettings) -> ConsoleAccess | None:
    """How users log in; None where there is no login. Raises `SettingsError` where no user could
    log in, and it is not said on purpose that all clients may do everything."""
    if is_open(settings):
        return None
    file = settings.keys_file
    if settings.api_keys_file is not None and not file.is_file():
        raise SettingsError(
            f"API_KEYS_FILE names {file}, which is no file; make a key: "
            f"saga keys create --file {file}"
        )
    try:
        keys = ApiKeys(file, settings.audit_folder)  # Whose file may be made later.
    except KeysError as error:
        raise SettingsError(str(error)) from None
    provider = None
    if settings.auth_client_id is not None:
        if settings.auth_issuer is None:
            raise SettingsError("AUTH_CLIENT_ID names a client of no issuer: set AUTH_ISSUER")
        provider = LoginProvider(settings)
    if provider is None and not keys:
        raise SettingsError(
            f"no user could log in to the console on {settings.http_host} (HTTP_HOST): set "
            f"AUTH_ISSUER and AUTH_CLIENT_ID, or make an API key (saga keys create --file {file}), "
            f"or say AUTH=off and AUTH_OFF_REASON; on 127.0.0.1 no login is needed"
        )
    sessions = Sessions(
        settings.console_session_idle_minutes * 60, settings.console_session_hours * 3600
    )
    return ConsoleAccess(sessions, trail_of(settings, NAME), provider=provider, keys=keys)


class AuthenticationMiddleware:
    """Middleware: finds out who asks, has the records name them, and takes from each form what
    proves that it comes from a page of theirs. A request that no route takes, because of its path
    or its body, it writes down."""

    def __init__(self, app: ASGIApp, access: ConsoleAccess) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        session = self._access.find(request)
        state = scope.setdefault("state", {})
        state[_SESSION] = session
        if scope["method"] not in SAFE_METHODS:
            body, state[_CSRF] = _without_csrf(await request.body())
            receive = _given(body, receive)

        def record(reason: str) -> None:
            if session is not None and _REACHED not in state:
                self._access.trail.decided(
                    session.caller,
                    action=action_of(request),
                    scope="",
                    allowed=False,
                    reason=reason,
                    address=address_of(request),
                )

        answering = Answering(send, record, self._access.trail)
        try:
            with acting_as(None if session is None else session.caller.recorded_as):
                await self._app(scope, receive, answering)
        finally:
            answering.end()


def _without_csrf(body: bytes) -> tuple[bytes, str]:
    """A form's fields without the one that is not for its route, and that one; empty if it is not
    there, or there are several."""
    mark = f"{CSRF}=".encode()
    fields = body.split(b"&")
    said = [field.removeprefix(mark) for field in fields if field.startswith(mark)]
    others = b"&".join(field for field in fields if not field.startswith(mark))
    return others, said[0].decode("ascii", "replace") if len(said) == 1 else ""


def _given(body: bytes, receive: Receive) -> Receive:
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def give() -> Message:
        return messages.pop() if messages else await receive()

    return give


def session_of(request: Request) -> LoginSession | None:
    """The session of who asks, as `AuthenticationMiddleware` found it."""
    found: LoginSession | None = request.scope.get("state", {}).get(_SESSION)
    return found


def _is_own_form(request: Request, csrf: str) -> bool:
    said: str = request.scope.get("state", {}).get(_CSRF, "")
    return hmac.compare_digest(said.encode(), csrf.encode())


def is_form_of_browser(request: Request, access: ConsoleAccess) -> bool:
    """Whether a form of who is not logged in is from the page that their browser was given."""
    id_ = access.browser_id(request)
    return id_ is not None and _is_own_form(request, access.sessions.csrf_of(id_))


def browser_id_of(request: Request, access: ConsoleAccess) -> str:
    """What stands for a browser in which no user is logged in; new if it has none."""
    return access.browser_id(request) or random_id()


def address_of(request: Request) -> str:
    """The network address of who asks."""
    return request.client.host if request.client is not None else ""


# --- cookies --------------------------------------------------------------------------------------


def is_secure(request: Request) -> bool:
    """Whether it came by TLS: to us, or to a proxy that is believed."""
    return request.url.scheme == "https"


def is_readable_by_others(request: Request) -> bool:
    """Whether what the browser sends may be read on its way here: it comes without TLS, and not
    from this machine, or by a proxy that does not say that it has TLS and is believed."""
    passed_on = any(name in request.headers for name in _BY_PROXIES)
    local = is_loopback(request.url.hostname or "") and not passed_on
    return not is_secure(request) and not local


def _cookie(request: Request, what: str) -> str:
    """The name of a cookie. With `__Host-`, a browser takes it over TLS from this host alone; over
    plain HTTP it takes none of that name. Cookies know no ports, so the name has it: logging out
    of one of two consoles on a machine does not log out of the other."""
    port = request.url.port
    name = f"saga-{what}" if port is None else f"saga-{what}-{port}"
    return f"__Host-{name}" if is_secure(request) else name


def _set(request: Request, answer: Response, what: str, value: str) -> None:
    answer.set_cookie(
        _cookie(request, what),
        value,
        path="/",
        secure=is_secure(request),
        httponly=True,
        samesite="lax",
    )


def _delete(request: Request, answer: Response, what: str) -> None:
    answer.delete_cookie(
        _cookie(request, what), path="/", secure=is_secure(request), httponly=True, samesite="lax"
    )
