"""Rules, dashboards and runbooks: in step with each other, and fit to be read at three at night."""

from __future__ import annotations

import functools
import json
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.dashboards.__main__ import FOLDER, dashboards
from monitoring.dashboards.panels import HEIGHT
from saga.discovery import choreography
from saga.generate.monitoring import DATA, monitoring_files, prometheus_config
from saga.local.observe import configuration

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "monitoring"
RULES = sorted((MONITORING / "rules").glob("*.yml"))
RULE_TESTS = sorted((MONITORING / "rules" / "tests").glob("*.yml"))
DASHBOARDS = sorted(FOLDER.glob("*.json"))
RUNBOOKS = ROOT / "docs" / "runbooks"
WIDTH_MAX = 24


@functools.cache
def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    return [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"]]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: str) -> str:
    program = shutil.which("promtool")
    assert program is not None, "promtool is not installed: run `make setup`"
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# --- rules ----------------------------------------------------------------------------------------


def test_prometheus_takes_the_configuration_and_the_rules() -> None:
    promtool("check", "config", "monitoring/prometheus.yml")


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_is_tested_to_fire_and_to_resolve(alert: str) -> None:
    by_test = [
        [
            bool(case.get("exp_alerts"))
            for case in test["alert_rule_test"]
            if case["alertname"] == alert
        ]
        for path in RULE_TESTS
        for test in load(path)["tests"]
    ]
    assert any(fires[:1] == [False] and True in fires and not fires[-1] for fires in by_test), (
        f"there is no test in which {alert} is quiet, fires, and is quiet again"
    )


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_an_alert_says_who_has_to_come_and_where_to_read_on(alert: str) -> None:
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/runbooks/{alert}.md"


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_a_runbook_says_what_it_means_how_to_look_and_how_to_mend(alert: str) -> None:
    text = (RUNBOOKS / f"{alert}.md").read_text()
    assert text.startswith(f"# {alert}\n")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "What it means",
        "How to diagnose it",
        "How to fix it",
    ]
    assert "```console" in text


def test_every_runbook_is_of_an_alert() -> None:
    assert {path.stem for path in RUNBOOKS.glob("*.md")} == {*ALERTS, "README"}


def test_every_service_is_scraped() -> None:
    jobs = {job["job_name"]: job for job in load(MONITORING / "prometheus.yml")["scrape_configs"]}
    (services,) = jobs["saga"]["dns_sd_configs"]

    assert set(services["names"]) == {service.name for service in choreography().services}


def test_the_configuration_on_this_machine_differs_only_in_addresses_and_intervals() -> None:
    written = prometheus_config("orders")
    targets = {"saga": ["127.0.0.1:1", "127.0.0.1:2"]}
    configured = configuration(targets, 0.5, "orders")

    assert configured["global"] == {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    jobs = configured["scrape_configs"]
    assert jobs[0].pop("static_configs") == [{"targets": ["127.0.0.1:1", "127.0.0.1:2"]}]
    for job in jobs[1:]:
        del job["static_configs"]
    for job in written["scrape_configs"]:
        del job["dns_sd_configs"]
    assert jobs == written["scrape_configs"]


def test_any_project_gets_what_is_the_same_for_all_and_its_own_targets(tmp_path: Path) -> None:
    files = monitoring_files(tmp_path, "moves", ["van", "move"])

    assert {f"docs/runbooks/{alert}.md" for alert in ALERTS} <= files.keys()
    for path in (*RULES, *MONITORING.glob("grafana/**/*.*")):
        assert files[path.relative_to(ROOT).as_posix()] == path.read_text()
    jobs = yaml.safe_load(files["monitoring/prometheus.yml"])["scrape_configs"]
    assert jobs[0]["dns_sd_configs"][0]["names"] == ["move", "van"]
    of_the_saga = [{"target_label": "saga", "replacement": "moves"}]
    labels = {job["job_name"]: job.get("relabel_configs") for job in jobs}
    assert labels == dict.fromkeys(("saga", "saga-exporter", "rabbitmq-queues"), of_the_saga) | {
        "rabbitmq": None  # It is not one process's alone.
    }


def test_what_a_project_has_changed_in_its_targets_stays(tmp_path: Path) -> None:
    there = tmp_path / "monitoring" / "prometheus.yml"
    there.parent.mkdir()
    written = monitoring_files(tmp_path, "moves", ["van"])["monitoring/prometheus.yml"]
    there.write_text(written.replace("scrape_interval: 15s", "scrape_interval: 5s"))

    again = monitoring_files(tmp_path, "moves", ["van", "crew"])["monitoring/prometheus.yml"]

    assert "scrape_interval: 5s" in again
    assert "names: [crew, van]" in again


def test_what_is_not_code_is_in_the_wheel() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packed = {
        file
        for pattern in setuptools["package-data"]["saga.generate.monitoring"]
        for file in DATA.glob(pattern)
        if file.is_file()
    }

    assert packed == {
        file for file in DATA.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")
    }


# --- dashboards -----------------------------------------------------------------------------------


def test_the_dashboard_files_are_what_the_code_makes() -> None:
    written = {path.name: path.read_text() for path in DASHBOARDS}

    assert written == dashboards(), "run `make generate`"


def panels() -> list[Any]:
    return [
        pytest.param(panel, id=f"{path.stem}: {panel['title']}")
        for path in DASHBOARDS
        for panel in json.loads(path.read_text())["panels"]
        if panel["type"] != "row"
    ]


@pytest.mark.parametrize("panel", panels())
def test_a_panel_has_a_unit_a_description_thresholds_and_a_word_for_nothing(
    panel: dict[str, Any],
) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert defaults["unit"]
    assert panel["description"].endswith((".", ";"))
    assert defaults["thresholds"]["steps"][0] == {
        "value": None,
        "color": defaults["thresholds"]["steps"][0]["color"],
    }
    assert defaults["noValue"]
    assert panel["targets"]
    assert panel["gridPos"]["h"] <= HEIGHT


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_fit_beside_each_other_and_none_is_called_like_another(path: Path) -> None:
    found = json.loads(path.read_text())
    cells: set[tuple[int, int]] = set()
    for panel in found["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= WIDTH_MAX
        covered = {
            (x, y)
            for x in range(position["x"], position["x"] + position["w"])
            for y in range(position["y"], position["y"] + position["h"])
        }
        assert not covered & cells, panel["title"]
        cells |= covered
    assert found["uid"] == path.stem
    assert {variable["name"] for variable in found["templating"]["list"]} >= {"metrics", "traces"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_leads_to_commands_and_runbooks_that_exist(path: Path) -> None:
    said = [panel.get("description") or "" for panel in json.loads(path.read_text())["panels"]]

    runbooks = {page for text in said for page in re.findall(r"docs/runbooks/\w+\.md", text)}
    assert runbooks
    assert all((ROOT / page).exists() for page in runbooks)
    assert any(re.search("`saga [a-z]+", text) for text in said) or path.stem == "saga-participants"


def test_exemplars_lead_to_the_trace_store_that_is_provisioned() -> None:
    (found,) = (MONITORING / "grafana" / "provisioning" / "datasources").glob("*.yml")
    sources = {source["uid"]: source for source in load(found)["datasources"]}
    (destination,) = sources["prometheus"]["jsonData"]["exemplarTraceIdDestinations"]

    assert destination["name"] == "trace_id"
    assert sources[destination["datasourceUid"]]["type"] == "tempo"
