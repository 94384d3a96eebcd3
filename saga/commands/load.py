"""`saga publish`, `saga demo`: test orders, sent and seen through."""

from __future__ import annotations

import asyncio
import contextlib
import os
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from common.tasks import cancel_all
from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    OwnDatabase,
    Replicas,
    one_replica_per_file,
    print_json,
    problem,
    remark,
    run,
    stoppable,
)
from saga.commands.running import print_report

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from saga.demo import Result
    from saga.deployment import Deployment
    from saga.load import Plan as AnyPlan
    from saga.orders import Plan, Shares
    from saga.publish import Published
    from saga.system import Database, System

ORDERS_MAX = 1_000_000
RATE_MAX = 100_000.0
CONCURRENCY_MAX = 1_000
SEED_MAX = 2**63 - 1
ENDS_MAX = 5
"""A process that ends more often than this would keep a demo waiting for ever."""

T = TypeVar("T")

Orders = Annotated[int, typer.Option(min=1, max=ORDERS_MAX, help="How many orders.")]
Seed = Annotated[
    int, typer.Option(min=0, max=SEED_MAX, help="The same seed gives the same orders.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=RATE_MAX, help="Orders per second at most.", show_default="as fast as it goes"
    ),
]
Direct = Annotated[
    bool,
    typer.Option(
        "--direct", help="Place orders as AMQP commands on the intake queues instead of over HTTP."
    ),
]
Concurrency = Annotated[
    int, typer.Option(min=1, max=CONCURRENCY_MAX, help="Orders being placed at once.")
]


def _share(what: str) -> Any:
    return typer.Option(
        min=0.0, max=1.0, help=f"Share of the orders {what}.", rich_help_panel="Mix"
    )


High = Annotated[float, _share("with high priority")]
OutOfStock = Annotated[float, _share("for something sold out")]
Mispriced = Annotated[float, _share("at a wrong price or for an unknown SKU")]
Declined = Annotated[float, _share("whose payment is declined")]
Cancelled = Annotated[float, _share("that the customer cancels at once")]
MalformedShare = Annotated[float, _share("to send malformed messages besides, as many")]


def _shares(**given: float) -> Shares:
    from saga.orders import PlanError, Shares

    try:
        return Shares(**given)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error


_OF_ORDERS: Final = frozenset(
    {"rate", "direct", "concurrency", "high", "out_of_stock", "mispriced", "declined"}
    | {"cancelled", "malformed", "outage"}
)
"""Parameters that only the load of orders looks at."""


def _check_options(context: typer.Context) -> None:
    """Refuse options that would do nothing for this project's saga. Raises `BadParameter`."""
    from saga.discovery import saga

    if _is_shop():
        return
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in _OF_ORDERS and source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(
                f"only the load of orders knows it; {saga().name} declares a load of its own, "
                f"which decides on that: leave it out",
                param_hint=parameter.opts[0],
            )


def publish(
    context: typer.Context,
    orders: Orders = 100,
    seed: Seed = 1,
    rate: Rate = None,
    direct: Direct = False,
    concurrency: Concurrency = 32,
    high: High = 0.10,
    out_of_stock: OutOfStock = 0.05,
    mispriced: Mispriced = 0.05,
    declined: Declined = 0.05,
    cancelled: Cancelled = 0.02,
    malformed: MalformedShare = 0.01,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Place test orders at a running system, with stock and customers to match.

    On a fresh system the same seed gives the same orders, ids included; used again on the same
    system, it gives the same orders under new ids. Says what has to come of them; does not wait.

    Examples:

    * `saga publish --orders 500 --seed 7`
    * `saga publish --orders 10000 --rate 200 --direct`
    * `saga publish --orders 50 --declined 0.5 --malformed 0`
    """
    _check_options(context)
    shares = _shares(
        high=high,
        out_of_stock=out_of_stock,
        mispriced=mispriced,
        declined=declined,
        cancelled=cancelled,
        malformed=malformed,
    )
    from saga.deployment import Deployment

    if not _is_shop():
        _publish_any(Deployment.load(data_dir), orders, seed, as_json)
        return
    from saga.commands.console import out, progress_bars
    from saga.publish import next_plan
    from saga.publish import publish as send

    deployment = Deployment.load(data_dir)

    async def work() -> tuple[Plan, Published]:
        plan = await next_plan(deployment, orders, seed, shares)
        with progress_bars(sending=orders + len(plan.malformed)) as advance:
            return plan, await send(
                deployment,
                plan,
                direct=direct,
                rate=rate,
                concurrency=concurrency,
                progress=advance["sending"],
            )

    with stoppable():
        plan, published = run(work())
    document = _published_as_json(seed, plan, published)
    if as_json:
        print_json(document)
        return
    remark(
        f"{published.orders} orders and {published.malformed} malformed messages sent in "
        f"{published.seconds:.1f} s; `saga status` and `saga reconcile` tell what comes of them"
    )
    for outcome, count in document["expected"].items():
        out().print(f"{outcome:>20} {count:>8}")


def _is_shop() -> bool:
    """Whether it is the saga of orders, whose load has options of its own: how customers pay, what
    is sold out. Any other one declares its load."""
    from saga.discovery import saga

    return saga().shop


def _publish_any(deployment: Deployment, sagas: int, seed: int, as_json: bool) -> None:
    from collections import Counter

    from saga import loading
    from saga.commands.console import out, progress_bars
    from saga.discovery import saga

    async def work() -> AnyPlan:
        plan = await loading.next_plan(deployment, saga(), sagas, seed)
        with progress_bars(sending=len(plan.before) + len(plan.given)) as advance:
            await loading.send(deployment, plan, advance["sending"])
        return plan

    with stoppable():
        plan = run(work())
    expected = Counter(" or ".join(sorted(map(str, ends))) for ends in plan.ends.values())
    if as_json:
        ends = {subject: sorted(map(str, ends)) for subject, ends in plan.ends.items()}
        print_json({"seed": seed, "sagas": len(plan.ends), "expected": ends})
        return
    remark(
        f"{len(plan.given)} commands sent; `saga status` and `saga reconcile` tell what comes of "
        f"them"
    )
    for outcome, count in sorted(expected.items()):
        out().print(f"{outcome:>20} {count:>8}")


def _demo_any(
    sagas: int, seed: int, folder: Path, database: Database, replicas: int, as_json: bool
) -> None:
    from saga import loading
    from saga.commands.console import Table, out, progress_bars, styled
    from saga.discovery import saga

    here = saga()
    loading.plan_of(here, sagas, seed)  # Before anything is started for it.

    async def load(deployment: Deployment) -> loading.Result:
        plan = await loading.next_plan(deployment, here, sagas, seed)
        sending = len(plan.before) + len(plan.given)
        with progress_bars(sending=sending, ended=len(plan.ends)) as advance:
            return await loading.see_through(
                deployment,
                here,
                plan,
                seed=seed,
                sent=advance["sending"],
                ended=advance["ended"],
            )

    async def work() -> loading.Result:
        running = await _running(folder)
        if running is not None:
            remark(f"using the system that runs on {folder}")
            return await load(running)
        async with _own_system(folder, database, replicas) as system:
            return await _watched(system, load(system.deployment))

    with stoppable():
        result = run(work())
    if as_json:
        print_json(result.to_json())
    else:
        table = Table("outcome", here.name, title=f"{sagas} of {here.name}, seed {seed}")
        for outcome, count in result.to_json()["outcomes"].items():
            table.add_row(outcome, f"{count}")
        out().print(table)
        print_report(result.report)
        for line in result.unexpected:
            out().print(styled(("unexpected:", "red"), f" {line}"))
    if not result.ok:
        problem("not everything went as predicted")
        raise typer.Exit(PROBLEM_FOUND)


def _published_as_json(seed: int, plan: Plan, published: Published) -> dict[str, Any]:
    from collections import Counter

    expected = Counter(
        "confirmed" if reason is None else str(reason) for reason in published.expected.values()
    )
    return {
        "seed": seed,
        "prefix": plan.prefix,
        "orders": published.orders,
        "malformed": published.malformed,
        "cancelled_too_late": published.too_late,
        "expected": dict(sorted(expected.items())),
        "order_ids": [str(order.order_id) for order in plan.orders],
        "seconds": round(published.seconds, 3),
    }


def demo(
    context: typer.Context,
    orders: Orders = 1000,
    seed: Seed = 1,
    rate: Rate = None,
    direct: Direct = False,
    concurrency: Concurrency = 32,
    high: High = 0.10,
    out_of_stock: OutOfStock = 0.05,
    mispriced: Mispriced = 0.05,
    declined: Declined = 0.05,
    cancelled: Cancelled = 0.02,
    malformed: MalformedShare = 0.01,
    outage: Annotated[
        bool, typer.Option(help="Take the payment provider down on the way, and replay what died.")
    ] = True,
    database: OwnDatabase = "sqlite",
    replicas: Replicas = 1,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Run a mixed load from end to end, and check every order's end and the books.

    Uses the system that `saga up` runs on the data folder; where none runs, starts one in a fresh
    folder below it, and ends it. With `AMQP_URL` set that one uses the broker there, and the data
    folder itself: the databases go with the events on the broker, from one run to the next.

    In the middle the payment provider goes down: its charges are tried again, and become dead
    letters. It comes back, and these are replayed.

    Exit status 0 only if every order ended as its seed predicts, some of them by being replayed,
    every malformed message is a dead letter, and the books are right.

    Examples:

    * `saga demo`
    * `saga demo --orders 200 --seed 7 --json`
    * `saga demo --orders 5000 --high 0.5 --direct`
    * `saga demo --database postgresql --replicas 2`
    """
    _check_options(context)
    one_replica_per_file(database, replicas)
    shares = _shares(
        high=high,
        out_of_stock=out_of_stock,
        mispriced=mispriced,
        declined=declined,
        cancelled=cancelled,
        malformed=malformed,
    )
    if not _is_shop():
        _demo_any(orders, seed, data_dir, database, replicas, as_json)
        return
    from saga.commands.console import progress_bars
    from saga.demo import demo as see_through
    from saga.discovery import choreography
    from saga.publish import next_plan

    async def load(deployment: Deployment) -> Result:
        plan = await next_plan(deployment, orders, seed, shares)
        with progress_bars(sending=orders + len(plan.malformed), ended=orders) as advance:
            return await see_through(
                deployment,
                choreography(),
                plan,
                seed=seed,
                direct=direct,
                rate=rate,
                concurrency=concurrency,
                outage=outage,
                tell=remark,
                sent=advance["sending"],
                ended=advance["ended"],
            )

    async def work() -> Result:
        running = await _running(data_dir)
        if running is not None:
            remark(f"using the system that runs on {data_dir}")
            return await load(running)
        async with _own_system(data_dir, database, replicas) as system:
            return await _watched(system, load(system.deployment))

    with stoppable():
        result = run(work())
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(result)
    if not result.ok:
        problem("not everything went as predicted")
        raise typer.Exit(PROBLEM_FOUND)


async def _running(folder: Path) -> Deployment | None:
    """The system that runs on `folder`, if one does that answers."""
    from saga.deployment import Deployment, DeploymentError
    from saga.status import READY, readiness

    try:
        deployment = Deployment.load(folder)
    except DeploymentError:
        return None
    said = [await readiness(urls) for urls in deployment.http_urls.values()]
    return deployment if all(word == READY for word in said) else None


def _fresh_folder(parent: Path) -> Path:
    import tempfile
    from pathlib import Path

    from saga.system import SystemFault

    try:
        parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(prefix="demo-", dir=parent))
    except OSError as error:
        raise SystemFault(
            f"cannot write in the data folder {parent}: {error.strerror}; "
            f"make it writable, or name another with --data-dir or DATA_DIR"
        ) from error


@contextlib.asynccontextmanager
async def _own_system(parent: Path, database: Database, replicas: int) -> AsyncIterator[System]:
    """A system for this run; with a broker of its own also in a folder of its own, which is removed
    if all went well."""
    from saga.system import System, remove_folder

    system_in = partial(System, database=database, replicas=replicas, report=remark)
    if amqp_url := os.environ.get("AMQP_URL"):
        async with system_in(parent, amqp_url=amqp_url) as system:
            yield system
        return
    folder = _fresh_folder(parent)
    try:
        async with system_in(folder, disposable=True) as system:
            yield system
    except BaseException:
        remark(f"logs and databases are kept in {folder}")
        raise
    remove_folder(folder)


async def _watched(system: System, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, while what ends by itself is brought back."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(system.watch(ends_max=ENDS_MAX))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            watching.result()  # raises: it ends in no other way
        return await working
    finally:
        await cancel_all(working, watching)


def _print_result(result: Result) -> None:
    from saga.commands.console import Table, out, styled

    console = out()
    document = result.to_json()
    title = f"{document['orders']} orders, seed {result.seed}"
    outcomes = Table("outcome", "orders", title=title, right=["orders"])
    outcomes.add_row("confirmed", f"{document['outcomes']['confirmed']}")
    for reason, count in document["outcomes"]["cancelled"].items():
        outcomes.add_row(f"cancelled: {reason}", f"{count}")
    headers = ("priority", "p50 ms", "p99 ms")
    latencies = Table(*headers, title="placed to ended", right=headers[1:])
    for priority, latency in result.latency_ms().items():
        latencies.add_row(priority, f"{latency['p50']:.1f}", f"{latency['p99']:.1f}")
    console.print(outcomes)
    console.print(latencies)
    console.print(f"{result.orders_per_second:.0f} orders per second")
    console.print(
        f"dead letters: {result.dead_letters} of {result.dead_letters_expected} malformed messages"
    )
    if result.replayed is not None:
        console.print(
            f"the provider's outage held up {result.held_up} orders, which the times above leave "
            f"out; {result.healed} were confirmed by replaying their dead letters"
        )
    print_report(result.report)
    for line in result.unexpected:
        console.print(styled(("unexpected:", "red"), f" {line}"))
