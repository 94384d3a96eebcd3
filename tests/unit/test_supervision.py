"""How what keeps ending is brought back: less and less often, and said so."""

from __future__ import annotations

import os
from pathlib import Path

from saga.supervision import (
    DELAY_MAX_SECONDS,
    LOOP_ENDS,
    WINDOW_SECONDS,
    Supervised,
    Supervision,
)


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
