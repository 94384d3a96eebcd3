"""What the pages of a console have in common: the system they show, how they are drawn, and whether
they may change anything."""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property, partial
from importlib.resources import files
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2
from fastapi.responses import HTMLResponse
from markupsafe import Markup
from starlette.requests import Request

from saga.console.access import CSRF, PERSONAL, ConsoleAccess, session_of
from saga.console.letters import WatchedLetters
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.watched import Watched
from saga.dlq.quotations import masked_error
from saga.graph import svg
from saga.history import drawing
from saga.history.sequence import duration
from saga.text import harmless
from saga.version import engine_version
from saga.wording import counted

CUT_CHARACTERS: Final = 120
"""Of a text in a table, what is shown; the whole is in its title."""


@dataclass(frozen=True, slots=True)
class NavigationLink:
    """A page of the navigation; `key` follows `g` on the keyboard. Who has not its `scope` is not
    led there."""

    path: str
    name: str
    key: str
    scope: str


NAVIGATION: Final = (
    NavigationLink("/", "Map", "m", "map:read"),
    NavigationLink("/sagas", "Sagas", "s", "sagas:read"),
    NavigationLink("/letters", "Dead letters", "l", "letters:read"),
    NavigationLink("/stuck", "Stuck", "k", "sagas:read"),
    NavigationLink("/due", "Due", "d", "dues:read"),
    NavigationLink("/books", "Books", "b", "books:read"),
    NavigationLink("/proof", "Proof", "p", "proof:read"),
    NavigationLink("/services", "Services", "v", "services:read"),
    NavigationLink("/audit", "Audit", "a", "audit:read"),
)
DECIDE: Final = NavigationLink("/decide", "Decide", "c", "decisions:read")
"""In the navigation of a saga that says how to decide what its rules leave to people."""


CHANGING: Final = ("letters:write", "dues:write", "decisions:write")
"""What it takes to change something here."""


@dataclass(frozen=True)
class Site:
    """One console. Belongs to one event loop."""

    watched: Watched
    ticker: Ticker
    lookout: SystemWatcher
    """What the system says of itself now."""
    write: bool
    """Whether it may change anything."""
    prefix: str = ""
    """The path under which a proxy has it, without a slash at its end."""
    bodies: bool = False
    """Whether it shows what is in messages, not only how they are made."""
    trace_url: str = ""
    """Where a trace is shown: an address with `{trace_id}` in it; empty if it is not known."""
    access: ConsoleAccess | None = None
    """The user who is logged in; None where there is no login, and all clients may do what the
    console may."""
    audit_folder: Path | None = None
    """Where processes record who was let in and who was not."""

    @cached_property
    def letters(self) -> WatchedLetters:
        """The dead letters, as it shows them and deals with them."""
        return WatchedLetters(self.watched)

    @cached_property
    def navigation(self) -> Sequence[NavigationLink]:
        """The pages that are a key away."""
        return (*NAVIGATION, DECIDE) if self.watched.saga.choices else NAVIGATION

    @cached_property
    def _templates(self) -> jinja2.Environment:
        templates = jinja2.Environment(
            loader=jinja2.PackageLoader("saga.console"),
            autoescape=True,
            undefined=jinja2.StrictUndefined,
            finalize=_shown,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        templates.filters |= {
            "counted": counted,
            "when": when,
            "utc_field": utc_field,
            "cut": cut,
            "lasting": lasting,
            "segment": segment,
            "error_text": _error_text,
        }
        templates.globals |= {
            "url": self.url,
            "asset": self.asset,
            "write": self.write,
            "saga_name": self.watched.saga.name,
            "version": engine_version(),
        }
        return templates

    def url(self, path: str, **query: Any) -> str:
        """The address of a page, with what of the query is not None. Parts of a path that others
        wrote go in by `segment`."""
        given = {name: value for name, value in query.items() if value is not None}
        return f"{self.prefix}{path}" + (f"?{urlencode(given, doseq=True)}" if given else "")

    def asset(self, name: str) -> str:
        """The address of a file of this package, which changes with what is in it."""
        return self.url(f"/static/{name}", v=digest(name))

    def below(self, path: str) -> str:
        """A request's path without the prefix, which some proxies leave on and others take off."""
        has_it = path == self.prefix or path.startswith(f"{self.prefix}/")
        return (path[len(self.prefix) :] if has_it else path) or "/"

    def may(self, request: Request, scope: str) -> bool:
        """Whether who asks may do what takes that scope, and the console may change something where
        it does."""
        if not (self.write or scope.endswith(":read")):
            return False
        if self.access is None:
            return True
        session = session_of(request)
        return session is not None and session.caller.may(scope)

    def clear(self, request: Request) -> bool:
        """Whether who asks is shown what is in messages, not only how they are made."""
        return self.bodies and self.may(request, PERSONAL)

    def page(
        self,
        request: Request,
        template: str,
        *,
        title: str,
        status: int = 200,
        command: str | None = None,
        **context: Any,
    ) -> HTMLResponse:
        """A page. `command` is what does or says the same on the command line."""
        here = self.below(request.url.path)
        session = session_of(request)
        may = partial(self.may, request)
        shown = {
            "title": title,
            "here": here,
            "address": self.prefix + here + (f"?{request.url.query}" if request.url.query else ""),
            "command": command,
            "now": datetime.now(UTC),
            "logs_in": self.access is not None,
            "person": None if session is None else session.caller.recorded_as,
            "csrf_field": Markup("") if session is None else csrf_field(session.csrf),
            "may": may,
            "changes": any(map(may, CHANGING)),
            "bodies": self.clear(request),
            "navigation": [link for link in self.navigation if may(link.scope)],
        }
        document = self._templates.get_template(template).render(shown | context)
        return HTMLResponse(document, status_code=status)


def csrf_field(value: str) -> Markup:
    """What stands in a form, and proves that a page of ours has it."""
    return Markup('<input type="hidden" name="{}" value="{}">').format(CSRF, value)


@jinja2.pass_context
def _error_text(context: jinja2.runtime.Context, error: object) -> str:
    """What an error says, as far as who asks is shown what it quotes."""
    return str(error) if context["bodies"] else masked_error(str(error))


def segment(text: str) -> str:
    """A text that others wrote, as a part of a path."""
    return quote(text, safe="")


def when(moment: datetime | None) -> Markup:
    """A time: UTC as it stands here; a script shows it in the viewer's zone, UTC on hover."""
    if moment is None:
        return Markup("")
    moment = moment.astimezone(UTC)
    return Markup('<time datetime="{}">{} UTC</time>').format(
        moment.isoformat(timespec="milliseconds"), moment.strftime("%Y-%m-%d %H:%M:%S")
    )


def utc_field(moment: datetime | None) -> str:
    """A time as a field of a form has it: UTC, to the second."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%S}"


def lasting(length: timedelta | float | None) -> str:
    """How long something takes, in words; seconds if it is a number."""
    if length is None:
        return ""
    return duration(length if isinstance(length, timedelta) else timedelta(seconds=length))


def cut(text: Any, characters: int = CUT_CHARACTERS) -> Markup:
    """A text as it fits into a table; where it is longer, the whole is shown on hover."""
    said = harmless(str(text))
    if len(said) <= characters:
        return Markup("{}").format(said)
    return Markup('<span title="{}">{}…</span>').format(said[:2_000], said[:characters])


def _shown(value: Any) -> Any:
    """What a template prints: nothing of what others wrote is obeyed by what shows it."""
    if value is None:
        return ""
    return value if isinstance(value, Markup) else harmless(str(value), lines=True)


def static(name: str) -> bytes | None:
    """A file of this package; None if there is none of that name."""
    folder = files("saga.console") / "static"
    return next((f.read_bytes() for f in folder.iterdir() if f.name == name), None)


def digest(name: str) -> str:
    return hashlib.sha256(static(name) or b"").hexdigest()[:12]


def security_policy() -> str:
    """What a page may load: what this console serves, and the styles that pictures have in them."""
    styles = (svg.STYLE, svg.STYLE + svg.STYLE_OF_PRIVATE, drawing.STYLE)
    hashes = " ".join(
        f"'sha256-{b64encode(hashlib.sha256(style.encode()).digest()).decode()}'"
        for style in styles
    )
    return (
        f"default-src 'none'; script-src 'self'; style-src 'self' {hashes}; img-src 'self' data:; "
        f"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
