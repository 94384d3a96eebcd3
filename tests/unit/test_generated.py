"""Generated files are in step with what they are generated from."""

from __future__ import annotations

import builtins
import functools
import json
import math
import operator
import re
import shutil
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from common.events import PaymentRefunded, PaymentVoided, StockAdded, StockReleased
from monitoring.dashboards.__main__ import FOLDER, dashboards
from saga.choreography import Choreography, Participant, State
from saga.declaration import SagaError
from saga.discovery import choreography, participants, services
from saga.generate.begun import texts
from saga.generate.files import IN_PART, generated, refresh, stale
from saga.generate.marks import GenerateError
from saga.graph.canvas import NOTICE
from saga.message import Event
from saga.runtime.messaging.definitions import Definitions, definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of

ROOT = Path(__file__).parents[2]
DEFINITIONS = ROOT / "rabbitmq" / "definitions.json"


def test_no_generated_file_is_stale() -> None:
    names = [file.relative_to(ROOT).as_posix() for file in stale(ROOT, choreography())]

    assert not names, f"stale: {', '.join(names)}; run `make generate`"


def naive(numbers: Iterable[Any], start: Any = 0) -> Any:
    """`sum` as it is before Python 3.12: each step is rounded."""
    return functools.reduce(operator.add, numbers, start)


def compensated(numbers: Iterable[Any], start: Any = 0) -> Any:
    """`sum` as it is from Python 3.12 on: of floats, the result alone is rounded."""
    terms = list(numbers)
    exact = any(isinstance(term, float) for term in terms)
    return math.fsum((start, *terms)) if exact else naive(terms, start)


@pytest.mark.parametrize("sum_of_a_version", [naive, compensated])
def test_generated_files_are_the_same_whichever_python_writes_them(
    sum_of_a_version: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builtins, "sum", sum_of_a_version)

    assert stale(ROOT, choreography()) == []
    assert dashboards() == {path.name: path.read_text() for path in FOLDER.glob("*.json")}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every generated file as it should be. With the examples there are, since
    each that is missing is looked for in simulations."""
    folder = tmp_path_factory.mktemp("written")
    shutil.copytree(ROOT / "contracts" / "examples", folder / "contracts" / "examples")
    for name in IN_PART:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    refresh(folder, choreography())
    return folder


@pytest.fixture
def project(written: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(written, tmp_path / "project"))


def test_a_file_that_was_edited_is_stale_until_it_is_written_anew(project: Path) -> None:
    files = [file.relative_to(project) for file in generated(project, choreography())]
    assert Path("contracts/order.placed/v1.json") in files
    assert Path("docs/services/payment.md") in files

    for file in files:
        edited = project / file
        text = edited.read_text().replace("include_external_packages = true", "")
        text = re.sub(r"^  order(-2)?:$", r"  orders\1:", text, flags=re.MULTILINE)
        text = text.replace("names: [history, ", "names: [")
        # What is outside the marks is the file's own.
        edited.write_text(text if file.as_posix() in IN_PART else text + " ")
    (project / files[-1]).unlink()

    assert stale(project, choreography()) == [project / file for file in files]
    assert refresh(project, choreography()) == [project / file for file in files]
    assert stale(project, choreography()) == []


def test_a_file_that_nothing_asks_for_any_more_is_removed(project: Path) -> None:
    left_over = project / "docs" / "services" / "closed.md"
    left_over.write_text(f"{NOTICE}\n\n# closed\n")
    kept = project / "contracts" / "released" / "order.placed" / "v1.json"
    kept.parent.mkdir(parents=True)
    kept.write_text("{}")

    assert refresh(project, choreography()) == [left_over]
    assert not left_over.exists()
    assert kept.exists()


def declare(file: Path, partitions: str) -> None:
    """Write into a project's file into how many partitions its queues are divided."""
    said = rf"\1\npartitions = {partitions}"
    file.write_text(re.sub(r"^(saga = .*)$", said, file.read_text(), flags=re.M))


def test_partitions_that_a_project_declares_are_in_all_that_declares_queues(project: Path) -> None:
    file = project / "pyproject.toml"
    declare(file, "2")

    changed = {path.relative_to(project).as_posix() for path in refresh(project, choreography())}

    base = "deploy/kubernetes/base/"
    assert changed == {
        "rabbitmq/definitions.json",
        f"{base}topology.yaml",
        f"{base}tool-cronjob.yaml",
        f"{base}tool-deployment.yaml",
        "deploy/kubernetes/scalers/scalers.yaml",
    }
    assert '"order.normal.1"' in (project / "rabbitmq/definitions.json").read_text()
    assert stale(project, choreography()) == []


@pytest.mark.parametrize("number", ["0", "129", '"2"', "true"])
def test_a_number_of_partitions_that_is_none_is_refused_with_its_place(
    number: str, project: Path
) -> None:
    file = project / "pyproject.toml"
    file.write_text(
        re.sub(r"^(saga = .*)$", rf"\1\npartitions = {number}", file.read_text(), flags=re.M)
    )

    with pytest.raises(SagaError, match=r"pyproject\.toml: partitions = .* from 1 to 128"):
        stale(project, choreography())


def test_what_a_renamed_message_and_a_renamed_service_leave_is_removed_folders_too(
    project: Path,
) -> None:
    before = set(project.rglob("*"))
    schema = project / "contracts" / "order.placed" / "v1.json"
    renamed = project / "contracts" / "order.taken"
    renamed.mkdir()
    shutil.copy(schema, renamed / "v1.json")
    emptied = project / "contracts" / "order.emptied"
    emptied.mkdir()
    manifest = project / "deploy" / "kubernetes" / "base" / "shops.yaml"
    manifest.write_text("# Generated by `make generate`: edit saga/generate/kubernetes.\n")
    of_ones_own = project / "deploy" / "kubernetes" / "base" / "own.yaml"
    of_ones_own.write_text("# by hand\n")
    left = sorted([renamed / "v1.json", emptied, manifest])

    assert stale(project, choreography()) == left
    assert refresh(project, choreography()) == left
    assert set(project.rglob("*")) == before | {of_ones_own}
    assert stale(project, choreography()) == []


def test_a_folder_of_contracts_that_holds_something_of_ones_own_stays(project: Path) -> None:
    folder = project / "contracts" / "order.taken"
    folder.mkdir()
    shutil.copy(project / "contracts" / "order.placed" / "v1.json", folder)
    (folder / "notes.md").write_text("by hand\n")

    assert refresh(project, choreography()) == [folder / "v1.json"]
    assert [path.name for path in folder.iterdir()] == ["notes.md"]


def test_what_was_not_generated_stays_beside_what_was(project: Path) -> None:
    files = [project / "docs" / "services" / "index.md", project / "contracts" / "bank" / "v1.json"]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.write_text("by hand\n")

    assert refresh(project, choreography()) == []
    assert [file.read_text() for file in files] == ["by hand\n"] * 2


def test_a_generated_file_that_is_not_utf_8_is_written_anew(project: Path) -> None:
    file = project / "docs" / "map.svg"
    file.write_bytes(b"\xff\xfe")

    assert refresh(project, choreography()) == [file]
    assert stale(project, choreography()) == []


def test_where_nothing_was_generated_before_nothing_is_written_over(project: Path) -> None:
    """Of a repository that had such files of its own before it named a saga."""
    (project / "contracts" / "asyncapi.json").unlink()
    own = project / "docs" / "map.svg"
    own.write_text("drawn by hand")

    with pytest.raises(GenerateError, match=r"has docs/map\.svg, which would be written over"):
        refresh(project, choreography())
    assert own.read_text() == "drawn by hand"
    assert own in stale(project, choreography())

    own.unlink()
    assert own in refresh(project, choreography())


def test_manifests_of_ones_own_are_not_written_over(project: Path) -> None:
    """Of a repository in which an earlier version has generated."""
    own = project / "deploy" / "kubernetes" / "base" / "services.yaml"
    own.write_text("kind: List\n")

    with pytest.raises(GenerateError, match=r"has deploy/kubernetes/base/services\.yaml, which"):
        refresh(project, choreography())
    assert own.read_text() == "kind: List\n"


@pytest.mark.parametrize("name", IN_PART)
def test_a_file_of_ones_own_that_is_not_utf_8_is_named(name: str, project: Path) -> None:
    (project / name).write_bytes(b"\xff\xfe")

    with pytest.raises(GenerateError, match=f"{re.escape(name)} is not UTF-8"):
        refresh(project, choreography())


def test_a_folder_whose_files_lack_their_marks_is_not_the_projects(
    tmp_path: Path,
) -> None:
    with pytest.raises(GenerateError, match=r"has no pyproject\.toml; name the project's folder"):
        refresh(tmp_path, choreography())
    assert list(tmp_path.iterdir()) == []


def test_the_import_contracts_name_every_service() -> None:
    linter = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    contracts = {each["name"]: each for each in linter["contracts"]}
    the_services = {*services()} - {"saga.archive"}  # The archive is the engine's.
    language, whole = {"common"}, {"order_saga"}

    assert set(linter["root_packages"]) == {"saga"} | language | the_services | whole
    independent = contracts["Services know each other only by their events"]
    assert set(independent["modules"]) == the_services
    for name, who, unknown in (
        ("The engine knows no saga", {"saga"}, language | the_services | whole),
        ("The published language knows no service", language, the_services | whole),
        ("No service knows the whole", the_services, whole),
    ):
        assert set(contracts[name]["source_modules"]) == who
        assert set(contracts[name]["forbidden_modules"]) == unknown


class _Refunds(State):
    """How many refunds were seen."""


def count(event: PaymentRefunded, refunds: _Refunds) -> StockAdded | None: ...


def restock(event: StockReleased, refunds: _Refunds) -> PaymentVoided | None: ...


def test_the_definitions_file_holds_no_secret() -> None:
    users = json.loads(DEFINITIONS.read_text())["users"]

    assert users
    assert all(user.keys() == {"name", "tags"} and not user["tags"] for user in users)


def test_an_event_in_a_signature_is_a_binding_and_a_permission_and_nothing_else_changes() -> None:
    before = _exported([*participants().values(), Participant("audit", count)])
    after = _exported([*participants().values(), Participant("audit", count, restock)])

    old, new = before.pop("bindings"), after.pop("bindings")
    added = [binding for binding in new if binding not in old]

    assert [binding for binding in new if binding not in added] == old
    assert sorted((b["source"], b["routing_key"], b["destination"]) for b in added) == [
        ("saga.events", "stock.released.high", "audit.high"),
        ("saga.events", "stock.released.normal", "audit.normal"),
    ]

    permissions = [(old, new) for old, new in _topic_permissions(before, after) if old != new]

    assert [(new["user"], new["exchange"], new["write"]) for _, new in permissions] == [
        (
            "audit",
            "saga.events",
            r"^(stock\.added\.high|stock\.added\.normal|"
            r"payment\.voided\.high|payment\.voided\.normal)$",
        )
    ]
    assert after == before


def _topic_permissions(before: Definitions, after: Definitions) -> list[tuple[Any, Any]]:
    """Takes them out of both."""
    return list(zip(before.pop("topic_permissions"), after.pop("topic_permissions"), strict=True))


def test_every_binding_is_of_an_event_its_reader_reacts_to() -> None:
    graph = choreography()
    readers = {p.name: {event.type for event in p.consumes} for p in graph.participants}
    bound: dict[str, set[str]] = {name: set() for name in readers}
    for binding in topology_of(graph).bindings:
        name, _, kind = binding.queue.rpartition(".")
        if kind in ("high", "normal"):
            bound[name].add(binding.key.rpartition(".")[0])

    assert bound == readers


def _exported(those: list[Participant]) -> Definitions:
    return _definitions(Choreography(those))


def _definitions(graph: Choreography) -> Definitions:
    return definitions(topology_of(graph), users_of(graph))


def test_every_event_somebody_reacts_to_is_published_by_somebody() -> None:
    graph = choreography()
    published: set[type[Event]] = {kind for p in graph.participants for kind in p.publishes}

    assert {kind for p in graph.participants for kind in p.consumes} <= published


def test_a_project_begins_with_the_files_that_this_one_has() -> None:
    """But for those that name its services, and for its image, which is made of an installed
    engine."""
    own = {"Dockerfile", "compose.yaml", "compose.cluster.yaml", "compose.tls.yaml"}
    own |= {"deploy/kubernetes/site/kustomization.yaml"}
    begun = texts("any", "any:SAGA")

    assert len(begun.keys() - own) >= 5
    for name in begun.keys() - own:
        assert begun[name] == (ROOT / name).read_text(), name
