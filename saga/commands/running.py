"""`saga up`, `saga address`, `saga status`, `saga reconcile`: a system that runs."""

from __future__ import annotations

import os
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands.hiding import hide
from saga.commands.output import (
    DATA_DIR,
    LISTED_MAX,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    OwnDatabase,
    Replicas,
    Stopped,
    one_replica_per_file,
    print_json,
    remark,
    run,
    stoppable,
)
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from saga.deployment import Deployment
    from saga.local.system import Database
    from saga.reconcile import Report
    from saga.status import SystemStatus

    Show = Callable[[Path, Deployment, Mapping[str, str]], None]

GRACE_MAX_SECONDS = 86_400.0


def up(
    data_dir: DataDir = DATA_DIR,
    database: OwnDatabase = "sqlite",
    replicas: Replicas = 1,
    observe: Annotated[
        bool, typer.Option("--observe", help="Run Prometheus as well, where it is installed.")
    ] = False,
    console: Annotated[
        bool, typer.Option("--console/--no-console", help="Show the system in a browser as well.")
    ] = True,
    write: Annotated[
        bool, typer.Option("--write", help="Let the console change things: replay, discard.")
    ] = False,
    tls: Annotated[
        bool,
        typer.Option(
            "--tls", help="Serve HTTPS, by a certificate for this machine if none is given."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Run everything on this machine until Ctrl-C.

    Starts a private RabbitMQ node (or, with `AMQP_URL` set, uses that broker) and every service,
    and brings back what ends by itself, less and less often if it keeps ending. Data stays in the
    data folder for the next start. `saga console` runs beside it, and shows it in a browser.
    With `--observe`, Prometheus collects metrics of all that, with the alerts of `monitoring/`.
    With `--tls`, or `HTTP_CERT_FILE`, all of it is asked at https://; `saga.json` tells commands
    whom to trust.

    Examples:

    * `saga up`
    * `saga up --data-dir /var/tmp/trips`
    * `saga up --database postgresql --replicas 2`
    * `saga up --observe`
    * `saga up --tls`
    * `AMQP_URL=amqp://user:password@broker:5672/saga saga up`
    """
    one_replica_per_file(database, replicas)
    show = _print_addresses_as_json if as_json else _print_addresses
    if tls and not os.environ.get("HTTP_CERT_FILE"):
        from saga.local.certificates import local_certificate

        os.environ |= local_certificate(data_dir).environment  # As if they had been given.
    try:
        run(_up(data_dir, database, replicas, observe, console, write, show))
    except Stopped as stopped:
        remark(f"stopped by {stopped}")


async def _up(
    folder: Path,
    database: Database,
    replicas: int,
    observe: bool,
    console: bool,
    write: bool,
    show: Show,
) -> None:
    import contextlib

    from saga.local import SystemFault
    from saga.local.console import ConsoleError, ConsoleProcess
    from saga.local.observe import BROKER_PLUGIN, Observatory
    from saga.local.system import System
    from saga.runtime.tasks import side_by_side

    system = System(
        folder,
        amqp_url=os.environ.get("AMQP_URL"),
        database=database,
        replicas=replicas,
        broker_plugins=[BROKER_PLUGIN] if observe else [],
        report=remark,
    )
    async with system, contextlib.AsyncExitStack() as stack:
        urls: dict[str, str] = {}
        beside: list[ConsoleProcess | Observatory] = []
        if console:
            process = ConsoleProcess(system.folder, write=write, report=remark)
            try:
                beside.append(await stack.enter_async_context(process))
                urls["console"] = process.url
            except (ConsoleError, SystemFault, OSError) as error:
                remark(f"{error}; the system runs without it")
        if observe:
            observatory = Observatory(system, report=remark)
            beside.append(await stack.enter_async_context(observatory))
            urls |= observatory.urls
        show(system.folder, system.deployment, urls)
        await side_by_side(system.watch(), *(one.watch() for one in beside))


def _print_addresses(folder: Path, deployment: Deployment, more: Mapping[str, str]) -> None:
    from saga.commands.console import Table, out
    from saga.runtime.urls import printable

    table = Table("", "", title="The saga runs; Ctrl-C ends it", show_header=False)
    for name, url in more.items():
        table.add_row(name, url)
    for name, urls in deployment.http_urls.items():
        for url in urls:
            table.add_row(f"{name} service", f"{url}/docs")
    table.add_row("RabbitMQ", printable(deployment.amqp_url))
    table.add_row("data folder", str(folder))
    out().print(table)


def _print_addresses_as_json(folder: Path, deployment: Deployment, more: Mapping[str, str]) -> None:
    from saga.runtime.urls import printable

    print_json(
        {
            "http_urls": deployment.http_urls,
            "amqp_url": printable(deployment.amqp_url),
            **{f"{name}_url": url for name, url in more.items()},
            "data_dir": str(folder),
        }
    )


class AddressOf(StrEnum):
    """What an address may be of."""

    HTTP = "http"
    DOCS = "docs"
    OPENAPI = "openapi"
    METRICS = "metrics"
    HEALTH = "health"


_PATHS: Final = {
    AddressOf.HTTP: "",
    AddressOf.DOCS: "/docs",
    AddressOf.OPENAPI: "/openapi.json",
    AddressOf.METRICS: "/metrics",
    AddressOf.HEALTH: "/readyz",
}
"""Keyed by what the address is of: its path."""


def address(
    service: Annotated[
        str, typer.Argument(help="A service, or a single replica such as `trip-2`.")
    ],
    of: Annotated[
        AddressOf, typer.Option(help="What of it: where it serves, or one of its own pages.")
    ] = AddressOf.HTTP,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Print where a service of a running system is asked over HTTP.

    Of several replicas, the first. Exit status 1 if the system has no such service.

    Examples:

    * `curl $(saga address booking)/stays`
    * `saga address booking --of metrics`
    """
    from saga.commands.console import write
    from saga.deployment import Deployment, DeploymentError

    deployment = Deployment.load(data_dir)
    replicas = {
        name if number == 1 else f"{name}-{number}": url
        for name, urls in deployment.http_urls.items()
        for number, url in enumerate(urls, start=1)
    }
    if service not in replicas:
        known = ", ".join(replicas) or "none"
        raise DeploymentError(
            f"the system in {data_dir} has no service {service!r} that is asked over HTTP; it has "
            f"{known}"
        )
    url = replicas[service].rstrip("/") + _PATHS[of]
    if as_json:
        print_json({"service": service, "of": of.value, "url": url})
    else:
        write(f"{url}\n")


def restart(
    services: Annotated[
        list[str], typer.Argument(help="Services, or single replicas such as `trip-2`.")
    ],
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Start services of a running `saga up` again, without the others noticing.

    Each of a service's replicas finishes what it has begun, ends, and is ready again before the
    next one's turn. For new code, a new certificate, or settings in files (`SECRETS_DIR`): the
    environment stays that of `saga up`, which has to be started again for other variables. In
    containers: `docker compose restart trip`.

    Examples:

    * `saga restart trip`
    * `saga restart trip-2 room --json`
    """
    from saga.local import restart as restarting

    with stoppable():
        replicas = run(restarting.restart(data_dir, services, report=remark))
    if as_json:
        print_json({"restarted": replicas})


def status(data_dir: DataDir = DATA_DIR, as_json: AsJson = False) -> None:
    """Show queues, dead letters, outboxes and sagas of a running system.

    Exit status 1 when an operator should look: dead letters, overdue sagas, a queue without
    consumers, a service that is not ready or keeps ending, a request to forget
    that waits.

    Examples:

    * `saga status`
    * `saga status --json | jq .problems`
    """
    from saga import status as checks
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.local.supervision import Supervision
    from saga.runtime.messaging.connection import BrokerError

    deployment = Deployment.load(data_dir)
    try:
        with stoppable():
            supervision = Supervision.load(data_dir)
            found = run(checks.status(deployment, choreography(), supervision, folder=data_dir))
    except BrokerError:
        if lack := _lack_of_room(data_dir):  # That may be why.
            remark(lack)
        raise
    if as_json:
        print_json(found.to_json())
    else:
        _print_status(found)
    if found.problems:
        raise typer.Exit(PROBLEM_FOUND)


def _lack_of_room(data_dir: Path) -> str:
    """What the disk of the data folder lacks; empty if it has room."""
    from saga.runtime.disk import INODES_MIN, lack_of_room
    from saga.runtime.settings import Settings, load

    return lack_of_room(data_dir, load(Settings).disk_free_min_bytes, INODES_MIN)


def _print_status(found: SystemStatus) -> None:
    from saga.commands.console import Table, out, styled

    console = out()
    services = Table("service", "state", "unpublished events", "dead letters")
    for name, said in found.services.items():
        services.add_row(
            name, said, f"{found.outboxes.get(name, 0)}", f"{found.dead_letters.get(name, 0)}"
        )
    queues = Table("queue", "waiting", "consumers")
    for name, queue in found.queues.items():
        queues.add_row(name, f"{queue.messages}", f"{queue.consumers}")
    for name, waiting in found.waits.items():
        queues.add_row(name, f"{waiting}", "")
    console.print(services)
    console.print(queues)
    for table, dues in found.dues_by_name.items():
        console.print(f"{table}: {dues.pending} pending, {dues.overdue} overdue")
    for line in found.problems:
        console.print(styled(("problem:", "red"), f" {line}"))
    if not found.problems:
        console.print("nothing is wrong")


def reconcile(
    data_dir: DataDir = DATA_DIR,
    grace: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=GRACE_MAX_SECONDS,
            help="Judge only sagas that have been still for so many seconds.",
        ),
    ] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Check the books: states, outsides and messages against each other.

    Exit status 1 when something does not add up. Changes nothing in the system. What was found is
    kept in the data folder as `books.json`, where the console shows it.

    Examples:

    * `saga reconcile`
    * `saga reconcile --grace 0 --json` (nothing is being ordered)
    """
    from saga import reconcile as books
    from saga.deployment import Deployment
    from saga.discovery import saga
    from saga.reconcile.saved import SavedReport
    from saga.runtime.kernel.tables import utc_now

    deployment = Deployment.load(data_dir)
    began_at = utc_now()
    with stoppable():
        report = run(books.reconcile(deployment, grace_seconds=grace))
    said = SavedReport.of(
        saga(),
        report,
        command=f"saga reconcile --grace {grace:g}",
        began_at=began_at,
        took=utc_now() - began_at,
        grace_seconds=grace,
    )
    try:
        said.save(data_dir)
    except OSError as error:
        remark(f"the console will not show this: cannot write {error.filename}: {error.strerror}")
    report = _discreet(deployment, report)
    if as_json:
        print_json(report_as_json(report))
    else:
        print_report(report)
    if not report.ok:
        raise typer.Exit(PROBLEM_FOUND)


def _discreet(deployment: Deployment, report: Report) -> Report:
    """The report, once what is printed hides whom it names. Where the history does not tell who
    that is, what its findings quote is left out."""
    from saga.commands.discretion import Discretion
    from saga.discovery import choreography
    from saga.dlq.quotations import masked_error
    from saga.errors import Explained

    discretion = Discretion(deployment, choreography())
    subjects = {violation.subject for violation in report.violations if violation.subject}
    if discretion.shows_all or not subjects:
        return report
    try:
        with stoppable():
            named = run(discretion.named_about(deployment, subjects))
    except Explained:
        found = (replace(one, detail=masked_error(one.detail)) for one in report.violations)
        return replace(report, violations=(*found,))
    hide(named)
    return report


def report_as_json(report: Report) -> dict[str, Any]:
    """A reconciliation as a JSON document."""
    return {
        "ok": report.ok,
        "checked": dict(report.checked),
        "violations": [
            {"rule": v.rule, "subject": v.subject, "detail": v.detail} for v in report.violations
        ],
        "dead_letters": dict(report.dead_letters),
        **{name: list(subjects) for name, subjects in report.for_people.items()},
        "not_covered": list(report.not_covered),
        "unread": list(report.unread),
    }


def print_report(report: Report) -> None:
    """A reconciliation as a table of violations, and what was checked."""
    from saga.commands.console import Table, out, styled

    console = out()
    if report.violations:
        table = Table("rule", "subject", "what is wrong")
        for violation in report.violations:
            table.add_row(violation.rule, violation.subject, violation.detail)
        console.print(table)
    checked = ", ".join(f"{count} {what}" for what, count in report.checked.items())
    console.print(f"checked: {checked}")
    if dead := sum(report.dead_letters.values()):
        console.print(f"dead letters: {dead}")
    for name, subjects in report.for_people.items():
        if subjects:
            more = " ..." if len(subjects) > LISTED_MAX else ""
            console.print(
                f"{name.replace('_', ' ')}, for an operator to decide on: {len(subjects)}, about "
                f"{', '.join(subjects[:LISTED_MAX])}{more}"
            )
    for name, count in report.checked.items():
        whole = name.removesuffix("_at_rest")
        if whole != name and (moving := report.checked[whole] - count):
            console.print(
                f"not judged yet: how {moving} {whole} end, which have just changed or wait to be "
                f"tried again"
            )
    for line in report.unread:
        console.print(line)
    for line in report.not_covered:
        console.print(f"not covered: {line}")
    if report.ok:
        console.print(styled(("the books are right", "green")))
    elif report.violations:
        console.print(styled((f"{counted(len(report.violations), 'violation')}", "red")))
    else:
        console.print(styled(("nothing is wrong in what was looked at", "yellow")))
