"""Logging in at a real OpenID Connect provider and by an API key, and everything that is none."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import OctKey, RSAKey

from saga.auth.audit import entries
from saga.auth.caller import AuthMethod, Caller
from saga.auth.keys import new_key, write_keys
from saga.auth.settings import Auth
from saga.console import live, oidc
from saga.console.access import access_of
from saga.console.live import HEADER
from saga.console.oidc import LoginProvider
from saga.console.pages.login import local
from saga.console.sessions import SESSIONS_MAX, Sessions
from saga.console.settings import ConsoleSettings
from saga.runtime.settings import SettingsError
from tests.console.provider import (
    CLIENT,
    Provider,
    began,
    csrf_in,
    guarded,
    logged_in,
    query_of,
    running_provider,
    settings_of,
    stranger,
    visitor,
)

FORGED = RSAKey.generate_key(2048, {"kid": "forged"})


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    with running_provider() as found:
        yield found


@pytest.fixture(autouse=True)
def honest(provider: Provider) -> None:
    provider.meddle = None
    provider.asked.clear()


@pytest.fixture
async def url(provider: Provider, tmp_path: Path) -> AsyncIterator[str]:
    async with guarded(settings_of(provider, tmp_path, console_write=True)) as url:
        yield url


@pytest.fixture
async def client(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with stranger(url) as client:
        yield client


async def is_logged_in(client: httpx.AsyncClient) -> bool:
    return (await client.get("/keys")).status_code == 200


def kept_in(tokens: list[str]) -> Callable[[str], str]:
    """Note the provider's id tokens there, and leave them as they are."""

    def keep(token: str) -> str:
        tokens.append(token)
        return token

    return keep


def claims_in(token: str) -> dict[str, Any]:
    body = token.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return found


# --- there and back -------------------------------------------------------------------------------


async def test_who_logs_in_comes_back_to_the_page_they_asked_for(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    asked = await client.get("/letters?by=letter")
    assert asked.status_code == 303
    page = await client.get(asked.headers["location"])
    assert page.status_code == 200
    assert "Dead letters" not in page.text  # Nothing of the system, its pages' names included.

    back = await logged_in(client, provider, "operator-1", query_of(page.url.__str__())["page"])

    assert (back.status_code, back.headers["location"]) == (303, "/letters?by=letter")
    shown = await client.get(back.headers["location"])
    assert shown.status_code == 200
    assert "operator-1 (the operator)" in shown.text


async def test_the_code_is_asked_for_with_a_challenge_that_only_this_console_can_meet(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    address = await began(client)
    query = query_of(address)
    assert query["code_challenge_method"] == "S256"
    assert len(query["state"]) >= 43
    assert len(query["nonce"]) >= 43
    await client.get(await provider.code(address, "reader-1"))

    (asked,) = provider.asked
    digest = hashlib.sha256(asked["code_verifier"].encode()).digest()
    assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == query["code_challenge"]


async def test_a_browser_has_a_random_id_and_no_token(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    given: list[str] = []
    provider.meddle = kept_in(given)

    back = await logged_in(client, provider, "reader-1")

    (cookie, *_) = back.headers.get_list("set-cookie")
    name, _, rest = cookie.partition("=")
    assert name == f"saga-session-{client.base_url.port}"
    value, *attributes = (part.strip() for part in rest.split(";"))
    assert {"HttpOnly", "Path=/", "SameSite=lax"} == {*attributes}
    assert len(base64.urlsafe_b64decode(value + "=")) == 32
    pages = back.text + (await client.get("/keys")).text + str(back.headers)
    assert given
    assert not [part for part in given[0].split(".") if part in pages]


async def test_no_browser_is_given_what_was_made_for_another_that_is_not_logged_in(
    url: str,
) -> None:
    async with stranger(url) as one, stranger(url) as other:
        pages = [await each.get("/login", headers={HEADER: "1"}) for each in (one, other)]

    assert len({page.headers["set-cookie"].partition(";")[0] for page in pages}) == 2


async def test_open_pages_of_one_user_leave_the_console_to_others(
    provider: Provider, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LISTENERS_OF_ONE_MAX", 1)
    reader, admin = (visitor(url, provider, who) for who in ("reader-1", "admin-1"))
    async with reader as greedy, admin as ada, greedy.stream("GET", "/live") as page:
        ticks = page.aiter_bytes()  # Held: letting go of them closes the connection.
        assert await anext(ticks)
        async with greedy.stream("GET", "/live") as more, ada.stream("GET", "/live") as other:
            assert (more.status_code, other.status_code) == (429, 200)


async def test_a_login_gives_a_new_id_and_ends_the_session_before_it(
    client: httpx.AsyncClient, provider: Provider, url: str
) -> None:
    await logged_in(client, provider, "reader-1")
    before = dict(client.cookies)
    await logged_in(client, provider, "operator-1")
    assert dict(client.cookies) != before

    async with stranger(url) as old:
        old.cookies.update(before)
        assert not await is_logged_in(old)


# --- what is no login -----------------------------------------------------------------------------


async def refused(client: httpx.AsyncClient, address: str, said: str) -> None:
    answer = await client.get(address)
    assert answer.status_code == 403, answer.text
    assert said in answer.text
    assert not await is_logged_in(client)


async def test_a_wrong_state_logs_nobody_in(client: httpx.AsyncClient, provider: Provider) -> None:
    back = await provider.code(await began(client), "admin-1")
    state = query_of(back)["state"]
    for other in ("", "x", state[:-1], state.swapcase()):
        await refused(client, back.replace(state, other), "was not begun here")
    assert not provider.asked  # The code was not shown.


async def test_a_login_that_another_browser_began_logs_nobody_in(
    url: str, client: httpx.AsyncClient, provider: Provider
) -> None:
    """Otherwise an attacker could make others work under an account of theirs."""
    back = await provider.code(await began(client), "reader-1")
    async with stranger(url) as other:
        await refused(other, back, "begun in another browser")
        await other.get("/login")
        await refused(other, back, "was not begun here")  # A state counts once, whatever comes.


async def test_a_code_is_used_once(client: httpx.AsyncClient, provider: Provider, url: str) -> None:
    back = await provider.code(await began(client), "reader-1")
    assert (await client.get(back)).status_code == 303
    async with stranger(url) as other:
        await refused(other, back, "was not begun here")
        again = query_of(await began(other))["state"]
        await refused(other, back.replace(query_of(back)["state"], again), "did not take the code")


async def test_a_token_for_another_login_logs_nobody_in(
    client: httpx.AsyncClient, provider: Provider, tmp_path: Path
) -> None:
    back = await provider.code(await began(client), "admin-1", nonce="of another login")

    await refused(client, back, "is not believed")

    reasons = [each.reason for each in entries(tmp_path / "audit") if not each.allowed]
    assert "the nonce of the id token is of another login" in reasons


def signed(key: RSAKey | OctKey, algorithm: str, **changed: Any) -> Callable[[str], str]:
    """Make an id token say something else, under another signature."""

    def meddle(token: str) -> str:
        header = {"alg": algorithm, **({"kid": key.kid} if key.kid else {})}
        return jwt.encode(header, claims_in(token) | changed, key, [algorithm])

    return meddle


def unsigned(token: str) -> str:
    header = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').rstrip(b"=").decode()
    return f"{header}.{token.split('.')[1]}."


def changed(token: str) -> str:
    header, _, signature = token.split(".")
    claims = json.dumps(claims_in(token) | {"roles": ["admin"]}).encode()
    return f"{header}.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.{signature}"


@pytest.mark.parametrize(
    "meddle",
    [
        pytest.param(signed(FORGED, "RS256"), id="another key"),
        pytest.param(signed(OctKey.import_key("a secret" * 8), "HS256"), id="a shared secret"),
        pytest.param(unsigned, id="no signature"),
        pytest.param(changed, id="changed claims"),
        pytest.param(lambda token: token + "x" * 10_000, id="too long"),
        pytest.param(lambda token: "no token", id="no token"),
    ],
)
async def test_a_forged_token_logs_nobody_in(
    meddle: Callable[[str], str], client: httpx.AsyncClient, provider: Provider
) -> None:
    provider.meddle = meddle
    await refused(client, await provider.code(await began(client), "reader-1"), "is not believed")


async def test_a_token_that_the_provider_gave_another_client_logs_nobody_in(
    client: httpx.AsyncClient, provider: Provider, tmp_path: Path
) -> None:
    others: list[str] = []
    provider.meddle = kept_in(others)
    (tmp_path / "other").mkdir()
    other_client = settings_of(provider, tmp_path / "other", auth_client_id="another shop")
    async with guarded(other_client) as elsewhere, visitor(elsewhere, provider, "admin-1"):
        assert claims_in(others[0])["aud"] in ("another shop", ["another shop"])

    provider.meddle = lambda _: others[0]
    await refused(client, await provider.code(await began(client), "reader-1"), "is not believed")


async def test_a_token_that_has_expired_logs_nobody_in(tmp_path: Path) -> None:
    with running_provider(max_age=timedelta(seconds=-60)) as late:
        settings = settings_of(late, tmp_path, auth_leeway_seconds=30)
        async with guarded(settings) as url, stranger(url) as client:
            await refused(client, await late.code(await began(client), "reader-1"), "not believed")
    assert "the token has expired" in [each.reason for each in entries(tmp_path / "audit")]


async def test_who_takes_too_long_begins_again(
    client: httpx.AsyncClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "LOGIN_SECONDS", 0.0)
    await refused(client, await provider.code(await began(client), "reader-1"), "took too long")


async def test_logins_that_nobody_ends_are_forgotten(
    client: httpx.AsyncClient, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "LOGINS_MAX", 2)
    first, *_, last = [await began(client) for _ in range(3)]
    await refused(client, await provider.code(first, "reader-1"), "was not begun here")
    assert (await client.get(await provider.code(last, "reader-1"))).status_code == 303


async def test_one_stranger_cannot_end_anothers_login(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oidc, "LOGINS_MAX", 4)
    monkeypatch.setattr(oidc, "LOGINS_OF_ADDRESS_MAX", 3)
    there = LoginProvider(
        ConsoleSettings(
            auth_issuer=provider.issuer, auth_client_id="console", data_dir=tmp_path, auth=Auth.ON
        )
    )

    async def begun(address: str) -> str:
        leads_to = await there.begin("a browser", "https://console/login/done", "/", address)
        (state,) = parse_qs(urlsplit(leads_to).query)["state"]
        return state

    hers = await begun("192.0.2.1")
    his = [await begun("192.0.2.2") for _ in range(10)]
    late = await begun("192.0.2.3")

    assert [*there._begun] == [hers, *his[-2:], late]
    await there.close()


async def test_who_has_no_role_is_told_so(client: httpx.AsyncClient, provider: Provider) -> None:
    await refused(client, await provider.code(await began(client), "nobody-1"), "has no role")


async def test_a_refusal_of_the_provider_is_told(client: httpx.AsyncClient) -> None:
    state = query_of(await began(client))["state"]
    said = {"state": state, "error": "access_denied", "error_description": "<b>\x1b[2J no"}
    answer = await client.get("/login/done", params=said)
    assert answer.status_code == 403
    assert "&lt;b&gt;\\x1b[2J no" in answer.text


async def test_a_provider_that_wants_a_secret_says_which_setting_lacks(
    provider: Provider, tmp_path: Path
) -> None:
    settings = settings_of(provider, tmp_path, auth_client_secret=None)
    async with guarded(settings) as url, stranger(url) as client:
        answer = await logged_in(client, provider, "reader-1")

    assert answer.status_code == 403
    assert "set AUTH_CLIENT_SECRET" in answer.text


async def test_a_provider_that_is_away_is_told(tmp_path: Path) -> None:
    away = Provider("http://127.0.0.1:1")
    async with guarded(settings_of(away, tmp_path)) as url, stranger(url) as client:
        answer = await client.get("/login/provider")
    assert answer.status_code == 503
    assert "cannot be asked" in answer.text


ELSEWHERE = (
    "https://evil.example/",
    "//evil.example/",
    "/\\evil.example/",
    "\\\\evil.example",
    "/\t/evil.example/",
    "/\n//evil.example",
    "javascript:alert(1)",
    "evil.example",
    " //evil.example",
    "http:evil.example",
    "/login?page=/login",
    "",
)


async def test_a_login_leads_to_pages_of_this_console_only(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    for page in ELSEWHERE:
        assert local(page) == "/"
        back = await logged_in(client, provider, "reader-1", page)
        assert (back.status_code, back.headers["location"]) == (303, "/"), page
        there = await client.get("/login", params={"page": page})
        assert (there.status_code, there.headers["location"]) == (303, "/"), page


def test_pages_of_this_console_are_led_to() -> None:
    for page in ("/", "/letters?by=letter&error=a%20b", "/sagas/a%2Fb?show=states"):
        assert local(page) == page


async def test_a_page_of_another_site_begins_no_login(client: httpx.AsyncClient) -> None:
    elsewhere = {"Sec-Fetch-Site": "cross-site"}
    answer = await client.get("/login/provider?page=/letters", headers=elsewhere)
    assert answer.headers["location"] == "/login?page=%2Fletters"


# --- sessions -------------------------------------------------------------------------------------


async def test_a_session_that_has_ended_logs_nobody_in(provider: Provider, tmp_path: Path) -> None:
    settings = settings_of(provider, tmp_path, console_session_idle_minutes=1e-9)
    async with guarded(settings) as url, visitor(url, provider, "reader-1") as client:
        answer = await client.get("/letters")
        assert (answer.status_code, answer.headers["location"]) == (303, "/login?page=%2Fletters")
        live = await client.get("/letters", headers={"X-Live": "1"})
        assert live.status_code == 401
        form = await client.post("/letters/replay", data={"reason": "x"})
        assert form.status_code == 403  # The console changes nothing; else it is 401.


def test_sessions_end_idle_or_not_and_open_pages_keep_none_alive() -> None:
    now = 0.0
    caller = Caller("ada", AuthMethod.LOGIN, frozenset())
    sessions = Sessions(10.0, 25.0, clock=lambda: now)
    active, watching, idle = (sessions.begin(caller) for _ in range(3))
    for now in (6.0, 12.0, 18.0, 24.0):
        assert sessions.find(active, active=True)
        assert (sessions.find(watching, active=False) is not None) == (now < 10.0)
    assert sessions.find(idle, active=True) is None
    now = 25.0
    assert sessions.find(active, active=True) is None  # However busy they were.


def test_sessions_are_so_many_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saga.console.sessions.SESSIONS_MAX", 3)
    assert SESSIONS_MAX == 10_000
    caller = Caller("ada", AuthMethod.LOGIN, frozenset())
    sessions = Sessions(10.0, 10.0)
    first, second, *_ = [sessions.begin(caller) for _ in range(3)]
    sessions.find(first, active=True)
    sessions.begin(caller)
    assert sessions.find(first, active=True)
    assert sessions.find(second, active=True) is None


async def test_two_people_at_once_see_what_each_may(provider: Provider, tmp_path: Path) -> None:
    """Also at one address within one tick, which is made once for all tabs of one person."""
    settings = settings_of(provider, tmp_path, console_write=True)
    live = {"X-Live": "1"}
    async with (
        guarded(settings) as url,
        visitor(url, provider, "reader-1") as reader,
        visitor(url, provider, "operator-1") as operator,
    ):
        for headers in ({}, live, live):
            theirs = (await operator.get("/letters", headers=headers)).text
            others = (await reader.get("/letters", headers=headers)).text
            assert "operator-1 (the operator)" in theirs
            assert "reader-1 (the reader)" in others
            assert "may change things" in theirs
            assert "read-only" in others
            assert csrf_in(theirs) != csrf_in(others)


# --- out ------------------------------------------------------------------------------------------


async def test_logging_out_ends_the_session_here_and_leads_to_the_provider(
    client: httpx.AsyncClient, provider: Provider, url: str
) -> None:
    await logged_in(client, provider, "reader-1")
    before = dict(client.cookies)
    page = (await client.get("/keys")).text

    answer = await client.post("/logout", data={"csrf": csrf_in(page)})

    assert answer.status_code == 200
    assert "reader-1" not in answer.text
    elsewhere = answer.headers["refresh"].removeprefix("0; url=")
    assert elsewhere.startswith(f"{provider.issuer}/oauth2/end_session?")
    assert query_of(elsewhere) == {
        "client_id": CLIENT,
        "post_logout_redirect_uri": f"{url}/logout",
    }
    assert not await is_logged_in(client)
    client.cookies.update(before)
    assert not await is_logged_in(client)
    async with httpx.AsyncClient() as browser:
        assert (await browser.get(elsewhere)).status_code == 200
    assert (await client.get("/logout")).status_code == 200


async def test_nobody_is_logged_out_by_a_form_that_is_not_theirs(
    client: httpx.AsyncClient, provider: Provider
) -> None:
    await logged_in(client, provider, "reader-1")
    for form in ({}, {"csrf": "x"}, {"csrf": ""}):
        assert (await client.post("/logout", data=form)).status_code == 403
    assert await is_logged_in(client)


# --- by a key -------------------------------------------------------------------------------------


def made_key(folder: Path, *scopes: str, **more: Any) -> str:
    text, key = new_key("a script", scopes, now=datetime.now(UTC), **more)
    write_keys(folder / "api_keys.json", [key])
    return text


async def by_key(client: httpx.AsyncClient, key: str, **more: str) -> httpx.Response:
    page = (await client.get("/login")).text
    return await client.post("/login/key", data={"key": key, "csrf": csrf_in(page), **more})


async def test_a_key_is_taken_once_and_may_then_what_its_scopes_say(tmp_path: Path) -> None:
    key = made_key(tmp_path, "letters:read")
    async with guarded(settings_of(None, tmp_path)) as url, stranger(url) as client:
        answer = await by_key(client, f" {key}\n", page="/letters")
        assert (answer.status_code, answer.headers["location"]) == (303, "/letters")
        shown = await client.get("/letters")
        assert shown.status_code == 200
        assert key not in shown.text
        assert 'href="/letters"' in shown.text
        assert 'href="/sagas"' not in shown.text  # No user is led where they may not go.
        assert (await client.get("/sagas")).status_code == 403
        out = await client.post("/logout", data={"csrf": csrf_in(shown.text)})
        assert "refresh" not in out.headers
        assert not await is_logged_in(client)
    recorded = "".join(each.model_dump_json() for each in entries(tmp_path / "audit"))
    assert "GET /letters" in recorded
    assert key not in recorded


async def test_a_key_that_is_revoked_ends_its_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.auth.keys.LOOK_SECONDS", 0.0)
    key = made_key(tmp_path, "*:read")
    async with guarded(settings_of(None, tmp_path)) as url, stranger(url) as client:
        await by_key(client, key)
        assert await is_logged_in(client)
        made_key(tmp_path, "*:read")  # Another one, alone in its file.
        assert not await is_logged_in(client)


async def test_a_key_file_that_is_made_after_the_start_counts_beside_a_provider(
    provider: Provider, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.auth.keys.LOOK_SECONDS", 0.0)
    async with guarded(settings_of(provider, tmp_path)) as url, stranger(url) as client:
        assert "/login/key" not in (await client.get("/login")).text
        key = made_key(tmp_path, "*:read")
        assert "/login/key" in (await client.get("/login")).text
        await by_key(client, key)
        assert await is_logged_in(client)


async def test_what_is_no_key_that_holds_logs_nobody_in(tmp_path: Path) -> None:
    old = made_key(tmp_path, "*", expires_at=datetime.now(UTC) - timedelta(seconds=1))
    async with guarded(settings_of(None, tmp_path)) as url, stranger(url) as client:
        for key in (old, "sagakey_x", "\x00", "<b>", "a" * 200):
            answer = await by_key(client, key)
            assert answer.status_code == 403
            assert "no key that holds here" in answer.text
        assert (await by_key(client, "a" * 201)).status_code == 422
        assert not await is_logged_in(client)


async def test_a_key_of_one_owner_is_not_for_a_console(tmp_path: Path) -> None:
    key = made_key(tmp_path, "*:read", owner="ada")
    async with guarded(settings_of(None, tmp_path)) as url, stranger(url) as client:
        answer = await by_key(client, key)
        assert answer.status_code == 403
        assert "acts for one owner only" in answer.text


async def test_a_key_is_taken_from_the_page_that_asks_for_it_only(tmp_path: Path) -> None:
    key = made_key(tmp_path, "*")
    async with guarded(settings_of(None, tmp_path)) as url, stranger(url) as client:
        for form in ({}, {"csrf": "x"}):
            answer = await client.post("/login/key", data={"key": key, **form})
            assert answer.status_code == 403
        async with stranger(url) as other:
            theirs = csrf_in((await other.get("/login")).text)
        await client.get("/login")
        answer = await client.post("/login/key", data={"key": key, "csrf": theirs})
        assert answer.status_code == 403
        assert not await is_logged_in(client)


# --- where ----------------------------------------------------------------------------------------


async def test_nobody_logs_in_where_others_could_read_it(
    provider: Provider, tmp_path: Path
) -> None:
    key = made_key(tmp_path, "*")
    settings = settings_of(provider, tmp_path, http_allowed_hosts="saga.example.com")
    named = {"Host": "saga.example.com"}
    async with guarded(settings) as url, stranger(url) as client:
        page = await client.get("/login", headers=named)
        assert "HTTP_CERT_FILE" in page.text
        assert "/login/provider" not in page.text
        begun = await client.get("/login/provider", headers=named)
        assert begun.headers["location"].startswith("/login?")
        answer = await client.post("/login/key", data={"key": key}, headers=named)
        assert answer.status_code == 403
        assert "/login/provider" in (await client.get("/login")).text
        for by_proxy in ({"X-Forwarded-For": "10.0.0.7"}, {"X-Forwarded-Proto": "https"}):
            page = await client.get("/login", headers=by_proxy)  # It is not in HTTP_PROXIES.
            assert "/login/provider" not in page.text


async def test_behind_a_proxy_with_tls_the_cookie_is_for_this_host_alone(
    provider: Provider, tmp_path: Path
) -> None:
    settings = settings_of(
        provider,
        tmp_path,
        http_allowed_hosts="saga.example.com",
        http_proxies="127.0.0.1",
        console_prefix="/ops",
    )
    by_proxy = {"Host": "saga.example.com", "X-Forwarded-Proto": "https"}
    async with guarded(settings) as url, stranger(url.removesuffix("/ops")) as client:
        begun = await client.get("/ops/login/provider?page=/letters", headers=by_proxy)
        back = query_of(begun.headers["location"])["redirect_uri"]
        assert back == "https://saga.example.com/ops/login/done"
        name, value = begun.headers["set-cookie"].partition(";")[0].split("=")
        assert name == "__Host-saga-login"
        done = urlsplit_query(await provider.code(begun.headers["location"], "reader-1"))
        answer = await client.get(
            f"/ops/login/done?{done}", headers=by_proxy | {"Cookie": f"{name}={value}"}
        )
    assert (answer.status_code, answer.headers["location"]) == (303, "/ops/letters")
    (cookie, *_) = answer.headers.get_list("set-cookie")
    assert cookie.startswith("__Host-saga-session=")
    assert "Secure" in cookie


def urlsplit_query(address: str) -> str:
    return httpx.URL(address).query.decode()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3", "saga.example.com"])
def test_on_an_address_that_others_reach_somebody_has_to_be_able_to_log_in(
    host: str, tmp_path: Path
) -> None:
    def settings(**more: Any) -> ConsoleSettings:
        return ConsoleSettings(http_host=host, data_dir=tmp_path, **more)

    with pytest.raises(SettingsError, match=r"AUTH_CLIENT_ID.*saga keys create.*AUTH_OFF_REASON"):
        access_of(settings())
    with pytest.raises(SettingsError, match="AUTH_OFF_REASON"):
        access_of(settings(auth="off"))
    with pytest.raises(SettingsError, match="set AUTH_ISSUER"):
        access_of(settings(auth_client_id="console"))
    assert access_of(settings(auth="off", auth_off_reason="a proxy asks")) is None
    issuer = {"auth_issuer": "https://login.example.com", "auth_client_id": "console"}
    assert access_of(settings(**issuer)) is not None
    made_key(tmp_path, "*")
    assert access_of(settings()) is not None


def test_on_this_machine_alone_nobody_logs_in_unless_that_is_wanted(tmp_path: Path) -> None:
    made_key(tmp_path, "*")
    assert access_of(ConsoleSettings(data_dir=tmp_path)) is None
    assert access_of(ConsoleSettings(data_dir=tmp_path, auth=Auth.ON)) is not None


def test_a_scope_without_an_id_token_is_refused() -> None:
    with pytest.raises(ValueError, match="openid"):
        ConsoleSettings(auth_login_scope="profile")
