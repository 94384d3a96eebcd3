"""How what keeps ending is brought back: less and less often, and said so."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import cast

import pytest

from saga.local import keeping as keeping_module
from saga.local import supervision
from saga.local.keeping import Keeper
from saga.local.node import NodeError, RabbitNode
from saga.local.supervision import (
    DELAY_MAX_SECONDS,
    LOOP_ENDS,
    WINDOW_SECONDS,
    Supervised,
    Supervision,
)
from tests.polling import until


def delays(process: Supervised, times: list[float]) -> list[float]:
    return [process.ended(now, "killed by SIGKILL") for now in times]


def test_what_keeps_ending_waits_twice_as_long_each_time_up_to_a_limit() -> None:
    assert delays(Supervised(), [float(now) for now in range(9)]) == [
        *(0, 1, 2, 4, 8, 16, 32),
        *(DELAY_MAX_SECONDS, DELAY_MAX_SECONDS),
    ]


def test_what_ends_once_in_a_while_is_never_in_a_crash_loop() -> None:
    process = Supervised()

    seldom = [WINDOW_SECONDS * number for number in range(1, 50)]
    assert delays(process, seldom) == [0.0] * len(seldom)
    assert process.problem("it", seldom[-1]) is None
    assert len(process.ends) == 1


def test_a_crash_loop_is_a_problem_until_the_window_is_over() -> None:
    process = Supervised()
    delays(process, [100.0 + number for number in range(LOOP_ENDS - 1)])
    assert process.problem("the order service", 110.0) is None

    process.ended(110.0, "killed by SIGKILL")

    process.starts_at = 118.0
    said = process.problem("the order service", 110.0)
    assert said == (
        f"the order service has ended {LOOP_ENDS} times within 10 minutes (killed by SIGKILL); "
        f"it is started again in 8 s"
    )
    process.starts_at = None
    assert (process.problem("it", 110.0) or "").endswith("it runs now")
    assert process.problem("it", 110.0 + WINDOW_SECONDS) is None


def test_nothing_is_supervised_where_no_saga_up_runs(tmp_path: Path) -> None:
    assert Supervision.load(tmp_path) is None

    here = Supervision(group=os.getpgrp(), stop_seconds=1, services={"order": Supervised()})
    here.save(tmp_path)
    assert Supervision.load(tmp_path) == here

    gone = here.model_copy(update={"group": 2**22 - 1})  # the system's highest, so there is none
    gone.save(tmp_path)
    assert Supervision.load(tmp_path) is None
    Supervision.forget(tmp_path)
    Supervision.forget(tmp_path)


class Broken:
    """A server that cannot be started at the first two tries."""

    log_path = Path("rabbit.log")

    def __init__(self) -> None:
        self.running = False
        self.starts = 0

    def start(self) -> None:
        self.starts += 1
        if self.starts < 3:
            raise NodeError("the disk is full")
        self.running = True


def only_a_broker(broker: Supervised) -> Supervision:
    servers = {"the broker": broker}
    return Supervision(group=os.getpgrp(), stop_seconds=1, services={}, servers=servers)


async def keep_server(keeper: Keeper, server: Broken) -> None:
    async def start() -> None:
        server.start()

    await keeper.keep_server("the broker", cast(RabbitNode, server), start)


async def test_a_server_that_does_not_come_back_is_tried_again_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "DELAY_MAX_SECONDS", 0.0)
    said: list[str] = []
    broker = Supervised()
    keeper = Keeper(tmp_path, only_a_broker(broker), lack_of_room=lambda: "", report=said.append)
    server = Broken()

    keeping = asyncio.ensure_future(keep_server(keeper, server))
    await until(lambda: server.running)

    assert not keeping.done()
    keeping.cancel()
    await asyncio.wait({keeping})
    assert server.starts == 3
    assert len(broker.ends) == 3
    assert broker.last_words == "the disk is full"
    assert "the broker has ended (the disk is full); starting it again" in said[-1]
    assert Supervision.load(tmp_path) is not None


async def test_a_disk_without_room_ends_nothing_and_starts_nothing_until_there_is_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lack = "the disk of /data has 0 kB free, less than 25 MB"
    lacking = [lack]
    monkeypatch.setattr(keeping_module, "ROOM_LOOK_SECONDS", 0.001)
    saved = Supervision.save

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Supervision, "save", full)
    said: list[str] = []
    broker = Supervised()
    keeper = Keeper(
        tmp_path,
        only_a_broker(broker),
        lack_of_room=lambda: "".join(lacking),
        report=said.append,
    )
    server = Broken()
    server.starts = 2  # The next one succeeds.

    async def keep() -> None:
        await asyncio.gather(keeper.keep_saved(), keep_server(keeper, server))

    keeping = asyncio.ensure_future(keep())
    await until(lambda: len(said) == 2)
    assert f"the broker has ended (no room left: {lack}; " in said[0]
    assert said[0].endswith("starting it again once there is room")
    assert "No space left on device" in said[1]
    assert not server.running

    lacking.clear()
    monkeypatch.setattr(Supervision, "save", saved)
    await until(lambda: server.running and Supervision.load(tmp_path) is not None)

    keeping.cancel()
    await asyncio.wait({keeping})
    assert len(broker.ends) == 1
    assert len(said) == 2
