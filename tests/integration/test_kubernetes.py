"""What `saga generate` writes for Kubernetes, rendered by kubectl and validated; nothing is run."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import permutations
from pathlib import Path
from typing import Any, ClassVar

import pytest
import typer
import yaml
import yarl
from pydantic_settings import BaseSettings

from saga.bootstrap import PERSONS
from saga.choreography import Participant, State
from saga.cli import command_line
from saga.console.settings import ConsoleSettings
from saga.declaration import Saga
from saga.generate.begun import texts
from saga.generate.kubernetes import FOLDER, kubernetes_files
from saga.generate.kubernetes.edges import edges_of
from saga.generate.kubernetes.scalers import MESSAGES_PER_SECOND, WORK_SECONDS
from saga.generate.kubernetes.secrets import API_KEYS, TOOLS_KEY, missing, write_secrets
from saga.generate.marks import GenerateError
from saga.generate.monitoring import DATA, prometheus_config
from saga.local.node import RabbitNode
from saga.message import Event, Role
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import is_partition, queues_of, reads, topology_of
from tests import circle
from tests.command import saga
from tests.manifests import (
    COMPONENT,
    NAME,
    OVERLAYS,
    Document,
    Network,
    Pod,
    invalid,
    named,
    of_kind,
    pods,
    problems,
    rendered,
)
from tests.words import Begun, Held

ROOT = Path(__file__).parents[2]
NEW = "new"
PROJECTS = {"this": ROOT} | {
    file.parent.name: file.parent for file in sorted((ROOT / "examples").glob("*/pyproject.toml"))
}
DESCRIPTION = """
import json
from importlib.util import find_spec
from saga.discovery import saga, services, spec
from saga.generate.begun import texts
from saga.generate.kubernetes import FOLDER, kubernetes_files
from saga.generate.kubernetes.names import called
from saga.graph.flow import Flow
from saga.personal.masks import Masks
from saga.runtime.messaging.topology import queues_of
declared = saga()
graph = declared.choreography
flow = Flow(graph)
begun = texts(declared.name, spec())
def names(steps):
    return sorted({step.participant.name for step in steps})
print(json.dumps({
    "name": declared.name,
    "files": {n: t for n, t in begun.items() if n.startswith(FOLDER)} | kubernetes_files(declared),
    "edges": [
        [m.type, names(flow.publishers(m)), names(flow.takers(m))]
        for m in declared.choreography.recorded
    ],
    "given": names(step for command in flow.given for step in flow.takers(command)),
    "personal": sorted(Masks((*graph.recorded, *graph.commands)).names),
    "asks": [[outside.asked_by, outside.name] for outside in declared.outside],
    "participants": [called(p.name) for p in declared.choreography.participants],
    "services": [called(s.name) for s in declared.choreography.own_services],
    "missing": [s.name for s in services().values() if not find_spec(f"{s.package}.app")],
    "queues": {called(p.name): list(queues_of(p)) for p in declared.choreography.in_python},
}))
"""
BROKER = Pod({NAME: "rabbitmq"})
PROMETHEUS = Pod({NAME: "prometheus"}, {"kubernetes.io/metadata.name": "monitoring"})
TOOL = Pod({COMPONENT: "tool", NAME: "console"})
STRANGER = Pod({NAME: "stranger"})
AMQP, MANAGEMENT, SQL, HTTP = 5672, 15672, 5432, 8000


@dataclass
class Deployed:
    """A project's saga, and what is rendered of it by overlay."""

    project: Path
    saga: Mapping[str, Any]
    overlays: Mapping[str, Sequence[Document]]

    @property
    def documents(self) -> Sequence[Document]:
        """Of the largest overlay."""
        return self.overlays["keda"]

    @property
    def key_stores(self) -> set[str]:
        """The database server of the keys of persons, where messages name some."""
        return {f"{called(PERSONS)}-db"} if self.saga["personal"] else set()

    def pod(self, name: str) -> Pod:
        component = "participant" if name in self.saga["participants"] else "observer"
        return Pod({NAME: name, COMPONENT: component})


def python(folder: Path, *arguments: str, **variables: str) -> str:
    """What Python prints in a project's folder. `SAGA` is for this one only."""
    ours = {k: v for k, v in os.environ.items() if k != "SAGA" or folder == ROOT}
    command = [sys.executable, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=ours | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def written(files: Mapping[str, str], folder: Path) -> Path:
    """The files in a folder; returns the one of Kubernetes."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder / FOLDER


IN_SHORT = ("this", NEW)
"""The largest and the smallest saga; what is between them, the long runs render too."""


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in IN_SHORT else pytest.mark.long)
        for name in (*PROJECTS, NEW)
    ],
)
def deployed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    tmp = tmp_path_factory.mktemp(request.param)
    if request.param == NEW:
        assert saga("new", "tours", "--folder", str(tmp / "tours")).returncode == 0
    project = PROJECTS.get(request.param, tmp / "tours")
    described = json.loads(python(project, "-c", DESCRIPTION))
    folder = written(described["files"], tmp / "written")
    return Deployed(project, described, {o: rendered(folder / "overlays" / o) for o in OVERLAYS})


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Document]:
    """What is rendered of a saga of toy words, to be broken."""
    folder = written(files_of(TOYS), tmp_path_factory.mktemp("toys"))
    return rendered(folder / "overlays" / "keda")


TOYS = Saga(
    "toys",
    participants=(circle.STARTER, circle.KEEPER, circle.ASKER, circle.TELLER),
    observers=circle.GRAPH.observers,
)


def files_of(saga: Saga, partitions: int = 1) -> dict[str, str]:
    begun = texts(saga.name, "toys:SAGA")
    own = {n: t for n, t in begun.items() if n.startswith(FOLDER)}
    return own | kubernetes_files(saga, partitions)


# --- every overlay of every project ---------------------------------------------------------------


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_all_that_is_rendered_is_valid(deployed: Deployed, overlay: str) -> None:
    documents = deployed.overlays[overlay]

    assert [wrong for document in documents if (wrong := invalid(document))] == []
    assert list(problems(documents)) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_is_in_the_sagas_own_namespace(deployed: Deployed, overlay: str) -> None:
    documents = deployed.overlays[overlay]
    (namespace,) = of_kind(documents, "Namespace")

    others = [document for document in documents if document is not namespace]
    assert {d["metadata"]["namespace"] for d in others} == {namespace["metadata"]["name"]}


def test_each_service_has_a_deployment_and_a_database_of_its_own(deployed: Deployed) -> None:
    services = set(deployed.saga["services"])

    assert services == {
        document["metadata"]["name"]
        for document in of_kind(deployed.documents, "Deployment")
        if document["metadata"]["labels"][COMPONENT] != "tool"
    }
    databases = of_kind(deployed.documents, "Cluster")
    wanted = {f"{service}-db" for service in services} | deployed.key_stores
    assert wanted == {d["metadata"]["name"] for d in databases}


def test_a_cluster_has_several_of_what_may_go(deployed: Deployed) -> None:
    small, cluster = deployed.overlays["small"], deployed.overlays["cluster"]

    assert named(small, "RabbitmqCluster", "rabbitmq")["spec"]["replicas"] == 1
    assert named(cluster, "RabbitmqCluster", "rabbitmq")["spec"]["replicas"] == 3
    (job,) = of_kind(cluster, "Job")
    assert {"name": "BROKER_NODES", "value": "3"} in containers(job)[0]["env"]
    assert {database["spec"]["instances"] for database in of_kind(cluster, "Cluster")} == {3}
    for deployment in of_kind(cluster, "Deployment"):
        of_participant = deployment["metadata"]["labels"][COMPONENT] == "participant"
        assert deployment["spec"].get("replicas", 1) == (2 if of_participant else 1)


def test_each_queue_of_a_participant_has_a_trigger(deployed: Deployed) -> None:
    scalers = {
        d["metadata"]["name"]: d["spec"] for d in of_kind(deployed.documents, "ScaledObject")
    }

    assert deployed.saga["queues"] == {
        name: [trigger["metadata"]["queueName"] for trigger in scaler["triggers"]]
        for name, scaler in scalers.items()
    }
    for name, scaler in scalers.items():
        assert scaler["scaleTargetRef"] == {"name": name}
        assert "replicas" not in named(deployed.documents, "Deployment", name)["spec"]
        for trigger in scaler["triggers"]:
            assert trigger["metadata"]["value"] == str(WORK_SECONDS * MESSAGES_PER_SECOND)
            secret = trigger["authenticationRef"]["name"]
            assert named(deployed.documents, "TriggerAuthentication", secret)


PARTITIONS = 3


@pytest.fixture(scope="module")
def divided(tmp_path_factory: pytest.TempPathFactory) -> Sequence[Document]:
    """What is rendered of the same saga, where its queues are divided."""
    folder = written(files_of(TOYS, PARTITIONS), tmp_path_factory.mktemp("divided"))
    return rendered(folder / "overlays" / "keda")


def test_each_partition_has_a_trigger_for_its_share_of_the_work(
    divided: Sequence[Document],
) -> None:
    graph = TOYS.choreography
    read = {
        queue.name
        for queue in topology_of(graph, PARTITIONS).queues
        if any(reads(participant, queue.name) for participant in graph.in_python)
    }
    triggers = [
        trigger["metadata"]
        for scaler in of_kind(divided, "ScaledObject")
        for trigger in scaler["spec"]["triggers"]
    ]
    values = {trigger["queueName"]: int(trigger["value"]) for trigger in triggers}

    assert len(triggers) == len(values)
    assert set(values) == read
    assert any(map(is_partition, read))
    for queue, value in values.items():
        share = PARTITIONS if is_partition(queue) else 1
        assert value * share == pytest.approx(WORK_SECONDS * MESSAGES_PER_SECOND, abs=share)
    assert [wrong for document in divided if (wrong := invalid(document))] == []
    assert list(problems(divided)) == []


def test_the_job_that_declares_queues_and_the_tools_know_how_many_partitions_there_are(
    divided: Sequence[Document], toys: Sequence[Document]
) -> None:
    (job,) = of_kind(divided, "Job")
    (undivided,) = of_kind(toys, "Job")
    number = {"name": "QUEUE_PARTITIONS", "value": f"{PARTITIONS}"}

    assert number in containers(job)[0]["env"]
    assert number in containers(named(divided, "Deployment", "console"))[0]["env"]
    assert job["metadata"]["name"] != undivided["metadata"]["name"]
    assert all(each["name"] != "QUEUE_PARTITIONS" for each in containers(undivided)[0]["env"])


def test_the_queues_that_are_not_scaled_on_are_those_that_no_participant_reads() -> None:
    queues = {queue.name for queue in topology_of(circle.GRAPH).queues}
    read = {queue for each in circle.GRAPH.in_python for queue in queues_of(each)}

    assert read < queues
    assert all(re.fullmatch(r"saga\.(retry\.\d+|history)|\w+\.dlq", q) for q in queues - read)


def test_each_setting_that_is_given_is_one(deployed: Deployed) -> None:
    assert {*settings(ConsoleSettings)} < {*settings(BaseSettings)}
    known = {*settings(BaseSettings), *options()}
    known |= {"SECRETS_DIR", "ADMIN", "ADMIN_PASSWORD"}  # the last two are parts of another
    if find_spec("saga.auth") is None:
        known |= {"API_KEYS_FILE", "SAGA_API_KEY_FILE", "AUTH_ISSUER", "AUTH_AUDIENCE"}
    site = deployed.saga["files"][f"{FOLDER}/site/kustomization.yaml"]

    assert {*re.findall("name: ([A-Z_]+)", site)} == SITE_SETTINGS <= known
    for document, template in pods(deployed.documents):
        given = {each["name"] for c in template["spec"]["containers"] for each in c["env"]}
        assert given <= known, document["metadata"]["name"]


SITE_SETTINGS = {"AUTH_ISSUER", "AUTH_AUDIENCE", "PERSONAL"}


def settings(kind: type[BaseSettings]) -> Iterator[str]:
    yield from map(str.upper, kind.model_fields)
    for more in kind.__subclasses__():
        yield from settings(more)


def options() -> Iterator[str]:
    """The variables that `saga` reads in the place of an option."""

    def walked(command: Any) -> Iterator[str]:
        for parameter in command.params:
            yield from [parameter.envvar] if isinstance(parameter.envvar, str) else []
        for inner in getattr(command, "commands", {}).values():
            yield from walked(inner)

    yield from walked(command_line())


def test_the_image_is_named_in_one_place(deployed: Deployed) -> None:
    images = {c["image"] for _, t in pods(deployed.documents) for c in t["spec"]["containers"]}

    assert len(images) == 1
    site = yaml.safe_load(deployed.saga["files"][f"{FOLDER}/site/kustomization.yaml"])
    assert [image["name"] for image in site["images"]] == ["saga-image"]


def test_the_broker_is_the_one_of_the_other_containers(deployed: Deployed) -> None:
    begun = texts("any", "any:SAGA")["compose.yaml"]

    assert (
        f"image: {named(deployed.documents, 'RabbitmqCluster', 'rabbitmq')['spec']['image']}\n"
        in (begun)
    )


def test_each_command_that_is_run_is_one(deployed: Deployed) -> None:
    assert deployed.saga["missing"] == []
    for _, template in pods(deployed.documents):
        for container in template["spec"]["containers"]:
            match container["command"]:
                case ["saga", *arguments]:
                    parsed(command_line(), arguments)
                case ["python3", "-m", module]:
                    assert module.endswith(".app")
                case other:
                    pytest.fail(f"what is {other}?")


def parsed(command: Any, arguments: Sequence[str]) -> None:
    """Raises what wrong usage does."""
    first, *others = arguments
    inner = command.commands[first]
    if hasattr(inner, "commands"):
        parsed(inner, others)
        return
    _, left, _ = inner.make_parser(typer.Context(inner)).parse_args(list(others))
    assert left == []


def test_what_is_scraped_and_alerted_on_is_what_prometheus_has_elsewhere(
    deployed: Deployed,
) -> None:
    config = prometheus_config(deployed.saga["name"])
    endpoints = [
        (monitor["spec"]["selector"], endpoint)
        for monitor in of_kind(deployed.documents, "PodMonitor")
        for endpoint in monitor["spec"]["podMetricsEndpoints"]
    ]
    labels = {
        each["job"]: each
        for _, endpoint in endpoints
        if (each := {r["targetLabel"]: r["replacement"] for r in endpoint["relabelings"]})
    }

    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert labels.keys() == jobs.keys()
    for name, job in jobs.items():
        of_saga = deployed.saga["name"] if "relabel_configs" in job else None
        assert labels[name].get("saga") == of_saga
        (endpoint,) = [e for _, e in endpoints if e["relabelings"][0]["replacement"] == name]
        assert endpoint.get("params") == job.get("params")
        assert endpoint.get("path", "/metrics") == job.get("metrics_path", "/metrics")
        assert endpoint.get("honorLabels", False) == job.get("honor_labels", False)
    rules = [
        yaml.safe_load(file.read_text())["groups"] for file in sorted(DATA.glob("rules/*.yml"))
    ]
    (found,) = of_kind(deployed.documents, "PrometheusRule")
    assert even(found["spec"]["groups"]) == even([group for groups in rules for group in groups])


def even(document: Any) -> Any:
    """With single spaces: kustomize breaks folded lines again, which PromQL does not care about."""
    match document:
        case str():
            return " ".join(document.split())
        case list():
            return [even(each) for each in document]
        case dict():
            return {key: even(value) for key, value in document.items()}
        case _:
            return document


# --- secrets --------------------------------------------------------------------------------------


def test_the_secrets_that_are_named_are_those_that_can_be_made(
    deployed: Deployed, tmp_path: Path
) -> None:
    folder = tmp_path / "secrets"
    make = ("-m", "saga.generate.kubernetes.secrets", str(folder))
    python(deployed.project, *make)
    for file in missing(folder):
        file.write_text("made by an operator")
    python(deployed.project, *make)
    made = {d["metadata"]["name"]: {*d["data"]} for d in rendered(folder)}
    made["rabbitmq-default-user"] = {"connection_string", "username", "password"}

    wanted = dict(referred(deployed.documents))
    foreign = {*deployed.saga["participants"]} - {*deployed.saga["services"]}
    assert wanted.keys() | {f"{name}-secrets" for name in foreign} == made.keys()
    for name, keys in referred(deployed.documents):
        assert keys <= made[name]


def test_secrets_that_are_there_stay_and_are_for_no_repository(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    write_secrets(folder, TOYS)
    before = rendered(folder)
    made = {secret["metadata"]["name"] for secret in before}
    assert ("api-keys" in made) is (folder / API_KEYS not in missing(folder))
    write_secrets(folder, TOYS)

    assert rendered(folder) == before
    assert folder.stat().st_mode & 0o077 == 0
    assert (folder / ".gitignore").read_text() == "*\n"


def referred(documents: Sequence[Document]) -> Iterator[tuple[str, set[str]]]:
    """The Secrets that are named, each with the keys that are."""
    for _, template in pods(documents):
        for volume in template["spec"]["volumes"]:
            if "secret" in volume:
                items = volume["secret"].get("items", ())
                yield volume["secret"]["secretName"], {item["key"] for item in items}
        for container in template["spec"]["containers"]:
            for each in container["env"]:
                if "valueFrom" in each:
                    one = each["valueFrom"]["secretKeyRef"]
                    yield one["name"], {one["key"]}
            for mount in container["volumeMounts"]:
                if mount["name"] == "secrets" and "subPath" in mount:
                    yield "operator-secrets", {mount["subPath"]}
                if mount["mountPath"] == "/run/operator":
                    yield "operator-secrets", {Path(TOOLS_KEY).name}
    for cluster in of_kind(documents, "Cluster"):
        yield cluster["spec"]["bootstrap"]["initdb"]["secret"]["name"], {"username", "password"}
    for authentication in of_kind(documents, "TriggerAuthentication"):
        for one in authentication["spec"]["secretTargetRef"]:
            yield one["name"], {one["key"]}


def containers(document: Document) -> list[Document]:
    ((_, template),) = pods([document])
    found: list[Document] = template["spec"]["containers"]
    return found


async def test_the_topologys_job_sets_up_a_broker(
    rabbit_node: RabbitNode, tmp_path: Path, toys: Sequence[Document]
) -> None:
    """Its command, as it stands in the Job, against a broker that has nothing of the saga yet."""
    folder = tmp_path / "secrets"
    python(ROOT, "-m", "saga.generate.kubernetes.secrets", str(folder))
    management = str(yarl.URL(rabbit_node.management_url).with_user("guest").with_password("guest"))
    url = f"{rabbit_node.amqp_url}kubernetes"
    (job,) = of_kind(toys, "Job")
    (container,) = containers(job)
    program, *arguments = container["command"]
    assert program == "saga"
    *arguments, passwords = arguments
    secret = folder / "operator" / Path(passwords).name
    variables = {each["name"] for each in container["env"]}
    given = {"AMQP_URL": url, "MANAGEMENT_URL": management, "BROKER_NODES": "1"}
    assert given.keys() < variables

    said = python(ROOT, "-m", "saga.cli", *arguments, str(secret), "--json", **given)

    assert json.loads(said)["users"] > 0
    secret, *_ = sorted(folder.glob("*/amqp_url"))
    user, password = f"kubernetes.{secret.parent.name}", yarl.URL(secret.read_text()).password
    known = yarl.URL(url).with_user(user).with_password(password)
    async with await connect(str(known), name="test"):
        pass  # as a service whose Secret that is
    left = python(ROOT, "-m", "saga.cli", "topology", "diff", "--json", **given)
    assert json.loads(left)["differences"] == []


# --- the network ----------------------------------------------------------------------------------


def test_the_policies_are_the_edges_of_the_map_and_no_others(deployed: Deployed) -> None:
    drawn = {
        message: (
            f"{' and '.join(publishers)} -> {', '.join(takers) or 'no participant'}",
            frozenset(called(name) for name in (*publishers, *takers)),
        )
        for message, publishers, takers in deployed.saga["edges"]
    }
    allowed = {}
    for policy in of_kind(deployed.documents, "NetworkPolicy"):
        notes = policy["metadata"].get("annotations", {})
        if "saga/edge" in notes:
            ((peers,),) = [rule["from"] for rule in policy["spec"]["ingress"]]
            names = {e["key"]: e["values"] for e in peers["podSelector"]["matchExpressions"]}
            allowed[notes["saga/message"]] = (notes["saga/edge"], frozenset(names[NAME]))

    assert allowed == drawn


def called(name: str) -> str:
    return name.replace("_", "-")


def test_who_has_an_edge_reaches_the_broker_and_nobody_else(deployed: Deployed) -> None:
    network = Network(deployed.documents)
    with_edge = {
        called(name) for _, *sides in deployed.saga["edges"] for side in sides for name in side
    }

    for name in deployed.saga["participants"]:
        assert network.allows(deployed.pod(name), BROKER, AMQP) is (name in with_edge)
    assert not network.allows(STRANGER, BROKER, AMQP)
    assert not network.allows(PROMETHEUS, BROKER, AMQP)
    for name in {*deployed.saga["participants"], *deployed.saga["services"]}:
        assert not network.allows(deployed.pod(name), BROKER, MANAGEMENT)


def test_no_service_reaches_another_one(deployed: Deployed) -> None:
    network = Network(deployed.documents)

    for one, other in permutations(deployed.saga["services"], 2):
        for port in (AMQP, MANAGEMENT, SQL, HTTP, 443):
            assert not network.allows(deployed.pod(one), deployed.pod(other), port)


def test_a_service_reaches_its_own_database_and_no_other(deployed: Deployed) -> None:
    network = Network(deployed.documents)
    databases = {name: Pod({"cnpg.io/cluster": f"{name}-db"}) for name in deployed.saga["services"]}

    for name in deployed.saga["services"]:
        for owner, database in databases.items():
            assert network.allows(deployed.pod(name), database, SQL) is (name == owner)
    for database in databases.values():
        assert network.allows(TOOL, database, SQL)
        assert not network.allows(PROMETHEUS, database, SQL)
        assert not network.allows(STRANGER, database, SQL)


def test_all_services_and_tools_reach_the_key_store_and_nobody_else_does(
    deployed: Deployed,
) -> None:
    network = Network(deployed.documents)
    for server in deployed.key_stores:
        store = Pod({"cnpg.io/cluster": server})
        for name in deployed.saga["services"]:
            assert network.allows(deployed.pod(name), store, SQL)
        assert network.allows(TOOL, store, SQL)
        assert not network.allows(PROMETHEUS, store, SQL)
        assert not network.allows(STRANGER, store, SQL)


def test_clients_reach_who_takes_commands_from_outside(deployed: Deployed) -> None:
    network = Network(deployed.documents)
    client = Pod({}, {f"clients-of-{called(deployed.saga['name'])}": "true"})
    anybody = Pod({}, {"kubernetes.io/metadata.name": "default"})

    for name in deployed.saga["services"]:
        service = deployed.pod(name)
        assert network.allows(client, service, HTTP) is (
            name in map(called, deployed.saga["given"])
        )
        assert not network.allows(anybody, service, HTTP)
        assert network.allows(TOOL, service, HTTP)
        assert network.allows(PROMETHEUS, service, HTTP)


def test_a_question_to_the_outside_has_a_policy_that_is_closed(deployed: Deployed) -> None:
    policies = {
        d["metadata"]["name"]: d["spec"] for d in of_kind(deployed.documents, "NetworkPolicy")
    }
    asked = [name for name in policies if "-asks-" in name]

    assert sorted(asked) == sorted(
        f"{called(who)}-asks-{whom.replace(' ', '-')}" for who, whom in deployed.saga["asks"]
    )
    assert all(policies[name]["egress"] == [] for name in asked)
    network = Network(deployed.documents)
    for name in deployed.saga["services"]:
        assert not network.allows(deployed.pod(name), Pod({}, {}), 443)


# --- what changes with the saga -------------------------------------------------------------------


class Lent(Event):
    """The same edge under another name."""

    type: ClassVar[str] = "part.lent"
    role: ClassVar[Role] = Held.role

    @property
    def subject(self) -> str:
        return "thing"


class Loan(State):
    """Of its keeper."""


def lend(event: Begun, loan: Loan) -> Held | None: ...
def lend_renamed(event: Begun, loan: Loan) -> Lent | None: ...


def test_a_renamed_edge_changes_a_policy_and_the_job_that_declares_it() -> None:
    before, after = (edge_files(function) for function in (lend, lend_renamed))

    def changed(name: str) -> tuple[set[str], set[str]]:
        old, new = (set(files[f"{FOLDER}/base/{name}"].splitlines()) for files in (before, after))
        return old - new, new - old

    gone, come = changed("edges.yaml")
    assert {"  name: edge-part.held"} < gone
    assert {"  name: edge-part.lent"} < come
    assert all("part." in line for line in gone | come)
    gone, come = changed("topology.yaml")
    assert [line.partition("-")[0] for line in (*gone, *come)] == ["  name: topology"] * 2
    same = before.keys() - {f"{FOLDER}/base/{name}" for name in ("edges.yaml", "topology.yaml")}
    assert all(before[name] == after[name] for name in same)


def edge_files(function: Callable[..., Any]) -> dict[str, str]:
    participants = (circle.STARTER, Participant("lender", function, package="lender"))
    return kubernetes_files(Saga("toys", participants=participants))


def test_an_edge_that_is_gone_takes_its_participant_from_the_broker(tmp_path: Path) -> None:
    documents = rendered(written(files_of(TOYS), tmp_path) / "base")
    teller = Pod({NAME: "teller", COMPONENT: "participant"})
    assert Network(documents).allows(teller, BROKER, AMQP)

    of_teller = {
        f"edge-{edge.message}"
        for edge in edges_of(circle.GRAPH)
        if "teller" in (*edge.publishers, *edge.takers)
    }
    left = [document for document in documents if document["metadata"]["name"] not in of_teller]

    assert not Network(left).allows(teller, BROKER, AMQP)


def test_services_that_cannot_be_told_apart_are_named() -> None:
    for names, said in (
        (("a_b", "a-b"), "'a_b' would be called 'a-b' on Kubernetes, as the service 'a-b'"),
        (("console",), "'console' would be called 'console' on Kubernetes, as the console of"),
    ):
        participants = tuple(Participant(n, circle.hold, package=called(n)) for n in names)
        with pytest.raises(GenerateError, match=said):
            kubernetes_files(Saga("toys", participants=participants))


# --- the tests' own teeth -------------------------------------------------------------------------

POD = ("spec", "template", "spec")
CONTAINER = (*POD, "containers", 0)
BROKEN: dict[str, tuple[str, tuple[Any, ...], Any]] = {
    "may run as root": ("Deployment", (*POD, "securityContext", "runAsNonRoot"), False),
    "has no seccomp profile": ("Deployment", (*POD, "securityContext", "seccompProfile"), None),
    "has a token": ("Deployment", (*POD, "automountServiceAccountToken"), True),
    "gets variables": ("Deployment", (*POD, "enableServiceLinks"), None),
    "can write": ("Deployment", (*CONTAINER, "securityContext", "readOnlyRootFilesystem"), None),
    "can get": ("Deployment", (*CONTAINER, "securityContext", "allowPrivilegeEscalation"), None),
    "keeps capabilities": ("Deployment", (*CONTAINER, "securityContext", "capabilities"), None),
    "has no requests": ("Deployment", (*CONTAINER, "resources", "requests"), None),
    "has no limits": ("Deployment", (*CONTAINER, "resources", "limits", "memory"), None),
    "has an image": ("Deployment", (*CONTAINER, "image"), "saga-image"),
    "mounts other volumes": ("Deployment", (*POD, "volumes", 0, "name"), "another"),
    "has no startupProbe": ("Deployment", (*CONTAINER, "startupProbe"), None),
    "has no readinessProbe": ("Deployment", (*CONTAINER, "readinessProbe"), None),
    "has no livenessProbe": ("Deployment", (*CONTAINER, "livenessProbe"), None),
    "has a livenessProbe on": ("Deployment", (*CONTAINER, "livenessProbe", "httpGet", "port"), "x"),
    "is killed before": ("Deployment", (*POD, "terminationGracePeriodSeconds"), 30),
    "may have all replicas": ("Deployment", (*POD, "topologySpreadConstraints"), None),
    "selects other pods": ("Deployment", ("spec", "selector", "matchLabels", NAME), "x"),
    "has no disruption budget": (
        "PodDisruptionBudget",
        ("spec", "selector", "matchLabels"),
        {NAME: "x"},
    ),
    "names ports": ("Service", ("spec", "ports", 0, "targetPort"), "x"),
    "selects no pod": ("Service", ("spec", "selector", NAME), "x"),
    "is there 2 times": ("Service", ("metadata", "name"), "teller"),
    "has values": ("Service", ("kind",), "Secret"),
}
MISSPELT: dict[str, tuple[Any, ...]] = {
    "Deployment": ("spec", "replica"),
    "NetworkPolicy": ("spec", "egres"),
    "CronJob": ("spec", "scheduel"),
    "RabbitmqCluster": ("spec", "persistence", "size"),
    "Cluster": ("spec", "postgresql", "synchronuos"),
    "ScaledObject": ("spec", "minReplicas"),
    "TriggerAuthentication": ("spec", "secretRef"),
    "PodMonitor": ("spec", "endpoints"),
    "PrometheusRule": ("spec", "groups", 0, "rule"),
}


def changed(documents: Sequence[Document], kind: str, path: Sequence[Any], value: Any) -> Any:
    """A copy in which the first document of a kind, of the keeper's, says something else there."""
    copied = copy.deepcopy(list(documents))
    place: Any = next(
        (d for d in of_kind(copied, kind) if d["metadata"]["name"].startswith("keeper")),
        of_kind(copied, kind)[0],
    )
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return copied


@pytest.mark.parametrize("said", BROKEN)
def test_what_breaks_a_rule_is_found(toys: Sequence[Document], said: str) -> None:
    assert list(problems(toys)) == []

    assert any(said in problem for problem in problems(changed(toys, *BROKEN[said])))


@pytest.mark.parametrize("kind", MISSPELT)
def test_a_field_that_there_is_not_is_refused(toys: Sequence[Document], kind: str) -> None:
    wrong = changed(toys, kind, MISSPELT[kind], "1")

    assert any(MISSPELT[kind][-1] in invalid(document) for document in of_kind(wrong, kind))


def test_every_kind_that_is_used_has_a_schema(toys: Sequence[Document]) -> None:
    (strange, *_) = changed(toys, toys[0]["kind"], ("kind",), "Nothing")

    assert "find schema for kind Nothing" in invalid(strange)
