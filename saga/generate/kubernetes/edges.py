"""The map's edges as network policies: who publishes a message and who takes it meet at the broker.

A policy knows addresses and ports, and no messages. So what all of these add up to is who may
connect to the broker: those who have an edge, and no others. Which of them publishes what, and
takes what from which queue, the broker itself checks (`saga.runtime.messaging.permissions`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from saga.choreography import Choreography
from saga.generate.kubernetes.names import called, together

NO_TAKER = "no participant"


@dataclass(frozen=True, slots=True)
class Edge:
    """One message of the map: its type, by whom it is published or sent, and who takes it."""

    message: str
    publishers: tuple[str, ...]
    takers: tuple[str, ...]

    def __str__(self) -> str:
        return f"{' and '.join(self.publishers)} -> {', '.join(self.takers) or NO_TAKER}"


def edges_of(graph: Choreography) -> tuple[Edge, ...]:
    """Every event and every command that participants send."""
    return tuple(
        Edge(
            message.type,
            tuple(
                participant.name
                for participant in graph.participants
                if any(kind.type == message.type for kind in participant.emits)
            ),
            tuple(participant.name for participant in graph.reacting_to(message.type)),
        )
        for message in graph.recorded
    )


def policies(edges: Iterable[Edge]) -> str:
    """A policy per edge, and one for those who read the history of all."""
    return f"""\
# An edge of the map each: who publishes a message may connect to the broker, and who takes it. What
# they add up to is who may connect; what each may publish and read there, the broker checks.
{together([*map(_policy, edges), _OBSERVERS])}"""


def _policy(edge: Edge) -> str:
    pods = dict.fromkeys(map(called, (*edge.publishers, *edge.takers)))
    return f"""\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: edge-{called(edge.message)}
  annotations: {{ saga/message: {edge.message}, saga/edge: "{edge}" }}
spec:
  podSelector: {{ matchLabels: {{ app.kubernetes.io/name: rabbitmq }} }}
  policyTypes: [Ingress]
  ingress:
    - from:
        - podSelector:
            matchExpressions:
              - {{ key: app.kubernetes.io/component, operator: In, values: [participant] }}
              - {{ key: app.kubernetes.io/name, operator: In, values: [{", ".join(pods)}] }}
      ports: [{{ port: 5672, protocol: TCP }}]
"""


_OBSERVERS = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: observers
spec:
  podSelector: { matchLabels: { app.kubernetes.io/name: rabbitmq } }
  policyTypes: [Ingress]
  ingress:
    - from: [{ podSelector: { matchLabels: { app.kubernetes.io/component: observer } } }]
      ports: [{ port: 5672, protocol: TCP }]
"""
