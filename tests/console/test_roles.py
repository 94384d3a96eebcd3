"""Who may do what: each page and each form says it beside its route, and is held to that, made from
the routes, so that a new one is tried by itself."""

from __future__ import annotations

import ast
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import httpx
import pytest
from fastapi import APIRouter, FastAPI

import saga.console.app
from order_saga import SAGA
from saga.auth.audit import AuditTrail, entries
from saga.auth.caller import AuthMethod, Caller
from saga.auth.scopes import ROLES
from saga.auth.settings import Auth
from saga.console.access import (
    PERSONAL,
    ConsoleAccess,
    OpenRoute,
    PageNeeds,
    declared,
    routes_in,
)
from saga.console.app import create
from saga.console.live import Ticker
from saga.console.lookout import SystemWatcher
from saga.console.sessions import Sessions
from saga.console.settings import ConsoleSettings
from saga.console.site import Site
from saga.console.watched import Watched
from saga.deployment import Deployment, dead_letters_url_in
from saga.runtime.dues import BringForward
from saga.runtime.headers import SECURITY_HEADERS

FOR_EVERYONE: Final = {
    "GET /livez",
    "GET /login",
    "GET /login/done",
    "GET /login/provider",
    "GET /logout",
    "GET /static/{name}",
    "POST /login/key",
}
IN_PATHS: Final = {
    "{number}": "999999",
    "{participant}": "order",
    "{kind}": "Order",
    "{subject:path}": quote("no/one", safe=""),
    "{name:path}": "none",
    "{name}": "none",
    "{seed}": "1",
}
FORM: Final = {"reason": "a test", "confirmed": "x", "open": "1", "text": "{}", "way": "burn"}


def caller(*scopes: str, name: str = "") -> Caller:
    return Caller("ada-1", AuthMethod.LOGIN, frozenset(scopes), name=name)


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Guarded:
    """A console at which people are logged in, without a server before it."""

    app: FastAPI
    access: ConsoleAccess
    clock: Clock

    @property
    def routes(self) -> Iterator[tuple[str, str, PageNeeds | OpenRoute | None]]:
        """Each method and path, and what it takes."""
        for route in routes_in(self.app.routes):
            for method in route.methods - {"HEAD"}:
                yield method, route.path, declared(route)

    @asynccontextmanager
    async def client(self, who: Caller | None) -> AsyncIterator[httpx.AsyncClient]:
        """The browser of a user, or one in which no user is logged in."""
        transport = httpx.ASGITransport(self.app)
        url = "https://127.0.0.1"
        async with httpx.AsyncClient(transport=transport, base_url=url, timeout=60) as client:
            if who is not None:
                id_ = self.access.sessions.begin(who)
                client.cookies.set("__Host-saga-session", id_)
                client.headers["x-csrf"] = self.access.sessions.csrf_of(id_)
            yield client


@pytest.fixture
def guarded(tmp_path: Path) -> Guarded:
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls={},
        dead_letters_url=dead_letters_url_in(tmp_path),
    ).save(tmp_path)
    watched = Watched(tmp_path, SAGA)
    clock = Clock()
    trail = AuditTrail.kept(tmp_path / "audit", "console", 10_000_000, asked_for=True)
    access = ConsoleAccess(Sessions(60.0, 600.0, clock), trail, provider=None, keys=None)
    site = Site(
        watched,
        Ticker(),
        SystemWatcher(watched, None),
        write=True,
        bodies=True,
        access=access,
        audit_folder=tmp_path / "audit",
    )
    return Guarded(create(site, ConsoleSettings(auth=Auth.ON, data_dir=tmp_path)), access, clock)


def address(path: str) -> str:
    for part, value in IN_PATHS.items():
        path = path.replace(part, value)
    return path


def form_of(client: httpx.AsyncClient, **more: str) -> dict[str, str]:
    return FORM | {"csrf": client.headers["x-csrf"]} | more


async def ask(client: httpx.AsyncClient, method: str, path: str) -> httpx.Response:
    data = form_of(client) if method == "POST" else None
    return await client.request(method, address(path), data=data)


def is_let_in(answer: httpx.Response) -> bool:
    return answer.status_code not in (401, 403) and "/login" not in answer.headers.get(
        "location", ""
    )


# --- declared -------------------------------------------------------------------------------------


def test_every_route_says_who_may(guarded: Guarded) -> None:
    found = [*guarded.routes]
    assert len(found) >= 45
    assert not [path for _, path, need in found if need is None]
    everyone = {f"{method} {path}" for method, path, n in found if isinstance(n, OpenRoute)}
    assert everyone == FOR_EVERYONE


def test_what_changes_something_takes_a_scope_that_says_so(guarded: Guarded) -> None:
    for method, path, need in guarded.routes:
        if method != "GET" and path not in ("/logout", "/login/key"):
            assert isinstance(need, PageNeeds)
            assert [scope for scope in need.scopes if scope.endswith(":write")], path


@pytest.mark.parametrize("dependencies", [[], None])
def test_a_console_with_a_route_that_does_not_say_it_does_not_start(
    dependencies: list[Any] | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def routes(_: Site) -> APIRouter:
        router = APIRouter()

        async def new() -> dict[str, str]:
            return {}

        router.add_api_route("/new", new, dependencies=dependencies)
        return router

    monkeypatch.setattr(saga.console.app, "PAGES", (routes,))
    watched = Watched(tmp_path, SAGA)
    site = Site(watched, Ticker(), SystemWatcher(watched, None), write=True)
    with pytest.raises(RuntimeError, match="/new does not say who may"):
        create(site, ConsoleSettings())


def test_every_form_of_the_templates_proves_where_it_comes_from() -> None:
    folder = Path(saga.console.app.__file__).parent / "templates"
    forms = [
        (file.name, form)
        for file in folder.glob("*.html")
        for form in re.findall(r'<form method="post".*?</form>', file.read_text(), re.DOTALL)
    ]
    assert len(forms) >= 9
    # The field of the reason has it in it.
    assert not [name for name, f in forms if "csrf_field" not in f and "parts.reason(" not in f]


def test_no_page_asks_the_site_what_only_its_visitor_can_answer() -> None:
    """Whether bodies are shown depends on who looks; `Site.bodies` alone never decides it."""
    folder = Path(saga.console.app.__file__).parent
    for file in [*folder.glob("pages/*.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in ("bodies", "write"):
                asked_for = ast.unparse(node.value)
                assert asked_for not in ("site", "self._site") or file.name == "letters.py", file


# --- held to it -----------------------------------------------------------------------------------


async def test_nobody_gets_anywhere_without_logging_in(guarded: Guarded) -> None:
    async with guarded.client(None) as client:
        for method, path, need in guarded.routes:
            answer = await client.request(method, address(path), data=FORM)
            assert {name.decode() for name in SECURITY_HEADERS} <= {*answer.headers}, path
            if isinstance(need, OpenRoute):
                continue
            assert answer.headers["cache-control"] == "no-store"
            if method == "GET":
                assert answer.status_code == 303, path
                assert answer.headers["location"].startswith("/login?page=")
            else:
                assert answer.status_code == 401, path
                assert "The user is not logged in" in answer.text


async def test_each_route_lets_in_who_has_its_scope_and_nobody_else(guarded: Guarded) -> None:
    tried = 0
    for method, path, need in guarded.routes:
        if not isinstance(need, PageNeeds) or not need.scopes:
            continue
        tried += 1
        for missing in need.scopes:
            what, how = missing.split(":")
            others = {*need.scopes, f"{what}x:{how}", f"{what}:other", f"other:{how}"} - {missing}
            async with guarded.client(caller(*others)) as client:
                answer = await ask(client, method, path)
                assert answer.status_code == 403, path
                assert f"that takes the scope {missing}" in answer.text
        async with guarded.client(caller(*need.scopes)) as client:
            assert is_let_in(await ask(client, method, path)), path
    assert tried >= 35


@pytest.mark.parametrize(
    ("role", "may_read", "may_change", "may_edit"),
    [
        ("reader", True, False, False),
        ("operator", True, True, False),
        ("admin", True, True, True),
    ],
)
async def test_roles_may_what_they_are_for(
    role: str, may_read: bool, may_change: bool, may_edit: bool, guarded: Guarded
) -> None:
    async with guarded.client(caller(*ROLES[role])) as client:
        for method, path, need in guarded.routes:
            if not isinstance(need, PageNeeds) or not need.scopes:
                continue
            answer = await ask(client, method, path)
            if PERSONAL in need.scopes:
                assert is_let_in(answer) == may_edit, path
            elif need.scopes[0].endswith(":read"):
                assert is_let_in(answer) == may_read, path
            else:
                assert is_let_in(answer) == may_change, (method, path)


async def test_a_form_without_its_pages_proof_does_nothing(guarded: Guarded) -> None:
    async with guarded.client(caller("*")) as client, guarded.client(caller("*")) as other:
        proof, others = client.headers["x-csrf"], other.headers["x-csrf"]
        for method, path, need in guarded.routes:
            if method != "POST" or isinstance(need, OpenRoute):
                continue
            for wrong in ("", "x", proof[:-1], others):
                answer = await client.post(address(path), data=FORM | {"csrf": wrong})
                assert answer.status_code == 403, path
                assert "this form is from no page" in answer.text
            for body in (
                f"csrf={proof}&csrf={proof}",
                f"csrf={others}&csrf={proof}",
                f"reason=csrf={proof}",
            ):
                kind = {"Content-Type": "application/x-www-form-urlencoded"}
                answer = await client.post(address(path), content=body, headers=kind)
                assert answer.status_code == 403, path
            answer = await client.post(address(path), files={"csrf": (None, proof)})
            assert answer.status_code == 403, path
            answer = await client.post(f"{address(path)}?csrf={proof}", data=FORM)
            assert answer.status_code == 403, path


async def test_a_form_reaches_its_route_without_the_proof(guarded: Guarded) -> None:
    """Routes take just the fields that they know."""
    async with guarded.client(caller("*")) as client:
        data = {"reason": "fine & well = 100 %", "csrf": client.headers["x-csrf"]}
        answer = await client.post("/due/order/Order/no-one", data=data)
    assert answer.status_code in (404, 409, 503), answer.text


@pytest.mark.parametrize("header", [{"X-Live": "1"}, {"Accept": "text/event-stream"}, {}])
async def test_pages_that_are_open_keep_nobody_logged_in(
    header: dict[str, str], guarded: Guarded
) -> None:
    async with guarded.client(caller("*:read")) as client:
        for _ in range(3):
            guarded.clock.now += 25.0
            await client.get("/keys", headers=header)
        still = (await client.get("/keys")).status_code == 200
    assert still == (header == {})


# --- recorded -------------------------------------------------------------------------------------


async def test_each_decision_is_recorded_with_who_and_what(
    guarded: Guarded, tmp_path: Path
) -> None:
    async with guarded.client(caller("sagas:read", "personal:read", name="Ada")) as client:
        await client.get("/sagas/4711")
        await client.get("/letters/17")
        await client.get("/services", headers={"X-Live": "1"})
    async with guarded.client(caller("sagas:read")) as masked:
        await masked.get("/sagas/4712")
    async with guarded.client(None) as nobody:
        await nobody.get("/letters")

    lines = [*entries(tmp_path / "audit")][::-1]

    assert [(e.who, e.action, e.subject, e.allowed, e.personal) for e in lines] == [
        ("ada-1", "GET /sagas/{subject:path}", "4711", True, True),
        ("ada-1", "GET /letters/{number}", "17", False, False),
        ("ada-1", "GET /services", None, False, False),
        ("ada-1", "GET /sagas/{subject:path}", "4712", True, False),
        (None, "GET /letters", None, False, False),
    ]
    assert lines[0].name == "Ada"
    assert lines[0].how == "login"


def test_whatever_people_are_called_a_record_takes_it_and_shows_it_harmlessly() -> None:
    for subject, name in (("\x1b" * 255, "\u202e" * 255), ("é" * 255, "名" * 255)):
        said = Caller(subject, AuthMethod.LOGIN, frozenset(), name=name).recorded_as
        assert BringForward.model_validate({"who": said, "reason": "x"}).who == said
    assert caller(name="bob-2").recorded_as == "ada-1 (bob-2)"  # What is unique, first.


async def test_a_page_that_brings_itself_up_to_date_is_recorded_once(
    guarded: Guarded, tmp_path: Path
) -> None:
    async with guarded.client(caller("*:read")) as client:
        live = {"X-Live": "1"}
        site: Site = guarded.app.state.site
        for headers in (live, live, {}, live):
            await client.get("/services", headers=headers)
            site.ticker.tick += 1  # Else all of one tick are given one answer.
        await client.get("/audit", headers=live)  # What was not opened before is a look as well.
    found = [each.action for each in entries(tmp_path / "audit")]
    assert sorted(found) == ["GET /audit", "GET /services", "GET /services"]


async def test_what_only_says_that_it_brings_a_page_up_to_date_is_recorded_each_time(
    guarded: Guarded, tmp_path: Path
) -> None:
    live = {"X-Live": "1"}
    async with guarded.client(caller("*")) as client:
        for _ in range(2):
            await client.post("/due/order/Order/4711", data=form_of(client), headers=live)
    async with guarded.client(None) as nobody:
        await nobody.get("/letters", headers=live)

    found = [(each.who, each.action.partition(" ")[0]) for each in entries(tmp_path / "audit")]
    assert found == [(None, "GET"), ("ada-1", "POST"), ("ada-1", "POST")]


async def test_the_trail_is_shown_and_searched(guarded: Guarded, tmp_path: Path) -> None:
    async with guarded.client(caller("*:read", "personal:read", name="Ada")) as ada:
        await ada.get("/sagas/4711")
        await ada.post("/due/order/Order/4711", data=form_of(ada))
    everything = Caller("bob-2", AuthMethod.LOGIN, frozenset({"*"}), name="<b>Bob")
    async with guarded.client(everything) as bob:
        await bob.get("/letters")

        async def shown(query: str) -> set[str]:
            page = await bob.get(f"/audit/trail?{query}")
            assert page.status_code == 200, page.text
            assert "<b>Bob" not in page.text
            table = page.text.partition("<tbody>")[2].partition("</tbody>")[0]
            return {*re.findall(r"<td>((?:GET|POST) [^<]+)</td>", table)}

        assert {"GET /letters", "GET /sagas/{subject:path}"} <= await shown("")
        assert await shown("person=ADA&allowed=yes") == {"GET /sagas/{subject:path}"}
        assert await shown("personal=yes&person=ada") == {"GET /sagas/{subject:path}"}
        due = "POST /due/{participant}/{kind}/{subject:path}"
        assert await shown("allowed=no") == {due}
        assert await shown("action=letters") == {"GET /letters"}
        assert await shown("person=nobody") == set()


async def test_the_trail_is_gone_through_from_page_to_page(
    guarded: Guarded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each line once, also where several have one time, and while more are written."""
    monkeypatch.setattr("saga.console.pages.trail.LINES_MAX", 70)
    for number in range(160):
        guarded.access.trail.decided(
            caller("*"), action=f"did {number:03}", scope="x:read", allowed=number % 3 != 0
        )
    for query in ("action=did", "action=did&allowed=no"):
        seen: list[str] = []
        async with guarded.client(caller("audit:read")) as client:
            page = await client.get(f"/audit/trail?{query}")
            while True:
                seen += re.findall(r"<td>(did \d+)</td>", page.text)
                more = re.search(r'rel="next" href="([^"]+)"', page.text)
                if more is None:
                    break
                trail = guarded.access.trail
                trail.decided(caller("*"), action="did more", scope="x:read", allowed=True)
                page = await client.get(more[1].replace("&amp;", "&"))
        wanted = [n for n in range(160) if "no" not in query or n % 3 == 0]
        assert seen == [f"did {number:03}" for number in reversed(wanted)]


async def test_what_no_route_takes_is_on_record_too(guarded: Guarded, tmp_path: Path) -> None:
    async with guarded.client(caller("*:read")) as client:
        await client.get("/no/such/page")
        await client.post("/letters", data=form_of(client))
    async with guarded.client(None) as client:
        await client.get("/no/such/page")

    found = [(e.who, e.action, e.allowed, e.reason) for e in entries(tmp_path / "audit")]
    assert ("ada-1", "GET /no/such/page", False, "answered 404") in found
    assert ("ada-1", "POST /letters", False, "answered 405") in found
    assert len(found) == 2
