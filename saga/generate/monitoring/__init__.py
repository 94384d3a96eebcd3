"""Prometheus and Grafana for any saga: dashboards, rules, alerts and runbooks, the same for all.

What they show is told apart by the label `saga`, which each target gets when it is scraped; so one
Prometheus may watch several sagas, on one broker or on several.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import yaml

from saga.bootstrap import ANY_SERVER, AUTHORITY, HTTP_PORT, MOUNTED
from saga.generate.marks import Marks, text_in

DATA: Final = Path(__file__).parent
FOLDER: Final = "monitoring"
"""Of a project: where its copies are."""
PROMETHEUS: Final = "prometheus.yml"
PROMETHEUS_TLS: Final = "prometheus.tls.yml"
EXPORTER: Final = "saga-exporter"
OURS: Final = ("saga", EXPORTER)
"""The jobs whose targets are processes of the engine."""
_AS_THEY_ARE: Final = (
    (FOLDER, "grafana/**/*.json"),
    (FOLDER, "grafana/**/*.yml"),
    (FOLDER, "rules/*.yml"),
    ("docs", "runbooks/*.md"),  # Where the alerts say that they are.
)
_SCRAPED: Final = Marks(
    "    # The services, and the saga that they belong to, by `make generate`.\n",
    "    # End of the services.\n",
)


def monitoring_files(root: Path, saga: str, services: Iterable[str]) -> dict[str, str]:
    """The text that each file should have, by its name below `root`. Of `prometheus.yml`, which is
    the project's own once it is there, only the services. Raises `GenerateError`."""
    files = {
        f"{folder}/{file.relative_to(DATA).as_posix()}": file.read_text(encoding="utf-8")
        for folder, pattern in _AS_THEY_ARE
        for file in DATA.glob(pattern)
    }
    here = root / FOLDER / PROMETHEUS
    there = here if here.exists() else DATA / PROMETHEUS
    text = _SCRAPED.replaced(here, text_in(there), _scraped(saga, services))
    files[f"{FOLDER}/{PROMETHEUS}"] = text
    files[f"{FOLDER}/{PROMETHEUS_TLS}"] = _over_tls(text)
    return files


def _over_tls(text: str) -> str:
    """The same configuration for services that speak HTTPS, by the certificates of
    `saga.bootstrap`."""
    secured = f"""\
    scheme: https
    tls_config:
      ca_file: {MOUNTED / AUTHORITY}
      # It asks each replica by its address, and certificates are for names.
      server_name: {ANY_SERVER}
"""
    for job in OURS:
        named = f"  - job_name: {job}\n"
        text = text.replace(named, named + secured)
    return f"# Written by `make generate`, of {PROMETHEUS}, for compose.tls.yaml.\n#\n{text}"


def prometheus_config(saga: str, services: Iterable[str] = ()) -> dict[str, Any]:
    """What Prometheus is to do for a saga in a deployment of containers."""
    file = DATA / PROMETHEUS
    text = _SCRAPED.replaced(file, file.read_text(encoding="utf-8"), _scraped(saga, services))
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def _scraped(saga: str, services: Iterable[str]) -> str:
    return f"""\
    dns_sd_configs:
      - type: A
        port: {HTTP_PORT}
        names: [{", ".join(sorted(services))}]
    relabel_configs: &of_the_saga
      - {{target_label: saga, replacement: {saga}}}
"""
