"""How many replicas a service has, by what waits in its queues, for KEDA.

The rule is docs/scale.md's: a replica more for every two seconds' work of one that wait. A service
has one scaler, since KEDA allows one, with a trigger for each of its queues, and for each of their
partitions. The trigger that asks for the most decides, so what one partition may hold for a replica
is its share of what the undivided queue may.
"""

from __future__ import annotations

from typing import Final

from saga.choreography import Choreography, Participant
from saga.generate.kubernetes.names import called, together
from saga.runtime.messaging.topology import divisible, partition_queue, queues_of

WORK_SECONDS: Final = 2
MESSAGES_PER_SECOND: Final = 1_000
"""Of one replica: half of what bench/scale.py reckons with, 0.35 ms of CPU a message at 70 % of a
core. Measure yours, and patch."""
REPLICAS_MIN: Final = 2
REPLICAS_MAX: Final = 6


def scalers(graph: Choreography, partitions: int = 1) -> str:
    """A scaler per participant in Python, whose queues have so many partitions; who follows the
    history is one reader, and is not scaled."""
    each = [_scaler(participant, graph, partitions) for participant in graph.in_python]
    return f"""\
# A replica more for each {WORK_SECONDS} seconds' work that wait in a queue, and one less a minute
# once they do not. {MESSAGES_PER_SECOND} messages/s of a replica are half of what was measured:
# measure yours, and patch.
{together([*each, _POLICY])}"""


def _scaler(participant: Participant, graph: Choreography, partitions: int) -> str:
    name = called(participant.name)
    work = WORK_SECONDS * MESSAGES_PER_SECOND
    divided = divisible(graph, participant) if partitions > 1 else {}
    triggers = ""
    for queue in queues_of(participant):
        triggers += _trigger(queue, name, work)
        for number in range(partitions if queue in divided else 0):
            triggers += _trigger(partition_queue(queue, number), name, -(-work // partitions))
    return f"""\
apiVersion: keda.sh/v1alpha1
kind: TriggerAuthentication
metadata:
  name: {name}
spec:
  secretTargetRef:
    - {{ parameter: host, name: {name}-secrets, key: amqp_url }}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata:
  name: {name}
spec:
  scaleTargetRef: {{ name: {name} }}
  minReplicaCount: {REPLICAS_MIN}
  maxReplicaCount: {REPLICAS_MAX}
  pollingInterval: 15
  fallback: {{ failureThreshold: 4, replicas: {REPLICAS_MIN} }} # where the broker does not answer
  advanced:
    horizontalPodAutoscalerConfig:
      behavior:
        scaleDown:
          stabilizationWindowSeconds: 300
          policies: [{{ type: Pods, value: 1, periodSeconds: 60 }}]
  triggers:
{triggers}"""


def _trigger(queue: str, authentication: str, messages: int) -> str:
    return f"""\
    - type: rabbitmq
      authenticationRef: {{ name: {authentication} }}
      metadata:
        protocol: amqp
        vhostName: /
        queueName: {queue}
        mode: QueueLength
        value: "{messages}"
"""


_POLICY = """\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: scalers
spec:
  podSelector: { matchLabels: { app.kubernetes.io/name: rabbitmq } }
  policyTypes: [Ingress]
  ingress:
    - from:
        - namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: keda } }
          podSelector: { matchLabels: { app: keda-operator } }
      ports: [{ port: 5672, protocol: TCP }]
"""
