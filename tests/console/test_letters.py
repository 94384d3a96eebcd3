"""Dead letters in a real browser: found, tried dry, replayed, stopped, resumed, settled."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from urllib.parse import urlencode

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page, expect

from order_saga import SAGA
from payment_service.gateway import FaultMode
from saga.console.pages import letters
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.dlq.replay import alone
from saga.dlq.selection import FrozenSelection, Selection
from saga.dlq.states import HERE, LetterState
from saga.local.system import System
from tests import forked
from tests.console.orders import (
    books_are_right,
    bury,
    charges,
    confirmed,
    discard_all,
    outage,
    provider,
    store_of,
)
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")
expect.set_options(timeout=60_000)

CONFIRMED = re.compile(r'name="(confirmed|open)" value="([^"]*)"')


@contextlib.asynccontextmanager
async def page_of(browser: Browser, *, scripts: bool = True) -> AsyncIterator[Page]:
    context = await browser.new_context(java_script_enabled=scripts)
    page = await context.new_page()
    page.set_default_timeout(60_000)
    try:
        yield page
    finally:
        await context.close()


@contextlib.asynccontextmanager
async def asking(url: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        yield client


@contextlib.asynccontextmanager
async def console(system: System, *, bodies: bool = False) -> AsyncIterator[str]:
    """A console of the test's own that may change things."""
    given = ConsoleSettings(http_port=0, console_write=True, console_bodies=bodies)
    async with serving(Watched(system.folder, SAGA), given) as url:
        yield url.rstrip("/")


async def hidden_in(client: httpx.AsyncClient, path: str) -> str:
    """What a page would have confirmed."""
    answer = await client.get(path)
    found = CONFIRMED.search(answer.text)
    assert found is not None, answer.text
    return found[2]


async def heard(client: httpx.AsyncClient, path: str) -> bool:
    return "Finished" in (await client.get(path)).text


# --- the story ------------------------------------------------------------------------------------


async def test_an_outage_is_healed_by_clicks(
    browser: Browser, console_system: System, writing: str
) -> None:
    async with page_of(browser) as page, outage(console_system, 8) as orders:
        await page.goto(writing + "/")
        await page.get_by_role("link", name="Dead letters", exact=True).click()
        group = page.get_by_role("row", name="GatewayUnavailable")
        await expect(group).to_contain_text("8 about 8 subjects")
        await group.get_by_role("link").click()
        await expect(page.get_by_text("8 letters, dead")).to_be_visible()
        await page.get_by_role("link", name="Dry run and replay").click()
        await expect(page.get_by_role("row", name="handled 8")).to_be_visible()

        await provider(console_system.deployment, FaultMode.NONE)
        await page.get_by_label("reason").fill("the provider is back")
        await page.get_by_label("messages a second").fill("0.05")
        await page.get_by_role("button", name="Replay these 8 letters").click()
        await page.wait_for_url("**/replays/*")
        assert not (await Axe().run(page)).response["violations"]
        await page.get_by_role("button", name="Stop it").click()
        await expect(page.get_by_text("it waits to be resumed")).to_be_visible()
        await page.get_by_label("reason").fill("it looks well")
        await page.get_by_label("messages a second").fill("")
        await page.get_by_role("button", name=re.compile("Resume it with")).click()

        await expect(page.get_by_text("Finished")).to_be_visible()  # By no reload.
        await expect(page.get_by_text("8 of 8 letters heard of")).to_be_visible()
        await until(lambda: confirmed(console_system.deployment, orders))
        assert [charge.asked for charge in await charges(console_system.deployment, orders)]
        await until(lambda: books_are_right(console_system.deployment))

        await page.get_by_role("link", name="Audit").click()
        await expect(page.get_by_text("it looks well").first).to_be_visible()
        await expect(page.get_by_text("to look at it first").first).to_be_visible()


async def test_an_outage_is_healed_by_keyboard_only(
    browser: Browser, console_system: System, writing: str
) -> None:
    async with page_of(browser) as page, outage(console_system, 2) as orders:
        keys = page.keyboard

        async def focused() -> str:
            found = await page.evaluate(
                "(document.activeElement.labels?.[0] ?? document.activeElement).textContent"
            )
            return str(found).strip()

        async def tab_to(name: str) -> None:
            for _ in range(60):
                if (await focused()).startswith(name):
                    return
                await keys.press("Tab")
            pytest.fail(f"no Tab leads to {name}; the last one led to {await focused()}")

        await page.goto(writing + "/")
        await keys.press("g")
        await keys.press("l")
        await page.wait_for_url("**/letters")
        await expect(page.get_by_role("row", name="GatewayUnavailable")).to_be_visible()
        await keys.press("j")
        await keys.press("Enter")
        await page.wait_for_url("**/letters?*")
        await tab_to("Dry run and replay")
        await keys.press("Enter")
        await page.wait_for_url("**/letters/replay?*")
        await expect(page.get_by_role("row", name="handled 2")).to_be_visible()
        await provider(console_system.deployment, FaultMode.NONE)
        await tab_to("reason")
        await keys.type("the provider is back")
        await keys.press("Enter")
        await page.wait_for_url("**/replays/*")

        await expect(page.get_by_text("Finished")).to_be_visible()
        await until(lambda: confirmed(console_system.deployment, orders))


async def test_without_scripts_and_with_a_console_that_ends_meanwhile(
    browser: Browser, console_system: System, writing: str
) -> None:
    async with page_of(browser, scripts=False) as page, outage(console_system, 3) as orders:
        await provider(console_system.deployment, FaultMode.NONE)
        async with console(console_system) as ending:
            await page.goto(ending + "/letters")
            await page.locator("select[name=service]").select_option("payment")
            await page.get_by_role("button", name="Show").click()
            await page.get_by_role("link", name="Dry run and replay").click()
            await page.get_by_label("reason").fill("no scripts here")
            await page.get_by_label("messages a second").fill("0.1")
            await page.get_by_role("button", name="Replay these 3 letters").click()
            await expect(page.get_by_text("At work in this console")).to_be_visible()
            path = page.url.removeprefix(ending)

        await page.goto(writing + path)
        await expect(page.get_by_text("it waits to be resumed")).to_be_visible()
        await page.get_by_label("reason").fill("the console was away")
        await page.get_by_label("messages a second").fill("")
        await page.get_by_role("button", name=re.compile("Resume it with")).click()
        async with asking(writing) as client:
            await until(lambda: heard(client, path))
        await page.reload()
        await expect(page.get_by_text("3 of 3 letters heard of")).to_be_visible()
        await until(lambda: confirmed(console_system.deployment, orders))


# --- several at once ------------------------------------------------------------------------------


async def test_two_consoles_and_the_command_line_at_once_replay_each_letter_once(
    console_system: System, writing: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        orders = await stack.enter_async_context(outage(console_system, 4))
        other = await stack.enter_async_context(console(console_system))
        first = await stack.enter_async_context(asking(writing))
        second = await stack.enter_async_context(asking(other))
        await provider(console_system.deployment, FaultMode.NONE)
        path = "/letters/replay?service=payment"
        form = {"reason": "all at once", "confirmed": await hidden_in(first, path)}
        letters = FrozenSelection.read(form["confirmed"])
        assert FrozenSelection.read(await hidden_in(second, path)).digest == letters.digest
        command = ("dlq", "replay", "--service", "payment", "--data-dir", console_system.folder)

        *answers, _ = await asyncio.gather(
            first.post(path, data=form),
            first.post(path, data=form),
            second.post(path, data=form),
            asyncio.to_thread(forked.run, forked.SAGA, *map(str, command)),
        )

        assert {answer.status_code for answer in answers} <= {303, 409}
        assert sum(answer.status_code == 303 for answer in answers) <= 1
        await until(lambda: confirmed(console_system.deployment, orders))
        with store_of(console_system) as store:

            def replayed() -> bool:
                letters = [store.find(Selection(subject=str(order)))[0] for order in orders]
                assert [letter.replays for letter in letters] == [1] * 4
                return all(letter.state is LetterState.DONE for letter in letters)

            await until(replayed)
            await until(lambda: store.replays.unfinished() is None)
        asked = await charges(console_system.deployment, orders)
        assert len(asked) == 4
        assert {charge.outcome for charge in asked} == {"charged"}


async def test_what_is_confirmed_are_these_letters_and_no_others(
    console_system: System, writing: str
) -> None:
    await bury(console_system.deployment, 3, mark="frozen")
    filters = urlencode({"fingerprint": "frozen"})
    async with asking(writing) as client:
        with store_of(console_system) as store:
            await until(lambda: shows(client, f"/letters?{filters}", "<strong>3</strong>"))
            forms = {
                f"/letters/{verb}?{filters}": {
                    "reason": "as confirmed",
                    "confirmed": await hidden_in(client, f"/letters/{verb}?{filters}"),
                }
                for verb in ("replay", "discard")
            }
            letter, *_ = store.find(Selection(fingerprint="frozen"))
            store.discard(Selection(numbers=(letter.number,)), "another person did")

            for path, form in forms.items():
                answer = await client.post(path, data=form)
                assert answer.status_code == 409
                assert "other letters than those that were confirmed: 2 by now" in answer.text
                assert "these 2 letters" in answer.text
            assert len(store.find(Selection(fingerprint="frozen"), HERE)) == 2

            path, form = list(forms.items())[1]
            form["confirmed"] = await hidden_in(client, path)
            await bury(console_system.deployment, 4, mark="frozen")  # The fourth one is new.
            await until(lambda: shows(client, f"/letters?{filters}", "<strong>3</strong>"))
            answer = await client.post(path, data=form)
            assert answer.status_code == 303
            assert len(store.find(Selection(fingerprint="frozen"), HERE)) == 1
            restoring = f"/letters/restore?{filters}"
            again = {"reason": "it was needed", "confirmed": await hidden_in(client, restoring)}
            assert (await client.post(restoring, data=again)).status_code == 303
            assert len(store.find(Selection(fingerprint="frozen"), HERE)) == 4
            actions = [(entry.action, entry.reason) for entry in store.actions(3)]
            assert ("restore", "it was needed") in actions
            assert ("discard", "as confirmed") in actions
    discard_all(console_system)


async def test_a_replay_that_the_command_line_has_begun_is_shown_and_kept_clear_of(
    console_system: System, writing: str
) -> None:
    await bury(console_system.deployment, 2, mark="begun")
    path = "/letters/replay?fingerprint=begun"
    async with asking(writing) as client:
        with store_of(console_system) as store:
            await until(lambda: shows(client, "/letters?fingerprint=begun", "<strong>2</strong>"))
            form = {"reason": "too late", "confirmed": await hidden_in(client, path)}
            numbers = [each.number for each in store.find(Selection(fingerprint="begun"))]
            async with alone(store.path):  # As `saga dlq replay` has it.
                selection = Selection(fingerprint="begun")
                run = store.replays.begin(selection, numbers, {"rate": 5.0}, "by a command")
                address = f"/replays/{run.number}"
                assert await shows(client, address, "At work in another process")
                assert (await client.post(path, data=form)).status_code == 409
                stopping = await client.post(f"{address}/stop", data={"reason": "stop"})
                assert stopping.status_code == 409
                assert "Ctrl-C there" in stopping.text

            assert await shows(client, address, "it waits to be resumed")
            assert (await client.post(path, data=form)).status_code == 409
            resuming = {"reason": "it was killed", "open": await hidden_in(client, address)}
            assert (
                await client.post(f"{address}/resume", data=resuming | {"open": "17"})
            ).status_code == 409
            assert (await client.post(f"{address}/resume", data=resuming)).status_code == 303
            await until(lambda: shows(client, address, "Finished"))
            assert await shows(client, address, "cannot be decoded")
            assert (await client.post(f"{address}/resume", data=resuming)).status_code == 409
    discard_all(console_system)


async def shows(client: httpx.AsyncClient, path: str, text: str) -> bool:
    return text in (await client.get(path)).text


# --- numbers, bodies, edits -----------------------------------------------------------------------


async def test_the_numbers_are_the_command_lines(
    browser: Browser, console_system: System, reading: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bury(console_system.deployment, 60, mark="counted")
    async with asking(reading) as client, page_of(browser) as page:
        listed = "/letters?fingerprint=counted"
        await until(lambda: shows(client, listed, "<strong>60</strong>"))
        said = await asyncio.to_thread(
            forked.run,
            *(forked.SAGA, "dlq", "list", "--fingerprint", "counted", "--json"),
            *("--data-dir", str(console_system.folder)),
        )
        assert '"letters": 60' in said.stdout

        await page.goto(f"{reading}{listed}&by=letter")
        await expect(page.locator("#letters tbody tr")).to_have_count(50)
        await page.get_by_role("link", name="More").click()
        await expect(page.locator("#letters tbody tr")).to_have_count(10)
        await page.goto(f"{reading}{listed}")
        await expect(page.locator("svg.spark rect")).not_to_have_count(0)
        await page.goto(f"{reading}/letters/replay?fingerprint=counted")
        await expect(page.get_by_role("row", name="cannot be decoded 60")).to_be_visible()
        await expect(page.get_by_text("start it with --write").first).to_be_visible()

        with store_of(console_system) as store:
            letter, *_ = store.find(Selection(fingerprint="counted"))
        looked_at = (listed, f"{listed}&by=letter", f"/letters/{letter.number}", "/audit")
        for path in (*looked_at, "/letters/replay?fingerprint=counted"):
            for scheme in ("light", "dark"):
                await page.emulate_media(color_scheme=scheme)
                answer = await page.goto(reading + path)
                assert answer is not None
                assert len(await answer.body()) <= 100_000
                found = await Axe().run(page)
                assert not found.response["violations"], found.generate_report()

        monkeypatch.setattr(letters, "EXAMINED_MAX", 10)
        await client.get("/letters/replay?fingerprint=counted")
        assert await shows(client, "/audit", "cannot be decoded: 10; not examined: 50")
    discard_all(console_system)


async def test_what_is_in_messages_is_shown_and_edited_only_where_that_is_allowed(
    browser: Browser, console_system: System, writing: str
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        orders = await stack.enter_async_context(outage(console_system, 1))
        await provider(console_system.deployment, FaultMode.NONE)
        page = await stack.enter_async_context(page_of(browser))
        client = await stack.enter_async_context(asking(writing))
        with store_of(console_system) as store:
            (letter,) = store.find(Selection(subject=str(orders[0])), HERE)
        address = f"/letters/{letter.number}"
        masked = (await client.get(address)).text
        assert "‹text of" in masked
        assert "total_cents" in masked
        assert '"sku": "' not in masked.replace("&#34;", '"').replace('"sku": "‹', "")
        assert (await client.get(f"{address}/edit")).status_code == 403
        assert (
            await client.post(f"{address}/send", data={"text": "{}", "reason": "x"})
        ).status_code == 403

        url = await stack.enter_async_context(console(console_system, bodies=True))
        await page.goto(url + address)
        await page.get_by_role("link", name="Edit").click()
        payload = page.get_by_label("payload")
        text = await payload.input_value()
        await page.get_by_role("button", name="Show the difference").click()
        await expect(page.get_by_role("alert")).to_contain_text("Nothing was changed")
        await page.get_by_label("payload").fill("{")
        await page.get_by_role("button", name="Show the difference").click()
        await expect(page.get_by_role("alert")).to_contain_text("is not JSON")
        edited = re.sub(r'"time": "[^"]*"', '"time": "2026-01-01T00:00:00Z"', text)
        await page.get_by_label("payload").fill(edited)
        await page.get_by_role("button", name="Show the difference").click()
        await expect(page.get_by_label("Difference")).to_contain_text(
            '+  "time": "2026-01-01T00:00:00Z"'
        )
        await page.get_by_label("reason").fill("a wrong clock")
        await page.get_by_role("button", name="Send this 1 copy").click()
        await expect(page.get_by_text("It is replaced")).to_be_visible()
        await expect(page.get_by_label("Difference")).to_contain_text("2026-01-01")
        await until(lambda: confirmed(console_system.deployment, orders))
        audit = (await client.get("/audit")).text
        assert "a wrong clock" in audit
        assert "2026-01-01" not in audit
        assert (await client.get(f"{address}/edit")).status_code == 403
        async with asking(url) as allowed:
            assert (await allowed.get(f"{address}/edit")).status_code == 409
    await until(lambda: books_are_right(console_system.deployment))


async def test_what_an_error_quotes_is_shown_only_where_bodies_are(
    console_system: System, writing: str
) -> None:
    await bury(console_system.deployment, 1, mark="quoted", error="no customer 'Ada' here")
    listed = "/letters?fingerprint=quoted"
    async with asking(writing) as client, console(console_system, bodies=True) as url:
        await until(lambda: shows(client, listed, "<strong>1</strong>"))
        with store_of(console_system) as store:
            (letter,) = store.find(Selection(fingerprint="quoted"))
        async with asking(url) as allowed:
            for path in (listed, f"{listed}&by=letter", f"/letters/{letter.number}"):
                assert await shows(client, path, "no customer &#39;‹text of 3›&#39; here")
                assert not await shows(client, path, "Ada")
                assert await shows(allowed, path, "no customer &#39;Ada&#39; here")
            for said, found in (("no customer", True), ("Ada", False)):
                searched = f"{listed}&error={said}"
                assert await shows(client, searched, "<strong>1</strong>") == found
                assert await shows(client, searched, "was not searched")
                assert await shows(allowed, searched, "<strong>1</strong>")
    discard_all(console_system)


async def test_what_is_due_is_brought_forward_once_and_noted(
    browser: Browser, console_system: System, writing: str
) -> None:
    async with page_of(browser, scripts=False) as page, outage(console_system, 1) as orders:
        await page.goto(f"{writing}/due?subject={orders[0]}")
        await expect(page.get_by_text("1 due.")).to_be_visible()
        await page.get_by_role("link", name=str(orders[0])).click()
        async with page_of(browser) as scripted:  # Which axe needs.
            await scripted.goto(page.url)
            assert not (await Axe().run(scripted)).response["violations"]
        second = await page.context.new_page()
        await second.goto(page.url)
        for each, reason in ((page, "the customer asks"), (second, "again")):
            await each.get_by_label("reason").fill(reason)
            await each.get_by_role("button", name="Bring this 1 forward").click()
        await expect(page.get_by_text("Nothing is due about it now")).to_be_visible()
        await expect(page.get_by_role("row", name="the customer asks")).to_contain_text(
            "order.cancelled"
        )
        await expect(second.get_by_role("alert")).to_contain_text("any more")
        await page.goto(f"{writing}/audit?record=order")
        await expect(page.get_by_role("row", name="the customer asks")).to_be_visible()
        await expect(page.get_by_text("again")).to_have_count(0)
        await provider(console_system.deployment, FaultMode.NONE)
        async with asking(writing) as client:
            path = f"/letters/replay?subject={orders[0]}"
            form = {
                "reason": "nothing is to be charged",
                "confirmed": await hidden_in(client, path),
            }
            answer = await client.post(path, data=form)
            assert answer.status_code == 303
            await until(lambda: heard(client, answer.headers["location"]))
    await until(lambda: books_are_right(console_system.deployment))
