"""A Deployment, a Service, a disruption budget, a database and its network policies per service."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from saga.bootstrap import HTTP_PORT, PERSONS
from saga.choreography import Choreography, Observer, Participant
from saga.declaration import Saga
from saga.generate.kubernetes.names import called, together
from saga.graph.flow import Flow
from saga.outside import Outside
from saga.personal.masks import Masks

_OWN_DATA = "emptyDir: { sizeLimit: 2Gi }"
_SHARED_DATA = "persistentVolumeClaim: { claimName: data }"


def services(saga: Saga) -> str:
    """All but the databases. What services have in common is in service-patch.yaml."""
    askers = {outside.asked_by for outside in saga.outside if outside.file is not None}
    flow = Flow(saga.choreography)
    given = {step.participant.name for command in flow.given for step in flow.takers(command)}
    documents: list[str] = []
    for service in saga.choreography.own_services:
        documents.append(_service(service, shares=service.name in askers))
        if service.name in given:
            documents.append(_clients(service.name, saga.name))
    documents += [_outside(outside) for outside in saga.outside]
    return f"""\
# What services have in common is in service-patch.yaml.
{together(documents)}"""


def databases(graph: Choreography) -> str:
    """A cluster of CloudNativePG per service, which that service may connect to, and no other."""
    each = [_database(service.name, _pod_of(service.name)) for service in graph.own_services]
    if Masks((*graph.recorded, *graph.commands)).names:
        each.append(_database(PERSONS, _SERVICES))
    return f"""\
# A database server each: so a service reaches its own, and no other's but the key store of persons,
# which is all services', and in no backup with the others.
{together(each)}"""


def _service(service: Participant | Observer, *, shares: bool) -> str:
    """It `shares` the operators' volume where it asks a sandbox whose books are in a file there."""
    name = called(service.name)
    component = "observer" if isinstance(service, Observer) else "participant"
    module = f"{service.package}.app"
    labels = f"{{ <<: *{name}, volume: data }}" if shares else f"*{name}"
    return f"""\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {name}
  labels: &{name} {{ app.kubernetes.io/name: {name}, app.kubernetes.io/component: {component} }}
spec:
  selector: {{ matchLabels: {{ app.kubernetes.io/name: {name} }} }}
  template:
    metadata: {{ labels: {labels} }}
    spec:
{_BESIDE_THE_BOOKS if shares else ""}\
      containers:
        - name: service
          command: [python3, -m, {module}]
      volumes:
        - name: secrets
          secret: {{ secretName: {name}-secrets }}
        - name: data
          {_SHARED_DATA if shares else _OWN_DATA}
---
apiVersion: v1
kind: Service
metadata:
  name: {name}
spec:
  selector: {{ app.kubernetes.io/name: {name} }}
  ports: [{{ name: http, port: {HTTP_PORT}, targetPort: http }}]
---
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {name}
spec:
  maxUnavailable: 1
  selector: {{ matchLabels: {{ app.kubernetes.io/name: {name} }} }}
"""


_BESIDE_THE_BOOKS = """\
      affinity: # The sandbox's books are a file on the operators' volume.
        podAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector: { matchLabels: { volume: data } }
"""


def _clients(service: str, saga: str) -> str:
    name = called(service)
    return f"""\
# It takes commands from outside: from namespaces that are labelled for it, an ingress's say.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}-clients
spec:
  podSelector: {{ matchLabels: {{ app.kubernetes.io/name: {name} }} }}
  policyTypes: [Ingress]
  ingress:
    - from: [{{ namespaceSelector: {{ matchLabels: {{ clients-of-{called(saga)}: "true" }} }} }}]
      ports: [{{ port: {HTTP_PORT}, protocol: TCP }}]
"""


def _outside(outside: Outside[object]) -> str:
    name = called(outside.asked_by)
    return f"""\
# Closed until an overlay says the address of the real one: nothing here knows it.
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}-asks-{called(outside.name)}
  annotations: {{ saga/questions: "{", ".join(_questions(outside))}" }}
spec:
  podSelector: {{ matchLabels: {{ app.kubernetes.io/name: {name} }} }}
  policyTypes: [Egress]
  egress: []
"""


def _questions(outside: Outside[object]) -> Iterator[str]:
    yield from sorted(intent.__name__ for intent in outside.intents)


_SERVICES: Final = (
    "matchExpressions: [{ key: app.kubernetes.io/component, operator: In, "
    "values: [participant, observer] }]"
)


def _pod_of(service: str) -> str:
    return f"matchLabels: {{ app.kubernetes.io/name: {called(service)} }}"


def _database(service: str, pods: str) -> str:
    """The database of that name, and how the `pods` that may use it are selected."""
    name = called(service)
    server = f"{name}-db"
    return f"""\
apiVersion: postgresql.cnpg.io/v1
kind: Cluster
metadata:
  name: {server}
spec:
  instances: 1
  storage: {{ size: 20Gi }}
  resources:
    requests: {{ cpu: 250m, memory: 512Mi }}
    limits: {{ cpu: "2", memory: 512Mi }}
  bootstrap:
    initdb:
      database: {service}
      owner: {service}
      secret: {{ name: {name}-db-owner }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {server}
spec:
  podSelector: {{ matchLabels: {{ cnpg.io/cluster: {server} }} }}
  policyTypes: [Ingress, Egress]
  egress:
    - to: [{{ podSelector: {{ matchLabels: {{ cnpg.io/cluster: {server} }} }} }}]
      ports: [{{ port: 5432, protocol: TCP }}, {{ port: 8000, protocol: TCP }}]
  ingress:
    - from: [{{ podSelector: {{ {pods} }} }}]
      ports: [{{ port: 5432, protocol: TCP }}]
    - from: [{{ podSelector: {{ matchLabels: {{ cnpg.io/cluster: {server} }} }} }}]
      ports: [{{ port: 5432, protocol: TCP }}, {{ port: 8000, protocol: TCP }}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {name}-to-its-database
spec:
  podSelector: {{ {pods} }}
  policyTypes: [Egress]
  egress:
    - to: [{{ podSelector: {{ matchLabels: {{ cnpg.io/cluster: {server} }} }} }}]
      ports: [{{ port: 5432, protocol: TCP }}]
"""
