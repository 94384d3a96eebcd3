"""A participant more: a package beside the others, and a saga that names it."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import yaml

from saga.discovery import choreography
from saga.generate.files import IN_PART
from saga.graph.flow import Flow
from saga.graph.listing import listing
from tests.typist import Typist

ROOT = Path(__file__).parents[2]

DOMAIN = '''\
"""What a customer may like, after what they bought."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga.choreography import Participant, State
from common.events import OrderConfirmed, OrderEvent
from saga.message import Decided, Event, Intent
from saga.retry import Retry


class RecommendationMade(OrderEvent):
    """The customer was told what goes with their order."""

    type: ClassVar[str] = "recommendation.made"
    publisher: ClassVar[str] = "recommendation"
    final: ClassVar[bool] = True

    sku: str


@dataclass(frozen=True, slots=True)
class Recommendation(State):
    """What was recommended after one order."""

    sku: str = ""

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case RecommendationMade():
                return replace(self, sku=message.sku)
            case _:
                return self


def recommend(event: OrderConfirmed, recommendation: Recommendation) -> RecommendationMade | None:
    if recommendation.sku:
        return None
    return RecommendationMade(order_id=event.order_id, sku="mug")


PARTICIPANT = Participant("recommendation", recommend, retry=Retry(max_calls=7))
'''


JOINED = """\
import order_saga
from recommendation_service.domain import PARTICIPANT

SAGA = order_saga.SAGA.with_(PARTICIPANT)
"""


class Project:
    """The project's generated files, in a folder with a service more."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        package = folder / "recommendation_service"
        package.mkdir()
        (package / "__init__.py").write_text("")
        (package / "domain.py").write_text(DOMAIN)
        (folder / "joined.py").write_text(JOINED)
        for name in IN_PART:
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, folder / name)

        path = f"{ROOT}{os.pathsep}{folder}"
        environment = {**os.environ, "PYTHONPATH": path, "SAGA": "joined:SAGA"}
        self.typist = Typist(folder, environment, imported=["order_saga"])

    def saga(self, *arguments: str, status: int = 0) -> str:
        """What the command prints."""
        done = self.typist.saga(*arguments)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr if status else done.stdout

    def close(self) -> None:
        self.typist.close()

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    def text(self, name: str) -> str:
        return (self.folder / name).read_text()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    with closing(Project(tmp_path_factory.mktemp("project"))) as project:
        project.saga("generate")
        yield project


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Project]:
    """One that the test may change."""
    with closing(Project(tmp_path)) as project:
        yield project


def test_the_map_shows_it_and_nothing_else_is_different(project: Project) -> None:
    now = json.loads(project.saga("map", "--json"))
    before = json.loads(json.dumps(listing(Flow(choreography()))))

    added = [edge for edge in now["edges"] if edge not in before["edges"]]
    assert [(edge["from"], edge["to"], edge["path"]) for edge in added] == [
        ("event:order.confirmed", "reaction:recommendation.recommend", "happy"),
        ("reaction:recommendation.recommend", "event:recommendation.made", "happy"),
    ]
    (reaction,) = next(p for p in now["participants"] if p["name"] == "recommendation")["reactions"]
    assert reaction["retry"]["max_calls"] == 7
    assert [edge for edge in now["edges"] if edge not in added] == before["edges"]
    assert "recommendation.made" in project.text("docs/map.svg")
    assert "7 calls" in project.text("docs/map.svg")


def test_its_queues_are_bound_to_what_it_reacts_to(project: Project) -> None:
    definitions = project.json("rabbitmq/definitions.json")

    bound = {
        (binding["source"], binding["routing_key"], binding["destination"])
        for binding in definitions["bindings"]
        if binding["destination"].startswith("recommendation.")
    }
    assert bound == {
        ("saga.events", "order.confirmed.high", "recommendation.high"),
        ("saga.events", "order.confirmed.normal", "recommendation.normal"),
        ("saga.dead", "recommendation", "recommendation.dlq"),
    }


def test_its_user_may_publish_its_own_event_and_no_other(project: Project) -> None:
    definitions = project.json("rabbitmq/definitions.json")

    (events,) = (
        permission["write"]
        for permission in definitions["topic_permissions"]
        if (permission["user"], permission["exchange"]) == ("recommendation", "saga.events")
    )
    assert events == r"^(recommendation\.made\.high|recommendation\.made\.normal)$"
    project.saga("check")


STORE = """\
from saga.runtime.kernel.tables import Tables

from recommendation_service.domain import Recommendation

TABLES = Tables.of(__file__, recommendations=Recommendation)
"""


def test_a_column_that_no_migration_adds_is_named_with_the_command_that_writes_one(
    changing: Project,
) -> None:
    project = changing
    package = project.folder / "recommendation_service"
    (package / "store.py").write_text(STORE)
    (package / "migrations").mkdir()
    definitions = project.folder / "definitions.json"
    project.saga("topology", "export", str(definitions))
    check = ("check", "--definitions", str(definitions))
    assert "no script; run `saga generate`" in project.saga(*check, status=1)
    project.saga("generate")
    project.saga(*check)
    project.saga("generate", "--check")

    domain = package / "domain.py"
    domain.write_text(DOMAIN.replace('sku: str = ""', 'sku: str = ""\n    note: str = ""'))

    for command in (check, ("generate", "--check")):
        said = project.saga(*command, status=1)
        assert (
            "recommendation_service.store: its table recommendations has no column note, and no "
            "script in its migrations adds it; write one with `saga migration recommendation "
            "'what changes'`"
        ) in said
    project.saga("migration", "recommendation", "Recommendations have notes")
    project.saga(*check)


def test_the_asyncapi_document_and_a_schema_have_its_event_and_its_policy(project: Project) -> None:
    operations = project.json("contracts/asyncapi.json")["operations"]

    assert operations["recommendation.recommend"]["x-retry"]["max_calls"] == 7
    assert operations["recommendation.publish.recommendation.made"]["action"] == "send"
    schema = project.json("contracts/recommendation.made/v1.json")
    assert schema["$id"] == "urn:order-saga:recommendation.made:1"
    assert schema["required"] == ["order_id", "sku"]


def test_it_has_a_page_and_is_on_that_of_whom_it_reacts_to(project: Project) -> None:
    page = project.text("docs/services/recommendation.md")

    assert "What a customer may like" in page
    assert "| `order.confirmed` | `recommend` | `recommendation.made` or nothing | 7 calls" in page
    assert "`recommendation.high`, `recommendation.normal`" in page
    assert "`recommendation.recommend`" in project.text("docs/services/order.md")


def test_the_import_contracts_hold_for_it(project: Project) -> None:
    contracts = project.text("pyproject.toml").partition("[tool.importlinter]")[2]

    assert contracts.count('"recommendation_service"') == 3


def test_it_has_a_container_a_replica_and_is_scraped_and_the_others_are_as_they_were(
    project: Project,
) -> None:
    def services(folder: Path, name: str) -> dict[str, Any]:
        found: dict[str, Any] = yaml.safe_load((folder / name).read_text())["services"]
        return found

    for name, container in (
        ("compose.yaml", "recommendation"),
        ("compose.cluster.yaml", "recommendation-2"),
    ):
        before, now = services(ROOT, name), services(project.folder, name)
        added = now.pop(container)
        assert added["command"] == ["python3", "-m", "recommendation_service.app"]
        assert added["volumes"] == ["recommendation-secrets:/run/secrets:ro", "audit:/audit"]
        volumes = (
            {"recommendation-secrets:/secrets/recommendation"} if name == "compose.yaml" else set()
        )
        assert {*now["init"].pop("volumes")} - {*before["init"].pop("volumes")} == volumes
        assert now == before
    scraped = yaml.safe_load(project.text("monitoring/prometheus.yml"))["scrape_configs"][0]
    assert "recommendation" in scraped["dns_sd_configs"][0]["names"]
    ports = re.findall(r"127\.0\.0\.1:(\d+):8000", project.text("compose.yaml"))
    assert len(ports) == len({*ports})
