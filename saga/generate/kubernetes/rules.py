"""The engine's recording rules and alerts, for the Prometheus Operator."""

from __future__ import annotations

import textwrap

from saga.generate.monitoring import DATA


def prometheus_rule() -> str:
    """All groups of the rules' files, as they are there."""
    groups = "".join(
        _groups(file.read_text(encoding="utf-8")) for file in sorted(DATA.glob("rules/*.yml"))
    )
    return f"""\
# From monitoring/rules, which Prometheus without its operator reads.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: saga
spec:
  groups:
{textwrap.indent(groups, "  ")}"""


def _groups(text: str) -> str:
    return text.partition("\ngroups:\n")[2].rstrip() + "\n\n"
