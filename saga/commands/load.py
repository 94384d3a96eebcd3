"""`saga publish`, `saga demo`: a load of sagas, sent and seen through.

A saga may have commands of its own in their place (`Saga.commands`), made of what is here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

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
from saga.runtime.tasks import cancel_all
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine
    from pathlib import Path

    from saga.deployment import Deployment
    from saga.load.plan import Plan
    from saga.load.run import LoadResult
    from saga.local.system import Database, System

SAGAS_MAX = 1_000_000
SEED_MAX = 2**63 - 1
ENDS_MAX = 5
"""A process that ends more often than this would keep a demo waiting for ever."""

T = TypeVar("T")

Sagas = Annotated[int, typer.Option(min=1, max=SAGAS_MAX, help="How many sagas.")]
Seed = Annotated[int, typer.Option(min=0, max=SEED_MAX, help="The same seed gives the same load.")]


def publish(
    sagas: Sagas = 100, seed: Seed = 1, data_dir: DataDir = DATA_DIR, as_json: AsJson = False
) -> None:
    """Begin sagas at a running system, as the saga's load draws them.

    On a fresh system the same seed gives the same sagas; used again on the same system, it gives
    others. Says how they have to end; does not wait.

    Examples:

    * `saga publish --sagas 500 --seed 7`
    """
    from collections import Counter

    from saga.commands.console import progress_bars
    from saga.deployment import Deployment
    from saga.discovery import saga
    from saga.load import run as loading
    from saga.load.plan import NO_END

    deployment = Deployment.load(data_dir)

    async def work() -> Plan:
        plan = await loading.next_plan(deployment, saga(), sagas, seed)
        with progress_bars(sending=len(plan.before) + len(plan.given)) as advance:
            await loading.send(deployment, plan, advance["sending"])
        return plan

    with stoppable():
        plan = run(work())
    expected = Counter(" or ".join(sorted(map(str, ends))) or NO_END for ends in plan.ends.values())
    if as_json:
        ends = {subject: sorted(map(str, ends)) for subject, ends in plan.ends.items()}
        print_json({"seed": seed, "sagas": len(plan.ends), "expected": ends})
        return
    remark(
        f"{counted(len(plan.given), 'command')} sent; `saga status` and `saga reconcile` show "
        f"the results"
    )
    print_predicted(dict(sorted(expected.items())))


def print_predicted(ends: Mapping[str, int]) -> None:
    """How many sagas of a load have to end in which way."""
    from saga.commands.console import out

    width = max(map(len, ends), default=0)
    out().print("what has to come of them:")
    for end, count in ends.items():
        out().print(f"{end:>{width + 2}} {count:>8}")


def demo(
    sagas: Sagas = 100,
    seed: Seed = 1,
    database: OwnDatabase = "sqlite",
    replicas: Replicas = 1,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Run a load from end to end, and check every saga's end and the books.

    Uses the system that `saga up` runs on the data folder; where none runs, starts one in a fresh
    folder below it, and ends it. With `AMQP_URL` set that one uses the broker there, and the data
    folder itself: the databases go with the events on the broker, from one run to the next.

    Exit status 0 only if every saga ended as its load predicts, and the books are right.

    Examples:

    * `saga demo`
    * `saga demo --sagas 200 --seed 7 --json`
    * `saga demo --database postgresql --replicas 2`
    """
    one_replica_per_file(database, replicas)
    from saga.commands.console import progress_bars
    from saga.discovery import saga
    from saga.load import run as loading

    here = saga()
    loading.plan_of(here, sagas, seed)  # Before anything is started for it.

    async def load(deployment: Deployment) -> LoadResult:
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

    with stoppable():
        result = run(with_system(load, data_dir, database, replicas))
    if as_json:
        print_json(result.to_json())
    else:
        _print_result(here.name, sagas, result)
    if not result.ok:
        problem("not everything went as predicted")
        raise typer.Exit(PROBLEM_FOUND)


def _print_result(name: str, sagas: int, result: LoadResult) -> None:
    from saga.commands.console import Table, out, styled

    table = Table("outcome", name, title=f"{sagas} of {name}, seed {result.seed}")
    for outcome, count in result.to_json()["outcomes"].items():
        table.add_row(outcome, f"{count}")
    out().print(table)
    print_report(result.report)
    if not result.unexpected:
        out().print("every one ended as the load predicts")
    for line in result.unexpected:
        out().print(styled(("unexpected:", "red"), f" {line}"))


async def with_system(
    work: Callable[[Deployment], Coroutine[Any, Any, T]],
    data_dir: Path,
    database: Database,
    replicas: int,
) -> T:
    """The result of `work` on the system that runs on the folder, or else on one of its own, which
    is started for it and ended."""
    running = await _running(data_dir)
    if running is not None:
        remark(f"using the system that runs on {data_dir}")
        return await work(running)
    async with _own_system(data_dir, database, replicas) as system:
        return await _watched(system, work(system.deployment))


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

    from saga.local import SystemFault

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
    from saga.local.folder import remove_folder
    from saga.local.system import System

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
