"""Logging in and out."""

from __future__ import annotations

import logging
from typing import Annotated, Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Form, Query
from fastapi.responses import RedirectResponse, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from saga.auth.caller import AuthMethod, Caller, NotAllowed
from saga.console.access import (
    LOGGED_IN,
    OPEN_ROUTE,
    ConsoleAccess,
    address_of,
    browser_id_of,
    is_form_of_browser,
    is_readable_by_others,
    session_of,
)
from saga.console.forms import Given, asked_here
from saga.console.oidc import LoginError
from saga.console.site import Site, csrf_field
from saga.runtime.doors import network_of
from saga.runtime.problem import Problem

log = logging.getLogger(__name__)

KEY_MAX: Final = 200
"""Characters of an API key."""


class LoginWanted(BaseModel):
    """Which page to show after the login."""

    model_config = ConfigDict(extra="ignore")

    page: Given = None


class KeyGiven(LoginWanted):
    """An API key; it is looked up, and not kept."""

    key: Annotated[str, Field(max_length=KEY_MAX)]


def local(page: str | None) -> str:
    """The page, if it is one of this console; else the first one. Browsers take backslashes for
    slashes, and leave out tabs and line ends."""
    if page is None or not page.startswith("/") or page.startswith(("//", "/login", "/logout")):
        return "/"
    if "\\" in page or not page.isprintable():
        return "/"
    try:
        parts = urlsplit(page)
    except ValueError:
        return "/"
    return "/" if parts.scheme or parts.netloc else page


def routes(site: Site) -> APIRouter:
    """`/login` and `/logout`; there are none where there is no login."""
    router = APIRouter()
    if (found := site.access) is None:
        return router
    access: ConsoleAccess = found

    def login_page(request: Request, page: str, said: str = "", status: int = 200) -> Response:
        browser = browser_id_of(request, access)
        answer = site.page(
            request,
            "login.html",
            title="Log in",
            status=status,
            said=said,
            page=page,
            provider=None if access.provider is None else access.provider.host,
            by_key=access.provider is None or bool(access.keys),
            insecure=is_readable_by_others(request),
            csrf_field=csrf_field(access.sessions.csrf_of(browser)),
        )
        access.with_browser_id(request, answer, browser)
        return answer

    def logged_in(request: Request, caller: Caller, page: str) -> Response:
        _note(request, caller)
        if (before := access.session_id(request)) is not None:
            access.sessions.end(before)
        answer = RedirectResponse(f"{site.prefix}{local(page)}", 303)
        access.open_session(request, answer, access.sessions.begin(caller))
        return answer

    @router.get("/login", dependencies=[OPEN_ROUTE])
    async def ask(request: Request, wanted: Annotated[LoginWanted, Query()]) -> Response:
        page = local(wanted.page)
        if session_of(request) is not None:
            return RedirectResponse(f"{site.prefix}{page}", 303)
        return login_page(request, page)

    # --- at the provider ---------------------------------------------------------------------

    @router.get("/login/provider", dependencies=[OPEN_ROUTE])
    async def begin(request: Request, wanted: Annotated[LoginWanted, Query()]) -> Response:
        page = local(wanted.page)
        if access.provider is None:
            raise Problem(404, "there is no login at a provider here: AUTH_CLIENT_ID is not set")
        if not asked_here(request) or is_readable_by_others(request):
            return RedirectResponse(site.url("/login", page=page), 303)
        browser = browser_id_of(request, access)
        try:
            address = await access.provider.begin(
                browser, f"{_own(request)}/login/done", page, network_of(request.scope)
            )
        except LoginError as error:
            log.warning("no user can log in: %s", error)
            return login_page(request, page, str(error), 503)
        answer = RedirectResponse(address, 303)
        access.with_browser_id(request, answer, browser)
        return answer

    @router.get("/login/done", dependencies=[OPEN_ROUTE])
    async def finish(request: Request) -> Response:
        if access.provider is None:
            raise Problem(404, "there is no login at a provider here: AUTH_CLIENT_ID is not set")
        answer = dict(request.query_params)
        try:
            caller, page = await access.provider.finish(access.browser_id(request), answer)
            _check(caller)
        except LoginError as error:
            _note(request, None, reason=error.reason, how="the provider")
            return login_page(request, "/", str(error), 403)
        return logged_in(request, caller, page)

    # --- by a key ----------------------------------------------------------------------------

    @router.post("/login/key", dependencies=[OPEN_ROUTE])
    async def by_key(request: Request, given: Annotated[KeyGiven, Form()]) -> Response:
        page = local(given.page)
        if access.keys is None or is_readable_by_others(request):
            return login_page(request, page, "", 403)
        if not is_form_of_browser(request, access):
            said = "This form is from no page that you were given here; this one is."
            return login_page(request, page, said, 403)
        try:
            caller = access.keys.caller(given.key.strip())
            _check(caller)
        except NotAllowed as error:
            _note(request, None, reason=error.reason, how="an API key")
            return login_page(request, page, "That is no key that holds here.", 403)
        except LoginError as error:
            _note(request, None, reason=error.reason, how="an API key")
            return login_page(request, page, str(error), 403)
        return logged_in(request, caller, page)

    # --- out ---------------------------------------------------------------------------------

    @router.post("/logout", dependencies=[LOGGED_IN])
    async def log_out(request: Request) -> Response:
        session = session_of(request)
        elsewhere = None
        if (
            session is not None
            and session.caller.how is AuthMethod.LOGIN
            and access.provider is not None
        ):
            elsewhere = await access.provider.logout_address(f"{_own(request)}/logout")
        request.scope["state"].clear()  # The page is not needed any more.
        answer = site.page(request, "logout.html", title="You are logged out", elsewhere=elsewhere)
        if elsewhere is not None:
            # No redirect: that would be the form's, which may lead to this console only.
            answer.headers["Refresh"] = f"0; url={elsewhere}"
        access.close_session(request, answer)
        return answer

    @router.get("/logout", dependencies=[OPEN_ROUTE])
    async def logged_out(request: Request) -> Response:
        return site.page(request, "logout.html", title="You are logged out", elsewhere=None)

    def _own(request: Request) -> str:
        """The address of this console, as the browser has it."""
        return f"{request.url.scheme}://{request.url.netloc}{site.prefix}"

    return router


def _check(caller: Caller) -> None:
    """A console shows the sagas of all owners, so a user who acts for one owner only is refused.
    Raises `LoginError`."""
    if caller.owner is not None:
        raise LoginError(
            f"{caller.recorded_as} has no role that a console knows, and acts for one owner only: "
            f"it takes reader, operator or admin in AUTH_ROLES_CLAIM, or a key without an owner"
        )


def _note(request: Request, caller: Caller | None, *, reason: str = "", how: str = "") -> None:
    site: Site = request.app.state.site
    if site.access is None:
        return
    site.access.trail.decided(
        caller,
        action=f"log in by {how}" if how else "log in",
        scope="",
        allowed=caller is not None,
        reason=reason,
        address=address_of(request),
    )
