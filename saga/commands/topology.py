"""`saga topology`: what stands on the broker."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from saga.commands.output import AsJson, print_json, remark, run, stoppable

app = typer.Typer(
    help="Exchanges, queues and bindings, as the participants' signatures ask for them.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)


@app.command()
def export(
    file: Annotated[
        Path | None, typer.Argument(help="Where to write; standard output if left out.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the topology as a definitions file that RabbitMQ imports at its start.

    Example: `saga topology export rabbitmq/definitions.json`
    """
    from common.messaging.topology import definitions, topology_of
    from saga.discovery import choreography

    topology = topology_of(choreography())
    text = definitions(topology)
    if file is None:
        sys.stdout.write(text)  # is JSON in any case
        return
    file.write_text(text)
    if as_json:
        print_json(
            {
                "file": str(file),
                "exchanges": len(topology.exchanges),
                "queues": len(topology.queues),
                "bindings": len(topology.bindings),
            }
        )
    else:
        remark(f"{file}: {len(topology.queues)} queues, {len(topology.bindings)} bindings")


@app.command()
def apply(
    amqp_url: Annotated[
        str,
        typer.Option(
            envvar="AMQP_URL",
            show_default=False,
            help="The broker, as a user who may configure: amqp://user:password@host:port/vhost",
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Declare the topology on a broker. What is there already stays as it is.

    Example: `AMQP_URL=amqp://admin:secret@broker:5672/saga saga topology apply`
    """
    from common.messaging.connection import printable
    from common.messaging.topology import topology_of
    from saga.discovery import choreography
    from saga.system import apply_topology

    graph = choreography()
    with stoppable():
        run(apply_topology(amqp_url, graph))
    topology = topology_of(graph)
    if as_json:
        print_json(
            {
                "broker": printable(amqp_url),
                "exchanges": len(topology.exchanges),
                "queues": len(topology.queues),
                "bindings": len(topology.bindings),
            }
        )
    else:
        remark(
            f"{printable(amqp_url)} has {len(topology.queues)} queues and "
            f"{len(topology.bindings)} bindings of the saga"
        )
