"""A whole login in a real browser, with a real provider; what was done is recorded as theirs."""

from __future__ import annotations

import html
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import trustme
from playwright.async_api import Browser, Page, expect

from payment_service.gateway import FaultMode
from saga.auth.keys import new_key, write_keys
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.local.system import System
from tests.console.orders import (
    books_are_right,
    bury,
    confirmed,
    discard_all,
    outage,
    provider,
    store_of,
)
from tests.console.provider import (
    Provider,
    csrf_in,
    guarded,
    running_provider,
    settings_of,
    stranger,
    visitor,
)
from tests.console.visits import assert_axe_finds_nothing
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=60_000)

OPERATOR = "operator-1 (the operator)"
ADMIN = "admin-1 (the admin)"


@pytest.fixture(scope="module")
def people() -> Iterator[Provider]:
    with running_provider() as found:
        yield found


@pytest_asyncio.fixture(loop_scope="session")
async def closed(console_system: System, people: Provider) -> AsyncIterator[str]:
    """The address of a console of the system at which people log in; a new one for each test, as
    the audit trail of this process is that of the last one."""
    settings = settings_of(people, console_system.folder, console_write=True, console_bodies=True)
    async with guarded(settings) as url:
        yield url


@asynccontextmanager
async def opened(browser: Browser, **how: Any) -> AsyncIterator[Page]:
    context = await browser.new_context(**how)
    try:
        page = await context.new_page()
        page.set_default_timeout(60_000)
        yield page
    finally:
        await context.close()


async def log_in(page: Page, person: str) -> None:
    await page.get_by_role("link", name="Log in at").click()
    await page.get_by_role("button", name=person).click()


@pytest.mark.parametrize("scripts", [True, False])
async def test_a_person_logs_in_works_and_logs_out(
    scripts: bool, browser: Browser, closed: str, console_system: System
) -> None:
    mark = f"by-hand-{scripts}"
    await bury(console_system.deployment, 1, mark=mark)
    async with opened(browser, java_script_enabled=scripts) as page:
        await page.goto(f"{closed}/letters?fingerprint={mark}")
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()
        await expect(page.get_by_role("navigation")).to_have_count(0)
        await log_in(page, "operator-1")

        await page.wait_for_url(f"**/letters?fingerprint={mark}")
        await expect(page.get_by_text(OPERATOR)).to_be_visible()

        async def is_listed() -> bool:
            await page.reload()
            return await page.get_by_role("link", name="Discard…").count() == 1

        await until(is_listed)
        await page.get_by_role("link", name="Discard…").click()
        await page.get_by_label("reason").fill("nobody needs it")
        await page.get_by_role("button", name="Discard this letter").click()
        await page.goto(f"{closed}/audit?record=dead+letters")
        done = page.get_by_role("row", name="nobody needs it").first
        await expect(done).to_contain_text(OPERATOR)
        await page.get_by_role("link", name="Who was let in").click()
        turned = page.get_by_role("row", name="POST /letters/discard").first
        await expect(turned).to_contain_text("operator-1")

        cookies = await page.context.cookies(closed)
        assert [(c.get("httpOnly"), c.get("sameSite")) for c in cookies] == [(True, "Lax")]
        await page.get_by_role("button", name="Log out").click()
        await page.wait_for_url("**/oauth2/end_session?*")
        await page.get_by_role("button").first.click()
        await page.wait_for_url(f"{closed}/logout*")
        await page.goto(f"{closed}/letters")
        await expect(page.get_by_role("heading", name="Log in")).to_be_visible()


async def test_axe_finds_nothing_where_people_log_in_and_out(
    browser: Browser, people: Provider, tmp_path: Path
) -> None:
    _, key = new_key("a script", ["*"], now=datetime.now(UTC))
    write_keys(tmp_path / "api_keys.json", [key])
    async with (
        guarded(settings_of(people, tmp_path, console_write=True)) as url,
        opened(browser, color_scheme="light") as page,
    ):
        errors: list[str] = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        for path in ("/login?page=/letters", "/login/done?state=x", "/logout"):
            await page.goto(url + path)
            await assert_axe_finds_nothing(page)
        await page.goto(url + "/keys")
        await log_in(page, "reader-1")
        await page.wait_for_url("**/keys")
        for path in ("/keys", "/audit/trail", "/letters/replay"):
            await page.goto(url + path)
            await assert_axe_finds_nothing(page)
        assert errors == []


async def test_an_open_page_says_that_its_session_has_ended(browser: Browser, closed: str) -> None:
    async with opened(browser) as page:
        await page.goto(f"{closed}/services")
        await log_in(page, "reader-1")
        state = page.locator("#live")
        await expect(state).to_contain_text("live")
        await page.context.clear_cookies()
        await expect(state).to_contain_text("logged out")
        await expect(page.locator("#services")).to_be_visible()


async def test_who_may_not_is_offered_no_button(
    closed: str, people: Provider, console_system: System
) -> None:
    await bury(console_system.deployment, 1, mark="unoffered")
    listed = "/letters?fingerprint=unoffered"
    async with (
        visitor(closed, people, "reader-1") as reader,
        visitor(closed, people, "operator-1") as operator,
    ):

        async def collected() -> bool:
            return "<strong>1</strong>" in (await operator.get(listed)).text

        await until(collected)
        with store_of(console_system) as store:
            (letter,) = store.find(Selection(fingerprint="unoffered"))
        pages = {
            listed: "Discard…",
            f"/letters/{letter.number}": "Discard…",
            "/letters/replay?fingerprint=unoffered": "Replay this letter",
        }
        for path, button in pages.items():
            assert button in (await operator.get(path)).text
            shown = (await reader.get(path)).text
            assert button not in shown
            assert "takes the scope <code>letters:write</code>" in shown
            assert 'method="post"' not in shown.replace('method="post" action="/logout"', "")
    discard_all(console_system)


async def test_bodies_are_shown_to_those_who_may_read_personal_data(
    closed: str, people: Provider, console_system: System
) -> None:
    """Though the console was started with `--bodies`."""
    await bury(console_system.deployment, 1, mark="shown", error="no customer 'Rosalind' here")
    listed = "/letters?fingerprint=shown"
    async with (
        visitor(closed, people, "operator-1") as operator,
        visitor(closed, people, "admin-1") as admin,
    ):

        async def collected() -> bool:
            return "<strong>1</strong>" in (await admin.get(listed)).text

        await until(collected)
        with store_of(console_system) as store:
            (letter,) = store.find(Selection(fingerprint="shown"))
        for path in (listed, f"/letters/{letter.number}"):
            for headers in ({}, {"X-Live": "1"}):
                assert "Rosalind" in (await admin.get(path, headers=headers)).text
                assert "Rosalind" not in (await operator.get(path, headers=headers)).text
        looked = (await admin.get("/audit/trail?personal=yes&action=number")).text
        assert "admin-1" in looked.partition("<tbody>")[2]
        assert "operator-1" not in looked.partition("<tbody>")[2]
    discard_all(console_system)


async def test_what_is_done_by_each_form_is_recorded_as_the_persons(
    closed: str, people: Provider, console_system: System
) -> None:
    deployment = console_system.deployment
    async with AsyncExitStack() as stack:
        orders = await stack.enter_async_context(outage(console_system, 2))
        client = await stack.enter_async_context(visitor(closed, people, "admin-1"))
        store = stack.enter_context(store_of(console_system))
        proof = csrf_in((await client.get("/keys")).text)

        async def send(path: str, status: int = 303, **form: str) -> httpx.Response:
            answer = await client.post(path, data={"csrf": proof, **form})
            assert answer.status_code == status, answer.text
            return answer

        async def confirmed_on(path: str) -> str:
            found = re.search(r'name="confirmed" value="([^"]*)"', (await client.get(path)).text)
            assert found is not None
            return found[1]

        def by(action: str) -> set[tuple[str, str]]:
            return {(e.who, e.reason) for e in store.actions(100) if e.action == action}

        first, second = (
            store.find(Selection(subject=str(order)), HERE)[0].number for order in orders
        )
        # Discarded, and restored.
        for verb in ("discard", "restore"):
            path = f"/letters/{verb}?id={first}"
            confirming = await confirmed_on(path)
            await send(path, reason=f"to {verb} it", confirmed=confirming)
            assert (ADMIN, f"to {verb} it") in by(verb)
        # Edited.
        await provider(deployment, FaultMode.NONE)
        text = (await client.get(f"/letters/{first}/edit")).text
        payload = typed_in(text.partition("<textarea")[2].partition(">")[2])
        edited = re.sub(r'"time": "[^"]*"', '"time": "2026-01-01T00:00:00Z"', payload)
        shown = await send(f"/letters/{first}/edit", 200, text=edited)
        assert "2026-01-01" in shown.text
        await send(f"/letters/{first}/send", text=edited, reason="a wrong clock")
        assert (ADMIN, "a wrong clock") in by("edit")
        # Brought forward: the service's own record.
        due = f"/due/order/Order/{orders[1]}"
        await send(due, reason="she asks")
        record = (await client.get("/audit?record=order")).text
        row = next(r for r in record.split("<tr>") if "she asks" in r)
        assert ADMIN in row
        # Replayed, which is done on a thread of its own.
        path = f"/letters/replay?id={second}"
        run = await send(path, reason="all over", confirmed=await confirmed_on(path))

        async def ended() -> bool:
            return "Finished" in (await client.get(run.headers["location"])).text

        await until(ended)
        assert (ADMIN, "all over") in by("replay")
        # Decided.
        unknown = "/decide?rule=mails_unknown&subject=00000000-0000-4000-8000-000000000000"
        await send(unknown, 409, way="dismiss", reason="nobody knows")
        assert (ADMIN, "nobody knows") in by("decide: dismiss")
        # No user does what the console does by itself.
        assert ADMIN not in {who for who, _ in by("collect")}
        await until(lambda: confirmed(deployment, [orders[0]]))
    await until(lambda: books_are_right(deployment))


def typed_in(text: str) -> str:
    """What a form of the page would send of the text that begins here."""
    return html.unescape(text.partition("</textarea>")[0]).lstrip("\n")


# --- over TLS -------------------------------------------------------------------------------------


async def test_over_tls_the_cookie_is_secure_and_for_this_host_alone(
    browser: Browser, people: Provider, tmp_path: Path
) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    for name, blob in (
        ("cert.pem", issued.cert_chain_pems[0]),
        ("key.pem", issued.private_key_pem),
        ("ca.pem", authority.cert_pem),
    ):
        blob.write_to_path(tmp_path / name)
    settings = settings_of(
        people,
        tmp_path,
        http_cert_file=tmp_path / "cert.pem",
        http_key_file=tmp_path / "key.pem",
    )
    async with (
        guarded(settings) as url,
        opened(browser, ignore_https_errors=True) as page,
    ):
        assert url.startswith("https://")
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            async with stranger(url) as untrusting:
                await untrusting.get("/livez")
        context = ssl.create_default_context(cafile=tmp_path / "ca.pem")
        async with httpx.AsyncClient(base_url=url, verify=context) as trusting:
            assert (await trusting.get("/livez")).status_code == 200
            assert (await trusting.get("/keys")).status_code == 303

        await page.goto(f"{url}/keys")
        await log_in(page, "reader-1")
        await page.wait_for_url(f"{url}/keys")
        await expect(page.get_by_role("heading", name="Keyboard")).to_be_visible()
        (cookie,) = await page.context.cookies(url)
        assert cookie["name"] == f"__Host-saga-session-{httpx.URL(url).port}"
        assert (cookie["secure"], cookie["httpOnly"], cookie["path"]) == (True, True, "/")
        assert cookie["domain"] == "127.0.0.1"
        await page.goto(f"{url}/services")
        await expect(page.locator("#live")).to_contain_text("live")
