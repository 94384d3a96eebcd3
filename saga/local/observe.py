"""Prometheus beside a system on this machine, and `saga exporter` with it: `saga up --observe`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import httpx
import yarl

from saga.broker.setup import virtual_host_of
from saga.discovery import saga
from saga.errors import Explained
from saga.exporter import Exporter
from saga.generate.monitoring import DATA, EXPORTER, OURS, prometheus_config
from saga.http import client
from saga.local.beside import BesideProgram
from saga.local.server import LOOPBACK, free_ports
from saga.local.system import System
from saga.runtime.files import write_whole
from saga.runtime.settings import ClientTlsSettings, load

BROKER_PLUGIN: Final = "rabbitmq_prometheus"
BROKER_PORT: Final = 15692
"""Where that plugin listens on a broker that is not ours."""
SCRAPE_SECONDS: Final = 5.0
RECONCILE_SECONDS: Final = 60.0
RETENTION: Final = "7d"
_WATCH_SECONDS: Final = 1.0

Targets = Mapping[str, Sequence[str]]
"""Keyed by job of `monitoring/prometheus.yml`, the addresses to scrape."""


class ObserveError(Explained):
    """Prometheus cannot be started. One line that names the way out."""


def configuration(
    targets: Targets,
    scrape_seconds: float,
    saga_name: str,
    virtual_host: str = "/",
    scheme: str = "http",
) -> dict[str, Any]:
    """`monitoring/prometheus.yml` for these addresses; `scheme` is how our own are asked. Raises
    `SettingsError`."""
    found = prometheus_config(saga_name)
    interval = f"{round(scrape_seconds * 1000)}ms"
    found["global"] |= {"scrape_interval": interval, "evaluation_interval": interval}
    found["rule_files"] = [str(DATA / pattern) for pattern in found["rule_files"]]
    authority = load(ClientTlsSettings).http_ca_file
    for job in found["scrape_configs"]:
        del job["dns_sd_configs"]
        if "vhost" in (parameters := job.get("params", {})):
            parameters["vhost"] = [virtual_host]
        if scheme == "https" and job["job_name"] in OURS:
            job["scheme"] = scheme
            if authority is not None:
                job["tls_config"] = {"ca_file": str(authority.absolute())}
        job["static_configs"] = [{"targets": list(targets.get(job["job_name"], ()))}]
    return found


class Prometheus:
    """A private Prometheus with its data in `folder`, owned by this process and gone when it is."""

    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._path = program
        self._port = 0
        self._program = BesideProgram("Prometheus", folder / "prometheus.log", ObserveError)

    @property
    def url(self) -> str:
        """Where it answers, once it was started."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def running(self) -> bool:
        return self._program.running

    @property
    def log_path(self) -> Path:
        return self._program.log_path

    async def start(self, configured: Mapping[str, Any]) -> None:
        """Start it; return when it is ready. Raises `ObserveError`, `OSError` or `SystemFault`."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / "prometheus.json"  # JSON is YAML
        write_whole(path, json.dumps(configured, indent=2))
        self._port = free_ports(["prometheus"])["prometheus"]
        command = [
            self._path,
            f"--config.file={path}",
            f"--storage.tsdb.path={self._folder / 'data'}",
            f"--storage.tsdb.retention.time={RETENTION}",
            f"--web.listen-address={LOOPBACK}:{self._port}",
            "--enable-feature=exemplar-storage",
            "--log.level=warn",
        ]
        await self._program.start(command, url=self.url, path="/-/ready")

    def stop(self) -> None:
        """End it; no process is left. Blocks; may be called again."""
        self._program.stop()


class Observatory:
    """The exporter of a running system, and Prometheus where it is installed.

    async with system, Observatory(system) as observatory:
        observatory.prometheus_url
    """

    def __init__(
        self,
        system: System,
        *,
        scrape_seconds: float = SCRAPE_SECONDS,
        reconcile_seconds: float = RECONCILE_SECONDS,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """Describe it; `report` is told, a line at a time, what happens."""
        self._system = system
        self._scrape_seconds = scrape_seconds
        self._reconcile_seconds = reconcile_seconds
        self._report = report
        self._prometheus: Prometheus | None = None
        self._stack = contextlib.AsyncExitStack()
        self._exporter: Exporter | None = None

    async def __aenter__(self) -> Self:
        """Raises `ObserveError`, `OSError` or `SystemFault`, and leaves nothing running then."""
        async with contextlib.AsyncExitStack() as stack:
            port = free_ports(["exporter"])["exporter"]
            exporter = Exporter(self._system.deployment, host=LOOPBACK, port=port)
            self._exporter = stack.enter_context(exporter)
            reconciling = asyncio.create_task(exporter.run(self._reconcile_seconds))
            stack.push_async_callback(_end, reconciling)
            program = shutil.which("prometheus")
            if program is None:
                self._report(
                    "Prometheus is not installed, so no metrics are collected; on Debian: "
                    "apt-get install prometheus"
                )
            else:
                prometheus = Prometheus(self._system.folder / "prometheus", program)
                stack.push_async_callback(asyncio.to_thread, prometheus.stop)
                targets = await self.targets()
                virtual_host = virtual_host_of(self._system.deployment.amqp_url)
                await prometheus.start(
                    configuration(
                        targets,
                        self._scrape_seconds,
                        saga().name,
                        virtual_host,
                        yarl.URL(exporter.url).scheme,
                    )
                )
                self._prometheus = prometheus
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    @property
    def prometheus_url(self) -> str | None:
        """None where Prometheus is not installed."""
        return self._prometheus.url if self._prometheus is not None else None

    @property
    def urls(self) -> dict[str, str]:
        """The addresses, by name."""
        found = {"exporter": self.exporter_url}
        return found | ({"prometheus": self.prometheus_url} if self.prometheus_url else {})

    @property
    def exporter_url(self) -> str:
        assert self._exporter is not None  # noqa: S101 - entered
        return self._exporter.url

    async def targets(self) -> Targets:
        """What is to be scraped: each replica by itself."""
        urls = [url for urls in self._system.deployment.http_urls.values() for url in urls]
        broker = await self._broker()
        return {
            "saga": [address_of(url) for url in urls],
            EXPORTER: [address_of(self.exporter_url)],
            "rabbitmq": broker,
            "rabbitmq-queues": broker,
        }

    async def watch(self) -> None:
        """Return when Prometheus has ended, having said so; never where there is none."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._prometheus is not None and not self._prometheus.running:
                self._report(f"Prometheus has ended; its log: {self._prometheus.log_path}")
                return

    async def _broker(self) -> list[str]:
        node = self._system.node
        if node is not None:
            return [f"{LOOPBACK}:{node.port(BROKER_PLUGIN)}"]
        broker_url = yarl.URL(self._system.deployment.amqp_url)
        address = address_of(str(broker_url.with_port(BROKER_PORT)))
        try:
            async with client(f"http://{address}", 2.0, with_key=False) as broker:
                (await broker.get("/metrics")).raise_for_status()
        except httpx.HTTPError as error:
            self._report(
                f"no metrics of RabbitMQ at {address} ({str(error) or type(error).__name__}); "
                f"enable its plugin {BROKER_PLUGIN} there"
            )
            return []
        return [address]


def address_of(url: str) -> str:
    """The host, an IPv6 address in brackets, and the port."""
    found = yarl.URL(url)
    return f"{found.host_subcomponent}:{found.port}"


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
