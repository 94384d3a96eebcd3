"""`saga exporter`: the operator's figures for Prometheus."""

from __future__ import annotations

from typing import Annotated

import typer

from saga.commands.output import DATA_DIR, DataDir, Stopped, remark, run

PORT = 9464
RECONCILE_MIN_SECONDS = 10.0


def exporter(
    data_dir: DataDir = DATA_DIR,
    host: Annotated[str, typer.Option(help="The address to serve on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 picks a free one.")] = PORT,
    reconcile_every: Annotated[
        float,
        typer.Option(
            min=RECONCILE_MIN_SECONDS, help="Seconds; each reconciliation reads the whole history."
        ),
    ] = 300.0,
) -> None:
    """Serve metrics of the dead letters in the store, and of the books, until Ctrl-C.

    Reads only. One per system is enough; `saga up --observe` has one.

    Examples:

    * `saga exporter`
    * `saga exporter --host 0.0.0.0 --reconcile-every 900`
    """
    from saga.deployment import Deployment

    deployment = Deployment.load(data_dir)
    from saga.exporter import Exporter
    from saga.runtime.settings import Settings, load
    from saga.runtime.telemetry import configure_logging

    settings = load(Settings)
    configure_logging("exporter", settings.log_level, settings.log_format)
    with Exporter(deployment, host=host, port=port) as serving:
        remark(f"serving on {serving.url}")
        try:
            run(serving.run(reconcile_every))
        except Stopped as stopped:
            remark(f"stopped by {stopped}")
