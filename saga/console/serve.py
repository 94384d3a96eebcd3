"""A console that serves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from saga.console.access import access_of
from saga.console.app import create
from saga.console.live import LISTENERS_MAX, Ticker
from saga.console.lookout import SystemWatcher
from saga.console.settings import ConsoleSettings
from saga.console.site import Site
from saga.console.watched import Watched
from saga.runtime.server import Server, listen, url_of
from saga.runtime.tls import context_of


@contextlib.asynccontextmanager
async def serving(watched: Watched, settings: ConsoleSettings) -> AsyncIterator[str]:
    """Serve the console until the end of the block; gives its address. Raises `OSError` for a port
    that is in use, and `SettingsError` where no user could log in."""
    access = access_of(settings)
    site = Site(
        watched,
        Ticker(min(LISTENERS_MAX, settings.http_connections_max // 2)),
        write=settings.console_write,
        prefix=settings.console_prefix,
        bodies=settings.console_bodies,
        trace_url=settings.console_trace_url,
        lookout=SystemWatcher(watched, settings.management_url),
        access=access,
        audit_folder=settings.audit_folder,
    )
    app = create(site, settings)
    with listen(settings.http_host, settings.http_port, way_out="--port") as listener:
        server = Server(
            app,
            connections_max=settings.http_connections_max,
            headers_max_bytes=settings.http_headers_max_bytes,
            tls=context_of(settings),
        )
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield f"{url_of(listener, settings.http_scheme)}{site.prefix}/"
        finally:
            await site.ticker.close()
            server.should_exit = True
            await task
            await site.letters.close()
            if access is not None and access.provider is not None:
                await access.provider.close()
