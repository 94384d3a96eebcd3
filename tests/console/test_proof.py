"""Proofs, books and what is stuck, in a real browser: begun by a link, once, and seen by all."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Page

from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.history.debts import Debt
from saga.history.story import tell
from saga.history.trace import Overdue, Stuck
from saga.history.whereabouts import MessageLocations
from saga.local.system import System
from saga.reconcile.saved import SavedReport
from saga.verify.proof import Proof, ProofCounterexample, ProofScenario
from tests.console.typing_in import begun, typed
from tests.console.visits import follow, opened, text
from tests.moving import SAGA as MOVING
from tests.moving import planted
from tests.polling import DEADLINE_SECONDS, until

MOVING_SPEC = "tests.moving:SAGA"
BROKEN = "broken_moves"
PATIENCE_MS = DEADLINE_SECONDS * 1_000

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def until_it_says(page: Page, what: str) -> None:
    """Load the page again, as a browser without scripts does."""

    async def says() -> bool:
        await page.reload()
        return what in await text(page, "main")

    await until(says)


async def clean(page: Page) -> None:
    found = await Axe().run(page)
    assert not found.response["violations"], found.generate_report()


async def test_scenarios_are_explored_by_a_link_and_the_verdict_survives_the_console(
    browser: Browser, tmp_path: Path
) -> None:
    watched = Watched(tmp_path, MOVING, spec=MOVING_SPEC)
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        opened(browser, f"{url}proof", scripts=False) as page,
    ):
        assert "nothing is proved" in await text(page, "#proof")
        assert "was not looked at" in await text(page, "#proof")  # No system runs there.
        await follow(page, page.get_by_role("link", name="Explore now"))
        assert page.url == f"{url}proof"
        await until_it_says(page, "Nothing is broken.")
        row = await text(page, "#scenarios tbody tr")
        assert row.startswith("one move holds")
        assert "move.given_up (no_van)" in row
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        opened(browser, f"{url}proof") as page,
    ):
        assert "Nothing is broken." in await text(page, "#proof")
        await clean(page)


async def test_a_counterexample_is_played_step_by_step(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / f"{BROKEN}.py").write_text(
        "from tests.moving import planted\n\n"
        "SAGA = planted.a_compensation_is_forgotten_in_the_body()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    saga = planted.a_compensation_is_forgotten_in_the_body()
    watched = Watched(tmp_path, saga, spec=f"{BROKEN}:SAGA")
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        opened(browser, f"{url}proof") as page,
    ):
        await follow(page, page.get_by_role("link", name="Explore now"))
        # Without a reload: the page stays up to date by itself.
        broken = page.locator("#proof td.bad")
        await broken.wait_for(timeout=PATIENCE_MS)
        assert "is broken" in await broken.inner_text()
        await follow(page, page.get_by_role("link", name="one move"))
        assert "Nothing has happened yet." in await text(page, "main")
        await page.keyboard.press("n")
        await page.wait_for_url("**step=1")
        await follow(page, page.get_by_role("link", name="Next step"))
        assert await page.locator("table.steps tbody tr").count() == 2
        await clean(page)
        await page.keyboard.press("p")
        await page.wait_for_url("**step=1")
        assert await page.locator("table.steps tbody tr").count() == 1
        assert "from saga.verify import" in await text(page, "pre")


async def test_asking_again_begins_nothing(tmp_path: Path) -> None:
    watched = Watched(tmp_path, MOVING, spec=MOVING_SPEC)
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient() as client,
    ):
        first = await client.get(f"{url}proof?run=1")
        again = await client.get(f"{url}proof?run=1")
        far = await client.get(f"{url}proof?run=7")
        foreign = await client.get(f"{url}proof?run=2", headers={"Sec-Fetch-Site": "cross-site"})

        assert [answer.status_code for answer in (first, again, far, foreign)] == [
            303,
            303,
            303,
            422,
        ]
        await until(lambda: (tmp_path / Proof.file_name).exists())

        async def done() -> bool:
            return "Nothing is broken." in (await client.get(f"{url}proof")).text

        await until(done)

        async def second_is_next() -> bool:
            return "/proof?run=2" in (await client.get(f"{url}proof")).text

        await until(second_is_next)


async def test_a_page_of_another_site_begins_no_run_and_no_exploration(tmp_path: Path) -> None:
    watched = Watched(tmp_path, MOVING, spec=MOVING_SPEC)
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient() as client,
    ):
        for site in ("cross-site", "same-site"):
            foreign = {"Sec-Fetch-Site": site}
            played = await client.get(f"{url}proof/seed/7", headers=foreign)
            assert "This run is not kept." in played.text
            explored = await client.get(f"{url}proof?run=1", headers=foreign)
            assert explored.status_code == 422
        open_tab = await client.get(f"{url}proof/seed/7", headers={"X-Live": "1"})
        assert "This run is not kept." in open_tab.text


def proof_of_moves(**found: Any) -> Proof:
    began = datetime(2030, 1, 1, tzinfo=UTC)
    given: dict[str, Any] = {"began_at": began, "finished_at": began, "names": ["one move"]}
    return Proof(saga=MOVING.name, version="0", **given | found)


async def test_the_last_verdict_stays_until_there_is_another_and_a_broken_rule_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    violation = ProofCounterexample(
        rule="van_is_returned", subject="", detail="", start="", steps=[], open=[], test=""
    )
    numbers: dict[str, Any] = dict.fromkeys(
        ("states", "states_at_rest", "transitions", "repetitions", "depth", "seconds"), 1
    )
    broken = ProofScenario(name="one move", ends=[], violation=violation, **numbers)
    last = proof_of_moves(scenarios=[broken], not_covered=["a reaction"])
    last.save(tmp_path)
    go_on = asyncio.Event()

    async def prove_slowly(_: Watched, tell: Callable[[Proof], None]) -> Proof:
        tell(proof_of_moves(finished_at=None, current="one move", current_states=77))
        await go_on.wait()
        return proof_of_moves(began_at=last.began_at + timedelta(days=1))

    monkeypatch.setattr("saga.console.pages.proof.prove_apart", prove_slowly)
    async with (
        serving(Watched(tmp_path, MOVING), ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient() as client,
    ):
        await client.get(f"{url}proof?run=1")

        async def says(*what: str) -> bool:
            page = (await client.get(f"{url}proof")).text
            return all(each in page for each in what)

        await until(lambda: says("77 states of", "A rule can be broken."))
        assert Proof.load(tmp_path) == last
        go_on.set()
        await until(lambda: says("Nothing is broken."))
        assert Proof.load(tmp_path) != last


async def test_a_proof_that_cannot_be_saved_is_kept_by_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def prove_at_once(_: Watched, __: Callable[[Proof], None]) -> Proof:
        return proof_of_moves()

    monkeypatch.setattr("saga.console.pages.proof.prove_apart", prove_at_once)
    async with (
        serving(Watched(tmp_path / "absent", MOVING), ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient() as client,
    ):
        await client.get(f"{url}proof?run=1")

        async def says_so() -> bool:
            page = (await client.get(f"{url}proof")).text
            return "could not be saved" in page and "Nothing is broken." in page

        await until(says_so)


async def test_a_seed_is_played_step_by_step(browser: Browser, reading: str) -> None:
    async with opened(browser, f"{reading}/proof", scripts=False) as page:
        await page.get_by_label("seed").fill("7")
        await follow(page, page.get_by_role("button", name="Play"))
        assert page.url == f"{reading}/proof/seed/7"
        await until_it_says(page, "Nothing is broken.")
        await follow(page, page.get_by_role("link", name="Next step"))
        assert page.url.endswith("step=2")
        assert await page.locator("tr.changed").count() >= 1
        await page.locator("input[name=step]").fill("30")
        await follow(page, page.get_by_role("button", name="Show"))
        assert "step 30 of" in await text(page, "form.slider")
    async with opened(browser, f"{reading}/proof/seed/7?step=30") as page:
        await clean(page)
        await page.keyboard.press("n")
        await page.wait_for_url("**step=31")


async def test_a_transition_that_no_model_takes_is_named(
    browser: Browser, reading: str, console_system: System, orders_ended: None
) -> None:
    folder = console_system.folder
    began = datetime.now(UTC)
    proof = Proof(
        saga="orders",
        version="0",
        began_at=began,
        finished_at=began,
        names=[],
        answered=[("order", None, "order.placed"), ("order", "payment.charged", "order.confirmed")],
    )
    proof.save(folder)
    try:
        async with opened(browser, f"{reading}/proof", scripts=False) as page:
            said = await text(page, "#proof")
            assert "of them no model has taken" in said
            rows = await page.locator("#beyond tbody tr").all_inner_texts()
            named = {tuple(row.split("\t")[:3]) for row in rows}
            assert ("inventory", "order.placed", "stock.reserved") in named
            assert ("order", "payment.charged", "order.confirmed") not in named
    finally:
        (folder / Proof.file_name).unlink()


async def test_the_books_are_read_once_for_everybody(
    browser: Browser, reading: str, orders_ended: None
) -> None:
    async with (
        opened(browser, f"{reading}/books", scripts=False) as page,
        opened(browser, f"{reading}/books") as other,
    ):
        assert "of no rule is it known" in await text(page, "#books")
        await follow(page, page.get_by_role("link", name="Reconcile now"))
        assert page.url == f"{reading}/books"
        await until_it_says(page, " with saga console;")
        said = await text(page, "#books")
        assert "The books were right then." in said or "violations" in said
        assert "could not be read" in said  # What reads the mail server's books.
        await other.get_by_text("saga console").wait_for(timeout=PATIENCE_MS)
        await clean(other)


async def test_what_a_command_has_found_is_shown_and_the_newest_counts(
    browser: Browser, reading: str, console_system: System, orders_ended: None
) -> None:
    folder = console_system.folder
    async with opened(browser, f"{reading}/books", scripts=False) as page:
        await typed(folder, "reconcile", "--grace", "0")
        await until_it_says(page, "with saga reconcile --grace 0;")
        saved, why = SavedReport.read(folder)
        assert saved is not None, why
        assert saved.by in await text(page, "#books")
        older = saved.model_copy(update={"began_at": saved.began_at - timedelta(days=1)})
        older.save(folder)
        assert SavedReport.read(folder) == (saved, "")


async def test_a_verdict_that_cannot_be_kept_or_read_is_told_on_the_page_and_by_the_command(
    reading: str, console_system: System, orders_ended: None
) -> None:
    file = console_system.folder / SavedReport.file_name
    before = file.read_bytes() if file.exists() else None
    file.unlink(missing_ok=True)
    file.mkdir()
    try:
        async with httpx.AsyncClient() as client:
            said = (await client.get(f"{reading}/books")).text
            assert "is not shown: cannot read" in said
        process = await begun(console_system.folder, "reconcile", "--grace", "0")
        _, err = await process.communicate()
        assert process.returncode == 0
        assert "the console will not show this: cannot write" in err.decode()
        assert "Traceback" not in err.decode()
    finally:
        file.rmdir()
        if before is not None:
            file.write_bytes(before)


async def test_what_a_command_has_proved_is_shown_with_whether_the_code_has_changed(
    browser: Browser, tmp_path: Path
) -> None:
    watched = Watched(tmp_path, MOVING, spec=MOVING_SPEC)
    await typed(tmp_path, "verify", SAGA=MOVING_SPEC)
    async with (
        serving(watched, ConsoleSettings(http_port=0)) as url,
        opened(browser, f"{url}proof", scripts=False) as page,
    ):
        said = await text(page, "#proof")
        assert "Nothing is broken." in said
        assert "are as they were." in said
        proof = Proof.load(tmp_path)
        assert proof is not None
        assert "tests.moving" in proof.code
        assert "saga.verify.machine" in proof.code
        proof.code["tests.moving"] = "another"
        proof.code["tests.moving.gone"] = "there"
        proof.save(tmp_path)
        await page.reload()
        said = await text(page, "#proof")
        assert "2 of " in said
        assert "tests.moving, tests.moving.gone." in said


@pytest.mark.long
async def test_a_proof_of_one_scenario_is_not_kept(tmp_path: Path) -> None:
    await typed(tmp_path, "verify", "--scenario", "one move", SAGA=MOVING_SPEC)
    assert Proof.load(tmp_path) is None


async def test_nothing_is_stuck_and_the_page_says_when_it_looked(
    browser: Browser, reading: str, orders_ended: None
) -> None:
    async with opened(browser, f"{reading}/stuck", scripts=False) as page:
        await until_it_says(page, "Nothing is overdue.")
        assert "As of" in await text(page, "#stuck")


async def test_a_group_of_what_is_stuck_keeps_its_address_while_others_come_and_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = MOVING.choreography
    now = datetime(2030, 1, 1, tzinfo=UTC)
    owing = ["van", "crew"]

    async def overdue(*_: Any, **__: Any) -> Overdue:
        found = []
        for number, name in enumerate(owing):
            story = tell(graph, f"move-of-{name}", [])
            since = now + timedelta(seconds=number)
            found.append(Stuck(story, [Debt(name, None, ("an.answer",), since, since)]))
        return Overdue(found, [], MessageLocations(), 0)

    monkeypatch.setattr("saga.console.pages.stuck.stuck", overdue)
    monkeypatch.setattr("saga.console.pages.stuck.AGE_MIN_SECONDS", 0.0)
    monkeypatch.setattr(Watched, "deployment", None)
    async with (
        serving(Watched(tmp_path, MOVING), ConsoleSettings(http_port=0)) as url,
        httpx.AsyncClient() as client,
    ):
        crew = f"{url}stuck?participant=crew&answers=an.answer&to="

        async def says(address: str, what: str, but: str) -> bool:
            page = (await client.get(address)).text
            return what in page and but not in page

        await until(lambda: says(crew, "move-of-crew", "move-of-van"))
        owing.reverse()
        await until(lambda: says(f"{url}stuck", ">crew</a></th>", "nothing"))
        await until(lambda: says(crew, "move-of-crew", "move-of-van"))
        owing.remove("crew")
        await until(lambda: says(crew, "is overdue any more", "move-of"))
