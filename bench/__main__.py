"""`make bench`: the product beside the same flow without a database, and what it promises.

.venv/bin/python -m bench compare --rounds 5 --orders 3000 --json
.venv/bin/python -m bench compare --against HEAD~3
.venv/bin/python -m bench counts --rounds 1
.venv/bin/python -m bench keep
.venv/bin/python -m bench personal
.venv/bin/python -m bench auth
.venv/bin/python -m bench grow one-sku gateway
.venv/bin/python -m bench curve --picture bench/curve.svg
.venv/bin/python -m bench styles --rounds 5
.venv/bin/python -m bench console --rounds 3
.venv/bin/python -m bench pages --events 1000000
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, NoReturn, Protocol, TypeVar, cast

import typer
import uvloop
from rich.console import Console
from rich.table import Table

from bench.auth import authentication
from bench.compare import (
    Comparison,
    PromisedFigure,
    Ratio,
    Spread,
    compare,
    ratios,
    targets,
    with_before,
)
from bench.console import cost, pages
from bench.counts import ALL, Counted, CountsError, Tool, choose, count, total
from bench.curve import RATES, curve, draw
from bench.export import Export, ExportError, commit_here, export, same_packages
from bench.growth import SCENARIOS, GrowthFinding
from bench.keep import keeping
from bench.machine import BenchHost
from bench.personal import sealing
from bench.rig import BARE, SQLITE, Measured
from bench.shapes import AddedStep, Explored, Known, shapes
from bench.styles import CHOREOGRAPHY, ORCHESTRATION, STYLES, Styles, measure
from saga.local.node import RabbitNode

T = TypeVar("T")

ROUNDS_MAX = 100
ORDERS_MIN, ORDERS_MAX = 100, 1_000_000
PICTURES = (".svg", ".png", ".pdf")
NAMES_SHOWN: Final = 5
"""System calls in a row of the table; JSON has all."""
FIGURES: Final[Sequence[tuple[str, str, Callable[[Measured], float], int]]] = (
    ("orders/s, all at once", "saturated", lambda m: m.orders_per_second, 0),
    ("services, CPU ms per order", "saturated", lambda m: m.services_cpu_ms, 2),
    ("broker, CPU ms per order", "saturated", lambda m: m.broker_cpu_ms, 2),
    ("most MB of a service", "saturated", lambda m: m.peak_mb, 0),
    ("p50 ms at the steady rate", "half", lambda m: m.p50_ms, 0),
    ("p99 ms at the steady rate", "half", lambda m: m.p99_ms, 0),
    ("p50 ms of a lone order", "lone", lambda m: m.p50_ms, 0),
    ("p99 ms of a lone order", "lone", lambda m: m.p99_ms, 0),
)
"""Of both styles: name, load, figure, digits."""

app = typer.Typer(add_completion=False, no_args_is_help=False, pretty_exceptions_enable=False)

Against = Annotated[
    str | None,
    typer.Option(
        metavar="REV",
        help="A commit of this repository: the product as of then takes its turns too.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback(invoke_without_command=True)
def by_default(context: typer.Context) -> None:
    """The product beside the same flow without a database, and what it promises."""
    # It reports lost connections with tracebacks, and a scenario kills the broker.
    logging.getLogger("aiormq").setLevel(logging.CRITICAL)
    if context.invoked_subcommand is None:
        compare_variants()


@app.command("compare")
def compare_variants(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 5,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per variant and round.")
    ] = 3_000,
    against: Against = None,
    as_json: AsJson = False,
) -> None:
    """Compare the variants. Exit status 1 if a target is missed."""
    with tempfile.TemporaryDirectory() as folder:
        other = _exported(against, Path(folder))
        origin = _origin(other, rounds, orders)
        with RabbitNode(Path(folder) / "node") as node:
            found = asyncio.run(
                compare(
                    node,
                    Path(folder),
                    rounds=rounds,
                    orders=orders,
                    report=_report,
                    against=other,
                )
            )
    promised, others = targets(found), ratios(found, other)
    if as_json:
        document = {
            **origin,
            "pace_wall_ms": asdict(found.pace(lambda pace: pace.wall_ms)),
            "pace_cpu_ms": asdict(found.pace(lambda pace: pace.cpu_ms)),
            **found.to_json(),
            "targets": [asdict(target) | {"met": target.met} for target in promised],
            "ratios": [asdict(ratio) for ratio in others],
        }
        print(json.dumps(document, indent=2))
    else:
        _print(found, promised, others)
    if not all(target.met for target in promised):
        sys.exit(1)


@app.command("counts")
def counted_per_order(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 3,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders at full load.")
    ] = 3_000,
    tool: Annotated[
        Tool | None,
        typer.Option("--with", help="What counts system calls; by default perf, if it can."),
    ] = None,
    against: Against = None,
    as_json: AsJson = False,
) -> None:
    """Count system calls, turns of the event loop and sleeps per order, beside the opponent's."""
    try:
        chosen = choose(tool)
    except CountsError as error:
        _fail(str(error))
    with tempfile.TemporaryDirectory() as folder:
        other = _exported(against, Path(folder))
        origin = _origin(other, rounds, orders)
        variants = with_before((BARE, SQLITE), other)
        with RabbitNode(Path(folder) / "node") as node:
            found = asyncio.run(
                count(
                    variants,
                    node,
                    Path(folder),
                    rounds=rounds,
                    orders=orders,
                    tool=chosen,
                    report=_report,
                )
            )
    if as_json:
        rows = [asdict(one) | {"epoll_waits": one.epoll_waits} for one in found]
        document = {**origin, "with": chosen, "counts": rows}
        print(json.dumps(document, indent=2))
    else:
        _print_counts(found, chosen)


@app.command()
def grow(
    scenario: Annotated[
        list[str] | None, typer.Argument(help=f"Of {', '.join(SCENARIOS)}; by default all.")
    ] = None,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per measurement.")
    ] = 5_000,
    as_json: AsJson = False,
) -> None:
    """How throughput and memory hold up as things grow. Exit status 1 if a target is missed."""
    names = scenario or list(SCENARIOS)
    if strangers := [name for name in names if name not in SCENARIOS]:
        raise typer.BadParameter(f"there is no scenario {strangers[0]!r}")

    async def one_by_one(node: RabbitNode, folder: Path) -> list[GrowthFinding]:
        findings: list[GrowthFinding] = []
        for name in names:
            _report(name)
            findings += await SCENARIOS[name](node, folder, orders, _report)
        return findings

    found = _on_a_node(one_by_one)
    if as_json:
        print(json.dumps([asdict(one) | {"met": one.met} for one in found], indent=2))
    else:
        table = Table("figure", "promised", "measured", "met", "how")
        for one in found:
            sign = ">=" if one.at_least else "<="
            met = "yes" if one.met else "[red]no[/]"
            table.add_row(one.name, f"{sign} {one.limit:g}", f"{one.measured:.2f}", met, one.detail)
        Console(soft_wrap=True).print(table)
    if not all(one.met for one in found):
        sys.exit(1)


@app.command("keep")
def cost_of_keeping(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 8,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per variant and slice.")
    ] = 3_000,
    as_json: AsJson = False,
) -> None:
    """What it costs to keep what was published. Exit status 1 if that is too much."""
    found = _on_a_node(partial(keeping, rounds=rounds, orders=orders, report=_report))
    more = {"kept bytes per order": [f"{one.kept_bytes_per_order:.0f}" for one in found]}
    _tell(found, {"variant": [one.variant for one in found]}, more, as_json=as_json)


@app.command("personal")
def cost_of_sealing(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 20,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per variant and slice.")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """What it costs to seal personal data. Exit status 1 if that is too much."""
    found = _on_a_node(partial(sealing, rounds=rounds, orders=orders, report=_report))
    names = {"placed over": [one.door for one in found], "by": [one.customers for one in found]}
    _tell(found, names, as_json=as_json)


@app.command("auth")
def cost_of_knowing_who_asks(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 40,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per way and slice.")
    ] = 200,
    as_json: AsJson = False,
) -> None:
    """What tokens and API keys cost, over HTTP. Exit status 1 if that is too much."""
    found = _on_a_node(partial(authentication, rounds=rounds, orders=orders, report=_report))
    names = {"known by": [one.way for one in found], "to": [one.to for one in found]}
    _tell(found, names, as_json=as_json)


@app.command("curve")
def against_offered_load(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 3,
    rate: Annotated[
        list[int] | None, typer.Option(min=1, help="Orders a second; may be given several times.")
    ] = None,
    picture: Annotated[
        Path, typer.Option(dir_okay=False, help="Where to draw it: .svg, .png or .pdf.")
    ] = Path("bench/curve.svg"),
    as_json: AsJson = False,
) -> None:
    """Throughput and latency against the load that is offered."""
    if picture.suffix not in PICTURES:
        raise typer.BadParameter(f"{picture} does not end in {', '.join(PICTURES)}")
    rates = sorted(rate or RATES)
    points = _on_a_node(partial(curve, rounds=rounds, rates=rates, report=_report))
    draw(points, picture)
    if as_json:
        print(json.dumps([asdict(point) for point in points], indent=2))
        return
    table = Table("variant", "orders/s offered", "ended", "p50 ms", "p99 ms")
    for point in points:
        table.add_row(
            point.variant,
            f"{point.offered_per_second:.0f}",
            f"{point.kept_per_second:.0f}",
            f"{point.p50_ms:.0f}",
            f"{point.p99_ms:.0f}",
        )
    Console(soft_wrap=True).print(table)


@app.command("styles")
def in_two_styles(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 5,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per style and slice.")
    ] = 2_000,
    as_json: AsJson = False,
) -> None:
    """The order flow choreographed and with a coordinator, in turns."""
    found = _on_a_node(partial(measure, rounds=rounds, orders=orders, report=_report))
    _report("exploring both, and adding a step to each")
    known, explored, steps = shapes()
    if as_json:
        document = {
            **_origin(None, rounds, orders),
            "steady_rate": found.steady_rate,
            "load": found.load.to_json(),
            "counts": [asdict(one) for one in found.counts],
            "outages": [asdict(one) for one in found.outages],
            "known": [asdict(one) for one in known],
            "explored": [asdict(one) for one in explored],
            "steps": [asdict(one) for one in steps],
        }
        print(json.dumps(document, indent=2))
    else:
        _print_styles(found)
        _print_shapes(known, explored, steps)


@app.command("console")
def cost_of_the_console(
    rounds: Annotated[int, typer.Option(min=1, max=ROUNDS_MAX, help="Rounds.")] = 3,
    orders: Annotated[
        int, typer.Option(min=ORDERS_MIN, max=ORDERS_MAX, help="Orders per slice.")
    ] = 6_000,
    as_json: AsJson = False,
) -> None:
    """Orders a second with the console open in ten tabs, and without, in turns. Exit status 1 if
    that costs too much."""
    found = _on_a_node(partial(cost, rounds=rounds, orders=orders, report=_report))
    if as_json:
        figures = asdict(found) | {"ratio": asdict(found.ratio), "met": found.met}
        print(json.dumps(_origin(None, rounds, orders) | figures, indent=2))
    else:
        table = Table("", "orders/s", title="medians (least to most)")
        for name, runs in (("alone", found.alone), ("open in ten tabs", found.watched)):
            table.add_row(name, _figure(Spread.of([m.orders_per_second for m in runs]), 0))
        table.add_row("ratio", _figure(found.ratio, 3))
        table.add_row("of one core, the console", _figure(Spread.of(found.console_cpu), 3))
        table.add_row("pages in a slice", _figure(Spread.of(found.pages), 0))
        Console(soft_wrap=True).print(table)
    if not found.met:
        sys.exit(1)


@app.command("pages")
def pages_of_the_console(
    events: Annotated[
        int, typer.Option(min=1_000, max=100_000_000, help="Events in the archive.")
    ] = 1_000_000,
    letters: Annotated[
        int, typer.Option(min=1, max=10_000_000, help="Dead letters in the store.")
    ] = 100_000,
    as_json: AsJson = False,
) -> None:
    """How long each page of the console takes, and how large it is, with many events in the
    archive and many dead letters in the store. Exit status 1 if one is too slow or too large."""
    with tempfile.TemporaryDirectory() as folder:
        found = uvloop.run(pages(Path(folder), events=events, letters=letters, report=_report))
    if as_json:
        print(json.dumps([asdict(one) | {"met": one.met} for one in found], indent=2))
    else:
        times = ("first ms", "median ms", "longest ms", "CPU ms")
        table = Table("status", *times, "bytes", "met", "page")
        for one in found:
            spent = (one.first_ms, one.median_ms, one.longest_ms, one.cpu_ms)
            figures = (*(f"{ms:.0f}" for ms in spent), str(one.bytes))
            met = "yes" if one.met else "[red]no[/]"
            table.add_row(str(one.status), *figures, met, one.path[:40])
        Console(soft_wrap=True).print(table)
    if not all(one.met for one in found):
        sys.exit(1)


class CostRatio(Protocol):
    """What something costs: ratios to the same load without it."""

    @property
    def orders_per_second(self) -> Spread: ...

    @property
    def cpu(self) -> Spread: ...

    @property
    def met(self) -> bool: ...


def _tell(
    found: Sequence[CostRatio],
    names: Mapping[str, Sequence[str]],
    more: Mapping[str, Sequence[str]] = MappingProxyType({}),
    *,
    as_json: bool,
) -> None:
    """Print costs, in a table with columns for their names and for `more`. Exit status 1 if one is
    too much."""
    if as_json:
        # Each is a dataclass, which no protocol can say.
        rows = [asdict(cast(Any, one)) | {"met": one.met} for one in found]
        print(json.dumps(rows, indent=2))
    else:
        table = Table(*names, "orders/s", "CPU", *more, "met")
        for number, one in enumerate(found):
            table.add_row(
                *(column[number] for column in names.values()),
                _figure(one.orders_per_second, 3),
                _figure(one.cpu, 3),
                *(column[number] for column in more.values()),
                "yes" if one.met else "[red]no[/]",
            )
        Console(soft_wrap=True).print(table)
    if not all(one.met for one in found):
        sys.exit(1)


def _on_a_node(measured: Callable[[RabbitNode, Path], Coroutine[Any, Any, T]]) -> T:
    """What is measured on a broker of its own, in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder, RabbitNode(Path(folder) / "node") as node:
        return asyncio.run(measured(node, Path(folder)))


def _exported(revision: str | None, folder: Path) -> Export | None:
    """The commit that `--against` names, exported."""
    if revision is None:
        return None
    try:
        exported = export(revision, folder / "before")
    except ExportError as error:
        raise typer.BadParameter(str(error), param_hint="--against") from None
    if not same_packages(exported):
        _report(f"{revision} was locked to other packages; it runs with today's")
    return exported


def _origin(against: Export | None, rounds: int, orders: int) -> dict[str, object]:
    """Where figures come from: machine, commits, and how much was measured."""
    return {
        "machine": asdict(BenchHost.here()),
        "commit": commit_here(),
        "against": None if against is None else against.commit,
        "rounds": rounds,
        "orders": orders,
    }


def _fail(reason: str) -> NoReturn:
    print(f"bench: {reason}", file=sys.stderr)
    sys.exit(1)


def _report(line: str) -> None:
    print(f"bench: {line}", file=sys.stderr, flush=True)


def _print(found: Comparison, promised: list[PromisedFigure], others: list[Ratio]) -> None:
    console = Console(soft_wrap=True)
    table = Table(
        "variant", "orders/s", "services CPU", "broker CPU", "database CPU", "switches", "peak MB",
        "p50/p99 ms at half rate", "lone p50 ms",
        title="medians (least to most); CPU in ms per order, switches per order",
    )  # fmt: skip
    for variant in found.saturated:
        half, lone = found.half.get(variant), found.lone.get(variant)
        table.add_row(
            variant,
            _figure(found.spread(variant, lambda m: m.orders_per_second), 0),
            _figure(found.spread(variant, lambda m: m.services_cpu_ms), 2),
            _figure(found.spread(variant, lambda m: m.broker_cpu_ms), 2),
            _figure(found.spread(variant, lambda m: m.database_cpu_ms), 2),
            _figure(found.spread(variant, lambda m: m.services_switches), 1),
            f"{found.spread(variant, lambda m: m.peak_mb).most:.0f}",
            f"{Spread.of([m.p50_ms for m in half]).median:.0f} / "
            f"{Spread.of([m.p99_ms for m in half]).median:.0f}" if half else "",
            f"{Spread.of([m.p50_ms for m in lone]).median:.0f}" if lone else "",
        )  # fmt: skip
    console.print(table)
    table = Table("target", "promised", "stretch", "measured", "met")
    for target in promised:
        sign = ">=" if target.at_least else "<="
        table.add_row(
            target.name,
            f"{sign} {target.limit:g} {target.unit}",
            "" if target.stretch is None else f"{sign} {target.stretch:g}",
            _figure(target.measured, 2),
            "yes" if target.met else "[red]no[/]",
        )
    console.print(table)
    table = Table("ratio", "measured")
    for ratio in others:
        table.add_row(ratio.name, _figure(ratio.measured, 2))
    console.print(table)
    machine = BenchHost.here()
    build = "" if machine.optimised else ", built without profile-guided optimisation"
    console.print(
        f"{machine.python}{build}; {machine.cores} cores of {machine.cpu}\n"
        f"the machine's pace: {_figure(found.pace(lambda pace: pace.wall_ms), 0)} ms, "
        f"of that CPU: {_figure(found.pace(lambda pace: pace.cpu_ms), 0)} ms"
    )


def _print_styles(found: Styles) -> None:
    console, load = Console(soft_wrap=True), found.load
    table = Table(
        "figure", *(style.name for style in STYLES), "orchestration / choreography",
        title="medians (least to most); ratios of slices measured one after the other",
    )  # fmt: skip
    for name, kind, figure, digits in FIGURES:
        runs = getattr(load, kind)
        spreads = [Spread.of([figure(m) for m in runs[style.name]]) for style in STYLES]
        ratio = load.ratio(ORCHESTRATION, CHOREOGRAPHY, figure, kind)
        table.add_row(name, *(_figure(each, digits) for each in spreads), _figure(ratio, 2))
    console.print(table)
    console.print(f"the steady rate is {found.steady_rate:.0f} orders a second")
    table = Table("per order", "style", "messages", "deliveries", "bytes", "which")
    for one in sorted(found.counts, key=lambda one: one.kind):
        table.add_row(
            one.kind,
            one.style,
            f"{one.total:.1f}",
            f"{one.deliveries:.1f}",
            f"{one.total_bytes:.0f}",
            ", ".join(one.messages),
        )
    console.print(table)
    table = Table(
        "while the service that takes orders is away", "reserved", "charged", "ended",
        "s from its start to the last end",
    )  # fmt: skip
    for style in STYLES:
        outages = [each for each in found.outages if each.style == style.name]
        table.add_row(
            style.name,
            *(_figure(Spread.of([getattr(o, what) for o in outages]), 2)
              for what in ("reserved", "charged", "ended", "seconds_to_end")),
        )  # fmt: skip
    console.print(table)
    console.print(
        f"the machine's pace: {_figure(load.pace(lambda pace: pace.wall_ms), 0)} ms, "
        f"of that CPU: {_figure(load.pace(lambda pace: pace.cpu_ms), 0)} ms"
    )


def _print_shapes(
    known: Sequence[Known], explored: Sequence[Explored], steps: Sequence[AddedStep]
) -> None:
    console = Console(soft_wrap=True)
    table = Table("style", "participant", "knows", "takes", "says", "names imported")
    for each in known:
        others = ", ".join(each.others)
        table.add_row(
            each.style, each.participant, others, f"{each.takes}", f"{each.says}", f"{each.names}"
        )
    console.print(table)
    table = Table("style", "model", "states", "steps", "s", "MB")
    for one in explored:
        table.add_row(
            one.style,
            one.model,
            f"{one.states:,}",
            f"{one.steps:,}",
            f"{one.seconds:.1f}",
            f"{one.peak_mb:.0f}",
        )
    console.print(table)
    table = Table("a step more", "lines changed, by where they are")
    for step in steps:
        table.add_row(step.style, ", ".join(f"{what} {n}" for what, n in step.lines.items()))
    console.print(table)


def _print_counts(found: list[Counted], tool: Tool) -> None:
    table = Table(
        "load", "variant", "service", "orders/s", "sleeps", "orders/s counted", "system calls",
        "epoll waits", "most of them", title=f"per order; system calls counted with {tool}",
    )  # fmt: skip
    for one in (row for group in _by_load(found) for row in (*group, total(group))):
        named = sorted(((n, name) for name, n in one.calls.items() if name != ALL), reverse=True)
        table.add_row(
            one.kind,
            one.variant,
            one.service,
            f"{one.orders_per_second:.0f}",
            f"{one.switches:.1f}",
            f"{one.orders_per_second_counted:.0f}",
            f"{one.calls.get(ALL, 0.0):.1f}",
            f"{one.epoll_waits:.1f}",
            ", ".join(f"{name} {number:.1f}" for number, name in named[:NAMES_SHOWN]),
        )
    Console(soft_wrap=True).print(table)


def _by_load(found: list[Counted]) -> list[list[Counted]]:
    """The rows of one variant under one load, together."""
    groups: dict[tuple[str, str], list[Counted]] = {}
    for one in found:
        groups.setdefault((one.kind, one.variant), []).append(one)
    return list(groups.values())


def _figure(spread: Spread, digits: int) -> str:
    return f"{spread.median:.{digits}f} ({spread.least:.{digits}f} to {spread.most:.{digits}f})"


if __name__ == "__main__":
    app()
