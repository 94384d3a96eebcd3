"""A system under a mixed load, watched by a real Prometheus: whatever is asked for is there."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import promql_parser as promql
import pytest
import pytest_asyncio
import yaml
from prometheus_client import REGISTRY

from order_saga.demo import demo
from order_saga.orders import Shares, plan
from saga.discovery import choreography
from saga.http import client
from saga.local.node import find_rabbitmq
from saga.local.observe import BROKER_PLUGIN, Observatory
from saga.local.system import System
from tests.forked import spawn
from tests.polling import until

SEED = 20305
ORDERS = 150
SCRAPE_SECONDS = 1.0
RECONCILE_SECONDS = 2.0
RUN_SECONDS = 100.0
ROOT = Path(__file__).parents[2]
RUNBOOKS, MONITORING = ROOT / "docs" / "runbooks", ROOT / "monitoring"
TYPICAL = "MessagesUnroutable"
"""The runbook whose commands are run by default; those of all take a minute."""

ONLY_IN_A_FAULT = {
    "saga_event_publish_failures_total": "an event that the broker does not confirm",
    "saga_reactions_refused_total": "a bug in a reaction",
}
"""Metrics without any series until what they count has happened; nothing here makes it happen."""
ENGINES = {family.name for family in REGISTRY.collect()}
"""What the engine may export, whether or not there is anything of it."""
COMPARISONS = (">", "<", ">=", "<=", "==", "!=")

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """A system that has taken a mixed load, in which the payment provider was down for a while."""
    folder = tmp_path_factory.mktemp("observe")
    async with System(
        folder, disposable=True, broker_plugins=[BROKER_PLUGIN], spawn=spawn
    ) as system:
        watching = Observatory(
            system, scrape_seconds=SCRAPE_SECONDS, reconcile_seconds=RECONCILE_SECONDS
        )
        async with watching as observatory:
            assert observatory.prometheus_url is not None
            (folder / "prometheus.url").write_text(observatory.prometheus_url)
            load = plan(ORDERS, SEED, Shares(high=0.3, cancelled=0.05, malformed=0.02))
            await demo(system.deployment, choreography(), load, seed=SEED, outage=True)
            async with prometheus(system) as api:
                # The last of what the load led to, and a scrape after it.
                await until(lambda: has_data(api, "saga_reconcile_timestamp_seconds"))
                await until(lambda: has_data(api, "saga_dead_letters > 0"))
                await until(lambda: has_data(api, "saga:pending:max == 0"))
                await until(lambda: has_data(api, "sum(increase(saga_ended_total[1m])) > 0"))
            yield system


def prometheus(system: System) -> httpx.AsyncClient:
    return client((system.folder / "prometheus.url").read_text(), RUN_SECONDS)


async def query(api: httpx.AsyncClient, expression: str) -> list[Any]:
    response = await api.get("/api/v1/query", params={"query": expression})
    assert response.status_code == httpx.codes.OK, f"{expression}: {response.text}"
    found = response.json()["data"]
    return found["result"] if found["resultType"] == "vector" else [found["result"]]


async def has_data(api: httpx.AsyncClient, expression: str) -> bool:
    return bool(await query(api, expression))


# --- what is asked for ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Question:
    """An expression, where it stands, and the labels that its answers' names are made of."""

    where: str
    expression: str
    legend: frozenset[str] = frozenset()


def records() -> Iterator[Question]:
    for rule in rules():
        if "record" in rule:
            yield Question(rule["record"], rule["expr"])


def alerts() -> Iterator[Question]:
    """An alert is data only in a fault, so its parts are asked for, without the thresholds."""
    for rule in rules():
        if "alert" in rule:
            for part in without_thresholds(promql.parse(rule["expr"])):
                yield Question(rule["alert"], str(part))


def panels() -> Iterator[Question]:
    for path in sorted((MONITORING / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", []):
                legend = frozenset(re.findall(r"{{(\w+)}}", target["legendFormat"]))
                expression = with_variables(target["expr"])
                yield Question(f"{path.stem}: {panel['title']}", expression, legend)


def rules() -> Iterator[dict[str, Any]]:
    for path in sorted((MONITORING / "rules").glob("*.yml")):
        for group in yaml.safe_load(path.read_text())["groups"]:
            yield from group["rules"]


def with_variables(expression: str) -> str:
    """As Grafana would send it, with all there is chosen, and a range that the load fits in."""
    values = {"__rate_interval": "5m", "__range": "10m"}
    values |= dict.fromkeys(("saga", "participant", "vhost"), ".*")
    for name, value in values.items():
        expression = re.sub(rf"\${name}\b", value, expression)
    assert "$" not in expression, expression
    return expression


def without_thresholds(expression: promql.Expr) -> Iterator[promql.Expr]:
    """The parts of an alert that have values whether or not it fires."""
    if isinstance(expression, promql.ParenExpr):
        yield from without_thresholds(expression.expr)
    elif isinstance(expression, promql.BinaryExpr) and str(expression.op) in ("and", "or"):
        yield from without_thresholds(expression.lhs)
        yield from without_thresholds(expression.rhs)
    elif isinstance(expression, promql.BinaryExpr) and str(expression.op) in COMPARISONS:
        yield from without_thresholds(expression.lhs)
    elif isinstance(expression, promql.Call) and expression.func.name == "absent":
        yield from without_thresholds(expression.args[0])
    else:
        yield expression


def selectors(expression: promql.Expr) -> list[promql.VectorSelector]:
    return [node for node in nodes(expression) if isinstance(node, promql.VectorSelector)]


def nodes(expression: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(expression, lambda node: found.append(node))
    return found


def added_labels(expression: promql.Expr) -> set[str]:
    """Those that `label_replace` adds."""
    return {
        node.args[1].val
        for node in nodes(expression)
        if isinstance(node, promql.Call) and node.func.name == "label_replace"
    }


QUESTIONS = [*records(), *alerts(), *panels()]


class Scraped:
    """The labels of every metric that Prometheus has."""

    def __init__(self, series: list[dict[str, str]]) -> None:
        self.by_name: defaultdict[str, set[frozenset[str]]] = defaultdict(set)
        for labels in series:
            self.by_name[labels["__name__"]].add(frozenset(labels) - {"__name__"})

    @classmethod
    async def of(cls, api: httpx.AsyncClient) -> Scraped:
        series = await api.get("/api/v1/series", params={"match[]": '{__name__=~".+"}'})
        return cls(series.json()["data"])

    def labels(self, expression: promql.Expr) -> set[str]:
        """What an answer to it may be grouped by."""
        found = [labels for s in selectors(expression) for labels in self.by_name[s.name or ""]]
        return set().union(*found) | added_labels(expression)


# --- tests ----------------------------------------------------------------------------------------


async def test_every_target_is_scraped(watched: System) -> None:
    async with prometheus(watched) as api:
        found = await query(api, "up")

    assert {series["value"][1] for series in found} == {"1"}
    jobs = yaml.safe_load((MONITORING / "prometheus.yml").read_text())["scrape_configs"]
    assert {series["metric"]["job"] for series in found} == {job["job_name"] for job in jobs}


async def test_every_expression_of_every_panel_and_rule_returns_data(watched: System) -> None:
    empty: list[str] = []
    async with prometheus(watched) as api:
        for question in QUESTIONS:
            found = await query(api, question.expression)
            if any(name in question.expression for name in ONLY_IN_A_FAULT):
                continue  # It may be empty, but was not refused.
            if not any(question.legend <= series["metric"].keys() for series in found):
                empty.append(f"{question.where}: {question.expression}")

    assert empty == []


async def test_no_panel_or_rule_asks_for_a_metric_or_a_label_that_nobody_emits(
    watched: System,
) -> None:
    async with prometheus(watched) as api:
        scraped = await Scraped.of(api)
    strange: list[str] = []
    for question in QUESTIONS:
        expression = promql.parse(question.expression)
        for selector in selectors(expression):
            assert selector.name is not None
            if selector.name in ONLY_IN_A_FAULT:
                assert selector.name.removesuffix("_total") in ENGINES
                continue
            labels = {matcher.name for matcher in selector.matchers.matchers}
            if not labels <= scraped.labels(selector) or not scraped.by_name[selector.name]:
                strange.append(f"{question.where}: {selector}")
        for node in nodes(expression):
            if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
                names = {s.name for s in selectors(node)}
                if not set(node.modifier.labels) <= scraped.labels(node) and not (
                    names & ONLY_IN_A_FAULT.keys()
                ):
                    strange.append(f"{question.where}: by {node.modifier.labels}")

    assert strange == []


async def test_the_rules_are_tested_with_series_as_they_are_scraped(watched: System) -> None:
    async with prometheus(watched) as api:
        scraped = await Scraped.of(api)
    strange: list[str] = []
    for path in sorted((MONITORING / "rules" / "tests").glob("*.yml")):
        for test in yaml.safe_load(path.read_text())["tests"]:
            for series in test["input_series"]:
                selector = promql.parse(series["series"])
                assert isinstance(selector, promql.VectorSelector)
                labels = frozenset(matcher.name for matcher in selector.matchers.matchers)
                if labels not in scraped.by_name[selector.name or ""]:
                    strange.append(series["series"])

    assert strange == []


async def test_the_latency_of_orders_has_exemplars_with_trace_ids(watched: System) -> None:
    now = time.time()
    span = {"start": now - 3_600, "end": now}
    async with prometheus(watched) as api:
        response = await api.get(
            "/api/v1/query_exemplars", params={"query": "saga_seconds_bucket", **span}
        )

    traces = [
        exemplar["labels"]["trace_id"]
        for series in response.json()["data"]
        for exemplar in series["exemplars"]
    ]
    assert traces
    assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in traces)


async def test_without_prometheus_one_is_told_how_to_get_it(
    watched: System, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    said: list[str] = []
    async with Observatory(watched, report=said.append) as observatory:
        async with client(observatory.exporter_url, RUN_SECONDS) as exporter:
            metrics = await exporter.get(observatory.exporter_url)
            assert "saga_dead_letters" in metrics.text
        assert observatory.urls == {"exporter": observatory.exporter_url}

    assert len(said) == 1
    assert "apt-get install prometheus" in said[0]


# --- runbooks -------------------------------------------------------------------------------------


def commands(page: Path) -> list[str]:
    """What it tells one to type."""
    blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE)]


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.stem, marks=[pytest.mark.long] * (page.stem != TYPICAL))
        for page in sorted(RUNBOOKS.glob("*.md"))
        if page.name != "README.md"
    ],
)
async def test_the_commands_of_a_runbook_work(page: Path, watched: System, tmp_path: Path) -> None:
    environment = on_call(watched, tmp_path)
    environment["LETTER"] = await asyncio.to_thread(oldest_letter, environment)
    failed: list[str] = []
    for command in commands(page):
        done = await asyncio.to_thread(shell, command, environment)
        # 1 is how `saga` says that it found what an operator has to look into.
        fine = done.returncode == 0 or (command.startswith("saga ") and done.returncode == 1)
        if not fine or "error:" in done.stderr:
            failed.append(f"{command}: {done.returncode} {done.stderr}")

    assert failed == []


def shell(command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", command],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def oldest_letter(environment: dict[str, str]) -> str:
    """Dead, or discarded by a runbook's command."""
    listed = shell("saga dlq list --state all --by letter --json", environment)
    return str(json.loads(listed.stdout)["list"][0]["letter"])


def on_call(system: System, folder: Path) -> dict[str, str]:
    """The environment of an operator who has set up what docs/runbooks/README.md says;
    `rabbitmqctl` is the system's node's."""
    assert system.node is not None
    node = json.loads((system.node.folder / "environment.json").read_text())
    settings = " ".join(shlex.quote(f"{name}={value}") for name, value in node.items())
    program = find_rabbitmq() / "sbin" / "rabbitmqctl"
    ctl = folder / "rabbitmqctl"
    ctl.write_text(f'#!/bin/sh\nexec env -i {settings} {program} "$@"\n')
    ctl.chmod(ctl.stat().st_mode | stat.S_IXUSR)
    return {
        "PATH": os.pathsep.join(
            [str(folder), str(Path(sys.executable).parent), os.environ["PATH"]]
        ),
        "HOME": str(folder),
        "DATA_DIR": str(system.folder),
        "PROMETHEUS": (system.folder / "prometheus.url").read_text(),
    }
