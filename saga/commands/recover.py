"""`saga recover`: what is gone, rebuilt from what others know."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    moment_of,
    print_json,
    remark,
    run,
    stoppable,
)
from saga.commands.topology import (
    ManagementUrl,
    PasswordsFrom,
    QueuePartitions,
    StartDeadline,
    passwords_in,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from saga.choreography import Choreography
    from saga.deployment import Deployment
    from saga.recovery.broker import Recovered

app = typer.Typer(
    help="What is gone, rebuilt from what others know.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.callback()
def _recover() -> None:
    """Keeps `broker` a subcommand, though it is the only one."""


@app.command()
def broker(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            help="Look at nothing that is older: 2030-01-31T12:00:00Z. By default, all that "
            "services remember, which is `INBOX_DAYS`.",
            show_default=False,
        ),
    ] = None,
    management_url: ManagementUrl = None,
    passwords_from: PasswordsFrom = None,
    partitions: QueuePartitions = None,
    patience: StartDeadline = 60.0,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Make an empty broker what the lost one was: topology, users, messages, the history's stream.

    Whatever a participant has not dealt with goes back into its queues, under its old id; what
    waited for another try is tried at once. It is taken from the history, and from what services
    keep of what they published. Services may be at work. Stopped in the middle, it can be run
    again: nothing is done twice. Exit status 1 if events are known to be lost.

    Queues get the partitions that they had, by the note in the data folder that `saga up`,
    `saga topology apply` and `saga restore` make, or by `[tool.saga]` in the project; where neither
    tells, say how many.

    Examples:

    * `saga recover broker --dry-run`
    * `saga recover broker`
    * `saga recover broker --partitions 4`
    * `saga recover broker --management-url http://admin:secret@broker:15672`
    """
    from saga.commands.console import progress_bars
    from saga.deployment import Deployment
    from saga.discovery import choreography
    from saga.notes import known_partitions
    from saga.runtime.messaging.permissions import users_of

    earliest = moment_of(since, "--since")
    deployment, graph = Deployment.load(data_dir), choreography()
    passwords = passwords_in(passwords_from, users_of(graph))
    had = partitions or known_partitions(data_dir)
    with progress_bars(events=None, queues=None, stream=None) as bars, stoppable():
        recovered = run(
            _make_again(
                deployment,
                graph,
                earliest,
                management_url,
                passwords,
                had,
                patience,
                data_dir,
                dry_run,
                bars,
            )
        )
    if as_json:
        print_json(_as_json(recovered, dry_run))
    else:
        _print(recovered, dry_run)
    if not recovered.complete:
        raise typer.Exit(PROBLEM_FOUND)


async def _make_again(
    deployment: Deployment,
    graph: Choreography,
    since: datetime | None,
    management_url: str | None,
    passwords: dict[str, str],
    partitions: int | None,
    patience_seconds: float,
    folder: Path,
    dry_run: bool,
    bars: dict[str, Callable[[int], None]],
) -> Recovered:
    from functools import partial

    import yarl

    from saga.broker.setup import mend_topology, private_node, put_users, put_virtual_host
    from saga.notes import forget_owed, note_owed, note_partitions
    from saga.recovery.broker import recover
    from saga.runtime.messaging.permissions import users_of

    if not dry_run:
        known = {user: yarl.URL(url).password for user, url in deployment.amqp_urls.items()}
        passwords = {user: word for user, word in known.items() if word} | passwords
        users = users_of(graph)
        await put_virtual_host(deployment.amqp_url, management_url)
        put = await put_users(users, deployment.amqp_url, management_url, passwords, folder)
        if not put:
            remark("users and permissions were not looked at: that takes --management-url")
        elif lacking := [user.name for user in users if user.name not in passwords]:
            remark(f"no password was given for {', '.join(lacking)}: see --passwords-from")
        topology = await mend_topology(
            deployment.amqp_url,
            graph,
            private_node(folder, deployment),
            partitions_min=partitions or 1,
            patience_seconds=patience_seconds,
            before=partial(note_owed, folder),
            report=remark,
        )
        if partitions is not None or topology.partitions > 1:
            note_partitions(folder, topology.partitions)
    recovered = await recover(
        deployment,
        graph,
        since=since,
        partitions=partitions,
        dry_run=dry_run,
        looked_at=bars["events"],
        put_back=bars["queues"],
        filled=bars["stream"],
    )
    if not dry_run:
        forget_owed(folder)
    return recovered


def _as_json(recovered: Recovered, dry_run: bool) -> dict[str, Any]:
    from saga.discovery import saga

    survey = recovered.survey
    return {
        "ok": recovered.complete,
        "dry_run": dry_run,
        "since": survey.since.isoformat(),
        "events": survey.events,
        "unread": list(saga().elsewhere()),
        "put_back": [
            {"participant": participant, "type": type_, "messages": count}
            for (participant, type_), count in sorted(recovered.put_back.items())
        ],
        "resting": recovered.resting,
        "partitions": recovered.partitions,
        "stream": {"filled": recovered.filled, "there": recovered.in_stream},
        "refused": survey.refused,
        "too_old": [
            {"participant": one.participant, "id": one.key.id, "type": one.type}
            for one in survey.too_old
        ],
        "lost": [
            {
                "participant": one.participant,
                "subject": one.subject,
                "first": one.first,
                "last": one.last,
            }
            for one in survey.unknown
        ],
    }


def _print(recovered: Recovered, dry_run: bool) -> None:
    from saga.commands.console import Table, out
    from saga.discovery import saga

    if recovered.put_back:
        table = Table("participant", "type", "to be put back" if dry_run else "put back")
        for (participant, type_), count in sorted(recovered.put_back.items()):
            table.add_row(participant, type_, str(count))
        out().print(table)
    if dry_run:
        remark("nothing was changed; this is what would be done:")
    for line in (*recovered.remarks(), *saga().elsewhere()):
        remark(line)
