"""The benchmark's arithmetic: ratios within a slice, promises, counts as the tools write them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import cast

import pytest
from fastapi.routing import APIRoute

from bench.compare import Comparison, Spread, ratios, targets, with_before
from bench.console import without_inquiries
from bench.counts import ALL, Counted, CountsError, choose, read_perf, read_strace, total
from bench.export import Export
from bench.load import Load
from bench.machine import Pace, cpu_model
from bench.rig import BARE, LIMIT, PER_MESSAGE, POSTGRESQL, SQLITE, Measured, before
from bench.without_door import routes_without_door
from order_service.app import routes
from saga.auth.scopes import need_of
from saga.console.inquiry import Inquiry
from saga.runtime.service import Running

OTHER = Export("v1", "c0ffee", Path("/files"), Path("/python"))
PACE = Pace(wall_ms=150.0, cpu_ms=140.0)
SLICE = Measured(
    orders_per_second=500.0,
    p50_ms=20.0,
    p99_ms=90.0,
    cpu_ms={"order": 1.0, "inventory": 0.5, "payment": 0.5},
    broker_cpu_ms=1.0,
    database_cpu_ms=0.0,
    switches={"order": 2.0, "inventory": 1.0, "payment": 1.0},
    peak_mb=100.0,
    pace_before=PACE,
    pace_after=PACE,
)


def compared(**rates: tuple[float, float]) -> Comparison:
    """Two slices of each variant, of which these have other rates than the rest."""
    found = Comparison()
    variants = with_before((BARE, PER_MESSAGE, SQLITE, POSTGRESQL, LIMIT), OTHER)
    for variant in variants:
        found.saturated[variant.name] = [
            dataclasses.replace(SLICE, orders_per_second=rate)
            for rate in rates.get(variant.name, (500.0, 500.0))
        ]
        found.half[variant.name] = [SLICE, SLICE]
        found.lone[variant.name] = [SLICE]
    return found


def test_a_ratio_is_taken_within_a_slice_and_its_median_over_the_slices() -> None:
    found = compared(bare=(100.0, 200.0), sqlite=(300.0, 400.0))

    ratio = found.ratio(SQLITE, BARE, lambda measured: measured.orders_per_second)

    assert ratio == Spread(median=2.5, least=2.0, most=3.0)


def test_a_target_is_met_by_its_median() -> None:
    found = compared(bare=(100.0, 100.0), sqlite=(150.0, 280.0))

    met = {target.name: target.met for target in targets(found)}

    assert met["sqlite: orders/s / bare"]  # 2.15 of 2.1
    assert not met["sqlite: CPU of services / bare"]  # 1 of 0.5


def test_every_variant_that_is_compared_has_its_ratio_to_the_limit() -> None:
    found = compared(limit=(1_000.0, 1_000.0))

    measured = {ratio.name: ratio.measured.median for ratio in ratios(found)}

    assert measured == {
        "bare: orders/s / limit": 0.5,
        "sqlite: orders/s / limit": 0.5,
        "postgresql: orders/s / limit": 0.5,
    }


def test_another_commit_takes_its_turns_right_after_what_it_is_compared_with() -> None:
    names = [variant.name for variant in with_before((BARE, SQLITE, POSTGRESQL, LIMIT), OTHER)]

    assert names == [
        "bare", "sqlite", "before, sqlite", "postgresql", "before, postgresql", "limit",
    ]  # fmt: skip
    assert with_before((BARE, SQLITE), None) == (BARE, SQLITE)


def test_another_commit_runs_as_the_product_does() -> None:
    was = before(SQLITE, OTHER)

    assert was.ours
    assert (was.database, was.programs, was.source) == (SQLITE.database, SQLITE.programs, OTHER)


def test_the_product_is_compared_with_itself_as_of_another_commit() -> None:
    found = compared(sqlite=(600.0, 600.0))

    measured = {ratio.name: ratio.measured.median for ratio in ratios(found, OTHER)}

    assert measured["sqlite: orders/s / before"] == 1.2
    assert measured["postgresql: p50 of a lone order / before"] == 1.0


def test_the_machines_pace_is_that_before_and_after_every_slice() -> None:
    found = compared()
    found.lone[BARE.name] = [dataclasses.replace(SLICE, pace_after=Pace(300.0, 140.0))]

    assert found.pace(lambda pace: pace.wall_ms) == Spread(median=150.0, least=150.0, most=300.0)


def test_a_processor_without_a_name_is_known_by_its_architecture() -> None:
    assert cpu_model(["processor\t: 0", "model name\t: A Fine CPU: 2", ""]) == "A Fine CPU: 2"
    assert cpu_model(["processor\t: 0"]) != ""


PERF = """\
# started on Thu Nov 26 00:25:46 2026

1176,,raw_syscalls:sys_enter,32671592,100.00,,
6,,syscalls:sys_enter_epoll_pwait,32671592,100.00,,
0,,syscalls:sys_enter_read,32671592,100.00,,
<not counted>,,syscalls:sys_enter_write,0,100.00,,
"""

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 97.41    0.042603          73       578           epoll_wait
  2.59    0.001132           8       141        24 futex
------ ----------- ----------- --------- --------- ----------------
100.00    0.043735          60       719        24 total
"""


def test_what_perf_writes_is_read() -> None:
    assert read_perf(PERF) == {ALL: 1176, "epoll_pwait": 6}
    assert read_perf("") == {}


def test_what_strace_writes_is_read() -> None:
    assert read_strace(STRACE) == {ALL: 719, "epoll_wait": 578, "futex": 141}
    assert read_strace("") == {ALL: 0}


def test_turns_of_the_event_loop_are_counted_whatever_the_call_is_named() -> None:
    counted = Counted(
        "bare", "full", "order", 500.0, 1.0, 0.3, 480.0,
        {ALL: 9.0, "epoll_wait": 1.0, "epoll_pwait": 2.5},
    )  # fmt: skip

    assert counted.epoll_waits == 3.5
    assert total([counted, counted]).epoll_waits == 7.0


def test_without_a_tool_the_way_to_get_one_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(CountsError, match=r"strace is missing .*apt-get install strace"):
        choose()
    with pytest.raises(CountsError, match="perf is missing"):
        choose("perf")


async def test_pages_are_timed_without_what_is_looked_for_beside_them() -> None:
    asked: list[str] = []

    async def ask() -> None:
        asked.append("asked")

    inquiry = Inquiry(ask)
    with without_inquiries():
        assert not inquiry.begin_number(1)
        await inquiry.soon(60.0)
    assert not asked
    assert inquiry.begin()
    await inquiry.soon(60.0)
    assert asked


def test_of_many_slices_the_spread_tells_where_such_medians_lie() -> None:
    spread = Spread.of_many([*range(101), 10_000.0, -10_000.0])

    assert spread.median == 50
    assert 35 < spread.least < 45 < 55 < spread.most < 65
    assert Spread.of_many([1.0, 3.0]) == Spread(2.0, 1.0, 3.0)


def test_the_service_without_a_door_has_all_routes_of_the_product_and_asks_nobody() -> None:
    running = cast(Running, None)  # Routes ask for it when they are called.
    product = [route for route in routes(running).routes if isinstance(route, APIRoute)]
    without = [r for r in routes_without_door(running).routes if isinstance(r, APIRoute)]

    assert [(r.path, r.methods) for r in without] == [(r.path, r.methods) for r in product]
    assert all(need_of(route) for route in product)
    assert not any(need_of(route) or route.dependant.dependencies for route in without)


def test_customers_who_come_again_are_so_many() -> None:
    new = Load(30, seed=1).plan().orders
    again = Load(30, seed=1, customers=7).plan().orders

    assert len({order.customer for order in new}) == 30
    assert len({order.customer for order in again}) == 7
    assert [order.key for order in again] == [order.key for order in new]
