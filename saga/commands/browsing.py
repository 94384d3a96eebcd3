"""`saga console`: the system in a browser."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from saga.commands.output import DATA_DIR, DataDir, Stopped, remark, run
from saga.commands.topology import ManagementUrl

if TYPE_CHECKING:
    from saga.console.settings import ConsoleSettings
    from saga.console.watched import Watched

_NICENESS: Final = 5
"""How much it gives way to what else runs on its machine: the services above all."""


def console(
    data_dir: DataDir = DATA_DIR,
    host: Annotated[
        str | None, typer.Option(help="The address to serve on.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65_535, help="0 picks a free one.", show_default="8600"),
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Let it change things: replay, discard, bring forward.")
    ] = False,
    bodies: Annotated[
        bool,
        typer.Option("--bodies", help="Show what is in messages, not only how they are made."),
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(help="The path under which a proxy has it, /saga say.", show_default=False),
    ] = None,
    management_url: ManagementUrl = None,
) -> None:
    """Show a running system in a browser, until Ctrl-C: the map with what flows on it, sagas, dead
    letters, what is stuck or due, the books and the proofs.

    It shows, and changes nothing, unless it is started with `--write`. The system may be stopped
    and started again meanwhile. On an address that others reach, people log in: at the issuer in
    `AUTH_ISSUER`, or by an API key.

    Examples:

    * `saga console`
    * `saga console --port 0 --write`
    * `saga console --prefix /saga` (behind a proxy)
    """
    from saga.console.settings import ConsoleSettings
    from saga.console.watched import Watched
    from saga.deployment import Deployment
    from saga.discovery import saga
    from saga.runtime.settings import load
    from saga.runtime.telemetry import LogFormat, configure_logging

    given = {
        "data_dir": data_dir,
        "http_host": host,
        "http_port": port,
        "console_prefix": prefix,
        "console_write": write or None,
        "console_bodies": bodies or None,
        "management_url": management_url,
    }
    settings = load(ConsoleSettings, **{k: v for k, v in given.items() if v is not None})
    watched = Watched(data_dir, saga())
    Deployment.load(data_dir)  # Later it may be stopped; by now, another one may have been named.
    configure_logging("console", "WARNING", LogFormat.AUTO)
    os.nice(_NICENESS)
    try:
        run(_serve(watched, settings))
    except Stopped as stopped:
        remark(f"stopped by {stopped}")


async def _serve(watched: Watched, settings: ConsoleSettings) -> NoReturn:
    import asyncio

    from saga.auth.access import is_open
    from saga.console.serve import serving
    from saga.runtime.garbage import start_up_skipped

    async with serving(watched, settings) as url:
        with start_up_skipped():
            remark(f"the console is at {url}")
            if is_open(settings):
                why = f": {settings.auth_off_reason}" if settings.auth_off_reason else ""
                remark(f"there is no login: AUTH is off on {settings.http_host}{why}")
            await asyncio.Event().wait()
    raise AssertionError("nothing ends the wait but a signal")
