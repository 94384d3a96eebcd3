"""`saga up` over its processes: what ends comes back, what keeps ending disturbs nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from order_saga.orders import Shares, plan
from order_saga.publish import publish
from saga.discovery import choreography
from saga.local import supervision
from saga.local.restart import RestartError, restart
from saga.local.supervision import LOOP_ENDS, Supervised, Supervision
from saga.local.system import System
from saga.reconcile import ReconcileError, reconcile
from saga.runtime.messaging.connection import BrokerError
from saga.status import status
from tests import forked
from tests.polling import until

in_one_loop = pytest.mark.asyncio(loop_scope="session")
MORE_THAN_EVER = 7


@pytest_asyncio.fixture(loop_scope="session")
async def watched(system: System) -> AsyncIterator[System]:
    """The system, while it is watched as `saga up` does."""
    watching = asyncio.ensure_future(system.watch())
    await until(lambda: Supervision.load(system.folder) is not None)
    yield system
    assert not watching.done()
    watching.cancel()
    await asyncio.wait({watching})
    await system.start()


def pids(system: System) -> dict[str, int]:
    return {name: system.pid(name) for name in system.services}


async def command(*arguments: str, system: System) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATA_DIR": str(system.folder)}
    return await asyncio.to_thread(forked.run, forked.SAGA, *arguments, environment=environment)


async def problems(system: System) -> list[str]:
    """Without the dead letters: the system is that of other tests as well, which may leave some."""
    supervised = Supervision.load(system.folder)
    found = (await status(system.deployment, choreography(), supervised)).problems
    return [problem for problem in found if "dead letter" not in problem]


@in_one_loop
async def test_a_service_can_be_restarted_as_often_as_one_likes(watched: System) -> None:
    before, seen = pids(watched), set()

    for _ in range(MORE_THAN_EVER):
        assert await restart(watched.folder, ["payment"]) == ["payment"]
        seen.add(watched.pid("payment"))
    done = await command("restart", "payment", "--json", system=watched)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"restarted": ["payment"]}
    assert len(seen | {watched.pid("payment")}) == MORE_THAN_EVER + 1
    assert before | {"payment": watched.pid("payment")} == pids(watched)
    assert await problems(watched) == []


@in_one_loop
async def test_what_keeps_ending_is_a_problem_and_the_others_go_on(
    watched: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "DELAY_MAX_SECONDS", 0.01)
    before = pids(watched)

    for _ in range(LOOP_ENDS):
        watched.kill("inventory")
        await until(lambda: watched.alive("inventory"))

    (found,) = [line for line in await problems(watched) if "has ended" in line]
    assert found.startswith(f"the inventory service has ended {LOOP_ENDS} times within 10 minutes")
    assert "killed by SIGKILL" in found
    assert before | {"inventory": watched.pid("inventory")} == pids(watched)
    done = await command("status", "--json", system=watched)
    assert found in json.loads(done.stdout)["problems"]


@in_one_loop
async def test_a_service_that_waits_for_its_next_start_is_restarted_now(
    watched: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Supervised, "ended", lambda *_: 3_600.0)
    before = pids(watched)
    watched.kill("inventory")

    def waits() -> bool:
        found = Supervision.load(watched.folder)
        return found is not None and found.services["inventory"].starts_at is not None

    await until(waits)
    assert await restart(watched.folder, ["inventory"]) == ["inventory"]

    assert watched.alive("inventory")
    assert watched.pid("inventory") != before["inventory"]


@in_one_loop
async def test_a_broker_that_has_lost_everything_gets_back_what_is_owed(watched: System) -> None:
    assert watched.node is not None
    before = (await reconcile(watched.deployment)).checked["orders"]
    orders = plan(30, 1616, Shares(malformed=0))
    await publish(watched.deployment, orders)

    watched.node.kill()
    shutil.rmtree(watched.node.folder / "data")

    async def all_is_well() -> bool:
        with contextlib.suppress(BrokerError, ReconcileError):
            report = await reconcile(watched.deployment, grace_seconds=0.0)
            at_rest = (await status(watched.deployment, choreography())).at_rest
            whole = at_rest and report.ok and report.checked["orders"] == before + 30
            return whole and await problems(watched) == []
        return False

    await until(all_is_well)


@in_one_loop
async def test_a_name_that_is_no_service_is_one_line_with_those_that_are(watched: System) -> None:
    done = await command("restart", "closed", system=watched)

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line == (
        f"error: there is no service 'closed' here; there are {', '.join(watched.services)}"
    )


@in_one_loop
async def test_without_a_saga_up_there_is_nothing_to_restart(system: System) -> None:
    before = pids(system)

    with pytest.raises(RestartError, match=r"no `saga up` runs in .*--data-dir"):
        await restart(system.folder, ["order"])

    assert pids(system) == before
