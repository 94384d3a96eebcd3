"""`saga topology`: what stands on the broker, and who may do what there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saga.choreography import PARTITIONS_MAX
from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    print_json,
    remark,
    run,
    stoppable,
)
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from saga.broker.drift import Deviation
    from saga.broker.setup import Drift
    from saga.choreography import Choreography
    from saga.deployment import Deployment
    from saga.runtime.messaging.permissions import User

app = typer.Typer(
    help="Exchanges, queues, bindings and users, as the participants' signatures ask for them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

AmqpUrl = Annotated[
    str | None,
    typer.Option(
        envvar="AMQP_URL",
        show_default=False,
        help="The broker, as a user who may configure: amqp://user:password@host:port/vhost; "
        "without it, the private one of the data folder.",
    ),
]
ManagementUrl = Annotated[
    str | None,
    typer.Option(
        envvar="MANAGEMENT_URL",
        show_default=False,
        help="The same broker's management API, as an administrator: "
        "http://user:password@host:15672; for users and permissions.",
    ),
]
PasswordsFrom = Annotated[
    str | None,
    typer.Option(
        show_default=False,
        help="The users' passwords: a file of lines SAGA_PASSWORD_TRIP=..., one for each user, or "
        "`env` for variables of these names.",
    ),
]

QueuePartitions = Annotated[
    int | None,
    typer.Option(
        "--partitions",
        envvar="QUEUE_PARTITIONS",
        min=1,
        max=PARTITIONS_MAX,
        show_default=False,
        help="Divide each queue that events are routed to into so many, by saga id; by default "
        "they keep the number they have, or had by the note in the data folder, or get the one "
        "that `[tool.saga]` in the project says. More at any time, never fewer. Services find them "
        "within seconds. Needs the broker's plugin rabbitmq_consistent_hash_exchange.",
    ),
]

StartDeadline = Annotated[
    float,
    typer.Option(
        "--patience",
        envvar="BROKER_PATIENCE_SECONDS",
        min=0.0,
        max=3600.0,
        help="How many seconds to wait for a broker that is out of reach, one that starts say.",
    ),
]


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="Where to write; standard output if left out.")
    ] = None,
    passwords_from: PasswordsFrom = None,
    virtual_host: Annotated[
        str, typer.Option(help="The one that the saga has on the broker, its users' names with it.")
    ] = "/",
    partitions: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=PARTITIONS_MAX,
            show_default=False,
            help="Divide each queue that events are routed to into so many, by saga id; by default "
            "as `[tool.saga]` in the project says, or not at all.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the topology, users and permissions as definitions that RabbitMQ imports at its start.

    Passwords go into it as salted hashes. Without them no user in the file can log in, and where a
    user exists already, importing it takes its password.

    Examples:

    * `saga topology export rabbitmq/definitions.json`
    * `saga topology export --passwords-from .env definitions.json`
    * `saga topology export --virtual-host moves moves.json`
    """
    from saga.commands.console import write
    from saga.deployment import write_secret
    from saga.discovery import choreography, declared_partitions
    from saga.runtime.files import write_public
    from saga.runtime.messaging.definitions import definitions, text
    from saga.runtime.messaging.permissions import users_of
    from saga.runtime.messaging.topology import topology_of

    graph = choreography()
    number = partitions or declared_partitions() or 1
    topology, users = topology_of(graph, number), users_of(graph)
    document = text(
        definitions(
            topology,
            users,
            passwords=passwords_in(passwords_from, users) or None,
            virtual_host=virtual_host,
        )
    )
    if file is None:
        write(document)  # is JSON in any case
        return
    if passwords_from is None:
        write_public(file, document)
    else:
        write_secret(file, document)
    if as_json:
        print_json(
            {
                "file": str(file),
                "exchanges": len(topology.exchanges),
                "queues": len(topology.queues),
                "bindings": len(topology.bindings),
                "users": len(users),
            }
        )
    else:
        remark(
            f"{file}: {counted(len(topology.queues), 'queue')}, "
            f"{counted(len(topology.bindings), 'binding')}, "
            f"{counted(len(users), 'user')}"
        )


@app.command()
def apply(
    amqp_url: AmqpUrl = None,
    management_url: ManagementUrl = None,
    passwords_from: PasswordsFrom = None,
    nodes: Annotated[
        int,
        typer.Option(
            envvar="BROKER_NODES",
            min=1,
            max=100,
            help="How many nodes the broker has: as many are waited for, since queues get replicas "
            "on those that run when they are made. Needs --management-url if there are several.",
        ),
    ] = 1,
    partitions: QueuePartitions = None,
    patience: StartDeadline = 0.0,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Declare the topology on a broker; what is there already stays as it is.

    With the management API's address also the virtual host, if it is missing, and the users and
    their permissions, which are set to what they should be. A user keeps the password it has unless
    one is given here. Several sagas share a broker by a virtual host each, `moves` for instance,
    where users are called `moves.history` and so on: they are all of the broker's.

    Examples:

    * `AMQP_URL=amqp://admin:secret@broker:5672/saga saga topology apply`
    * `saga topology apply --management-url http://admin:secret@broker:15672 --passwords-from .env`
    * `saga topology apply --partitions 4`
    """
    from saga.broker.setup import apply_topology, put_users, put_virtual_host, wait_for_nodes
    from saga.discovery import choreography
    from saga.local.folder import uses_broker
    from saga.notes import note_partitions
    from saga.runtime.messaging.permissions import users_of
    from saga.runtime.urls import printable

    graph = choreography()
    users = users_of(graph)
    if passwords_from is not None and management_url is None:
        raise typer.BadParameter(
            "users are created through the management API; name it with --management-url",
            param_hint="--passwords-from",
        )
    if nodes > 1 and management_url is None:
        raise typer.BadParameter(
            "nodes are counted through the management API; name it with --management-url",
            param_hint="--nodes",
        )
    passwords = passwords_in(passwords_from, users)
    private = None if amqp_url else _private(data_dir)
    url = private.amqp_url if private else _with_tls(amqp_url or "")
    with stoppable():
        if management_url is not None:
            run(wait_for_nodes(management_url, nodes, patience_seconds=patience))
        run(put_virtual_host(url, management_url))
        # First what services may read, then what there is to read.
        put = run(put_users(users, url, management_url, passwords, data_dir if private else None))
        of_folder = private is not None or uses_broker(data_dir, url)
        topology = run(
            apply_topology(
                url,
                graph,
                partitions=partitions,
                partitions_min=_partitions_known(None if private else url, data_dir) or 1,
                patience_seconds=patience,
            )
        )
        if of_folder:
            note_partitions(data_dir, topology.partitions)
    if as_json:
        print_json(
            {
                "broker": printable(url),
                "exchanges": len(topology.exchanges),
                "queues": len(topology.queues),
                "bindings": len(topology.bindings),
                "partitions": topology.partitions,
                "users": len(users) if put else 0,
            }
        )
    else:
        remark(
            f"{printable(url)} has {counted(len(topology.queues), 'queue')} and "
            f"{counted(len(topology.bindings), 'binding')} of the saga"
            + (f", and its {counted(len(users), 'user')}" if put else "")
            + (
                f"; {counted(topology.partitions, 'partition')} each"
                if topology.partitions > 1
                else ""
            )
        )


@app.command()
def diff(
    amqp_url: AmqpUrl = None,
    management_url: ManagementUrl = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Compare a broker with what the participants' signatures ask for. Changes nothing.

    The private broker of the data folder, or another through its management API. Where that is out
    of reach (only `AMQP_URL` is given), AMQP tells of queues and exchanges, not of bindings and
    users. Exit status 1 when something differs.

    Examples:

    * `saga topology diff`
    * `saga topology diff --management-url http://admin:secret@broker:15672 --json`
    """
    from saga.discovery import choreography

    found = compare(choreography(), amqp_url, management_url, data_dir)
    if as_json:
        print_json(
            {
                "ok": not found.differences,
                "broker": found.broker,
                "not_compared": list(found.not_compared),
                "differences": [
                    {"kind": d.kind, "name": d.name, "expected": d.expected, "found": d.found}
                    for d in found.differences
                ],
            }
        )
    else:
        _print_differences(found.differences)
        if found.not_compared:
            remark(f"not compared: {', '.join(found.not_compared)}; name the management API")
    if found.differences:
        raise typer.Exit(PROBLEM_FOUND)


def compare(
    graph: Choreography, amqp_url: str | None, management_url: str | None, data_dir: Path
) -> Drift:
    """How the broker that the options name differs from the choreography."""
    from saga.broker.setup import drift

    url = _with_tls(amqp_url) if amqp_url else None
    if url is None and management_url is None:
        _private(data_dir)
    known = _partitions_known(url or management_url, data_dir)
    with stoppable():
        return run(drift(graph, url, management_url, data_dir, partitions_min=known or 1))


def _partitions_known(url: str | None, data_dir: Path) -> int | None:
    """How many partitions the queues of a broker should have: by the note in the data folder, if it
    is the broker of that system, or by the project. Without a `url`, it is."""
    from saga.discovery import declared_partitions
    from saga.local.folder import uses_broker
    from saga.notes import known_partitions

    if url is None or uses_broker(data_dir, url):
        return known_partitions(data_dir)
    return declared_partitions()


def _print_differences(differences: Sequence[Deviation]) -> None:
    from saga.commands.console import Table, out

    if not differences:
        out().print("the broker is as it should be")
        return
    table = Table("what", "name", "expected", "found")
    for difference in differences:
        table.add_row(difference.kind, difference.name, difference.expected, difference.found)
    out().print(table)


def passwords_in(source: str | None, users: Sequence[User]) -> dict[str, str]:
    from saga.broker.passwords import PasswordError, read_passwords

    if source is None:
        return {}
    try:
        return read_passwords(source, [user.name for user in users])
    except PasswordError as error:
        raise typer.BadParameter(str(error), param_hint="--passwords-from") from error


def _with_tls(amqp_url: str) -> str:
    from saga.runtime.settings import TlsSettings, load

    return load(TlsSettings).applied_to(amqp_url)


def _private(data_dir: Path) -> Deployment:
    """The system of this folder, whose broker is meant where none is named."""
    from saga.deployment import Deployment, DeploymentError

    try:
        return Deployment.load(data_dir)
    except DeploymentError as error:
        raise typer.BadParameter(
            f"name a broker, or the data folder of a running system ({error})",
            param_hint="AMQP_URL",
        ) from error
