"""`saga publish`, `saga demo` for orders: with what customers, stock and the provider are to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saga.commands.load import SEED_MAX, print_predicted, with_system
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
from saga.wording import counted

if TYPE_CHECKING:
    from order_saga.demo import DemoResult
    from order_saga.orders import OrderLoad, Shares
    from order_saga.publish import PublishedOrders
    from saga.deployment import Deployment

ORDERS_MAX = 1_000_000
RATE_MAX = 100_000.0
CONCURRENCY_MAX = 1_000

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
    from order_saga.orders import PlanError, Shares

    try:
        return Shares(**given)
    except PlanError as error:
        raise typer.BadParameter(str(error)) from error


def publish(
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
    shares = _shares(
        high=high,
        out_of_stock=out_of_stock,
        mispriced=mispriced,
        declined=declined,
        cancelled=cancelled,
        malformed=malformed,
    )
    from order_saga.publish import next_plan
    from order_saga.publish import publish as send
    from saga.commands.console import progress_bars
    from saga.deployment import Deployment

    deployment = Deployment.load(data_dir)

    async def work() -> tuple[OrderLoad, PublishedOrders]:
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
        f"{counted(published.orders, 'order')} and "
        f"{counted(published.malformed, 'malformed message')} sent in "
        f"{published.seconds:.1f} s; `saga status` and `saga reconcile` show the results"
    )
    print_predicted(document["expected"])


def _published_as_json(seed: int, plan: OrderLoad, published: PublishedOrders) -> dict[str, Any]:
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
    one_replica_per_file(database, replicas)
    shares = _shares(
        high=high,
        out_of_stock=out_of_stock,
        mispriced=mispriced,
        declined=declined,
        cancelled=cancelled,
        malformed=malformed,
    )
    from order_saga.demo import demo as see_through
    from order_saga.publish import next_plan
    from saga.commands.console import progress_bars
    from saga.discovery import choreography

    async def load(deployment: Deployment) -> DemoResult:
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

    with stoppable():
        result = run(with_system(load, data_dir, database, replicas))
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(result)
    if not result.ok:
        problem("not everything went as predicted")
        raise typer.Exit(PROBLEM_FOUND)


def _print_result(result: DemoResult) -> None:
    from saga.commands.console import Table, out, styled

    console = out()
    document = result.to_json()
    title = f"{counted(document['orders'], 'order')}, seed {result.seed}"
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
        f"dead letters: {result.dead_letters} of "
        f"{counted(result.dead_letters_expected, 'malformed message')}"
    )
    if result.replayed is not None:
        console.print(
            f"the provider's outage held up {counted(result.held_up, 'order')}, which the times "
            f"above "
            f"{'include' if result.held_up == len(result.ends) else 'leave out'}; "
            f"{result.healed} were confirmed by replaying their dead letters"
        )
    print_report(result.report)
    for line in result.unexpected:
        console.print(styled(("unexpected:", "red"), f" {line}"))
