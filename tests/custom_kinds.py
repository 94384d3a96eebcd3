"""JSON Schemas of the custom resources that deploy/kubernetes uses, by kind.

Written by hand from the definitions that the operators publish. They know the fields that are used,
and refuse any other: a field that is misspelt, or that no operator has, passes nowhere.

- `rabbitmq/cluster-operator`: config/crd/bases/rabbitmq.com_rabbitmqclusters.yaml
- `cloudnative-pg/cloudnative-pg`: config/crd/bases/postgresql.cnpg.io_clusters.yaml
- `kedacore/keda`: config/crd/bases/keda.sh_scaledobjects.yaml, keda.sh_triggerauthentications.yaml;
  the metadata of a trigger: pkg/scalers/rabbitmq_scaler.go
- `prometheus-operator/prometheus-operator`: example/prometheus-operator-crd
"""

from __future__ import annotations

from typing import Any, Final

Schema = dict[str, Any]

TEXT: Final[Schema] = {"type": "string"}
FLAG: Final[Schema] = {"type": "boolean"}
COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
SOME: Final[Schema] = {"type": "integer", "minimum": 1}
TEXTS: Final[Schema] = {"type": "object", "additionalProperties": TEXT}
NAME: Final[Schema] = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"}
LABEL: Final[Schema] = {"type": "string", "pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"}
QUANTITY: Final[Schema] = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|k|[KMGTPE]i?)?$"}
DURATION: Final[Schema] = {"type": "string", "pattern": "^([0-9]+(ms|[smhdwy]))+$"}


def one_of(*choices: str) -> Schema:
    return {"enum": list(choices)}


def many(items: Schema) -> Schema:
    return {"type": "array", "items": items, "minItems": 1}


def fields(*required: str, **known: Schema) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": known,
        "required": list(required),
        "additionalProperties": False,
    }


def resource(api_version: str, kind: str, spec: Schema) -> Schema:
    metadata = fields("name", name=NAME, namespace=NAME, labels=TEXTS, annotations=TEXTS)
    return fields(
        *("apiVersion", "kind", "metadata", "spec"),
        apiVersion={"const": api_version},
        kind={"const": kind},
        metadata=metadata,
        spec=spec,
    )


_AMOUNTS: Final[Schema] = {"type": "object", "additionalProperties": QUANTITY}
RESOURCES: Final = fields("requests", "limits", requests=_AMOUNTS, limits=_AMOUNTS)
SELECTOR: Final = fields(
    matchLabels=TEXTS,
    matchExpressions=many(
        fields(
            *("key", "operator"),
            key=TEXT,
            operator=one_of("In", "NotIn", "Exists", "DoesNotExist"),
            values=many(TEXT),
        )
    ),
)
APART: Final = fields(
    requiredDuringSchedulingIgnoredDuringExecution=many(
        fields("topologyKey", topologyKey=TEXT, labelSelector=SELECTOR)
    )
)
SCALING: Final = fields(
    stabilizationWindowSeconds={"type": "integer", "minimum": 0, "maximum": 3600},
    policies=many(
        fields(
            *("type", "value", "periodSeconds"),
            type=one_of("Pods", "Percent"),
            value=SOME,
            periodSeconds={"type": "integer", "minimum": 1, "maximum": 1800},
        )
    ),
)
TRIGGER: Final = fields(
    *("type", "metadata", "authenticationRef"),
    type={"const": "rabbitmq"},
    authenticationRef=fields("name", name=NAME),
    metadata=fields(
        *("protocol", "queueName", "mode", "value"),
        protocol=one_of("amqp", "http", "auto"),
        vhostName=TEXT,
        queueName=TEXT,
        mode=one_of("QueueLength", "MessageRate"),
        value={"type": "string", "pattern": "^[1-9][0-9]*$"},
    ),
)
RECORD: Final = fields("record", "expr", record=TEXT, expr=TEXT, labels=TEXTS)
ALERT: Final = fields(
    *("alert", "expr", "labels", "annotations"),
    alert=TEXT,
    expr=TEXT,
    labels=TEXTS,
    annotations=TEXTS,
    **{"for": DURATION, "keep_firing_for": DURATION},
)

CUSTOM_KINDS: Final[dict[str, Schema]] = {
    "RabbitmqCluster": resource(
        "rabbitmq.com/v1beta1",
        "RabbitmqCluster",
        fields(
            *("image", "replicas", "persistence", "resources"),
            image=TEXT,
            replicas=COUNT,
            resources=RESOURCES,
            terminationGracePeriodSeconds=COUNT,
            persistence=fields("storage", storage=QUANTITY, storageClassName=TEXT),
            rabbitmq=fields(additionalConfig=TEXT, additionalPlugins=many(TEXT)),
            tls=fields(secretName=TEXT, caSecretName=TEXT, disableNonTLSListeners=FLAG),
            affinity=fields(podAntiAffinity=APART),
        ),
    ),
    "Cluster": resource(
        "postgresql.cnpg.io/v1",
        "Cluster",
        fields(
            *("instances", "storage", "resources", "bootstrap"),
            instances=SOME,
            resources=RESOURCES,
            storage=fields("size", size=QUANTITY, storageClass=TEXT),
            bootstrap=fields(
                "initdb",
                initdb=fields(
                    *("database", "owner", "secret"),
                    database=TEXT,
                    owner=TEXT,
                    secret=fields("name", name=NAME),
                ),
            ),
            affinity=fields(podAntiAffinityType=one_of("preferred", "required")),
            postgresql=fields(
                parameters=TEXTS,
                synchronous=fields(
                    *("method", "number"), method=one_of("any", "first"), number=SOME
                ),
            ),
        ),
    ),
    "ScaledObject": resource(
        "keda.sh/v1alpha1",
        "ScaledObject",
        fields(
            *("scaleTargetRef", "minReplicaCount", "maxReplicaCount", "triggers"),
            scaleTargetRef=fields("name", name=NAME),
            minReplicaCount=COUNT,
            maxReplicaCount=SOME,
            pollingInterval=SOME,
            fallback=fields("failureThreshold", "replicas", failureThreshold=SOME, replicas=COUNT),
            advanced=fields(
                horizontalPodAutoscalerConfig=fields(
                    behavior=fields(scaleDown=SCALING, scaleUp=SCALING)
                )
            ),
            triggers=many(TRIGGER),
        ),
    ),
    "TriggerAuthentication": resource(
        "keda.sh/v1alpha1",
        "TriggerAuthentication",
        fields(
            "secretTargetRef",
            secretTargetRef=many(
                fields("parameter", "name", "key", parameter=TEXT, name=NAME, key=TEXT)
            ),
        ),
    ),
    "PodMonitor": resource(
        "monitoring.coreos.com/v1",
        "PodMonitor",
        fields(
            *("selector", "podMetricsEndpoints"),
            selector=SELECTOR,
            podMetricsEndpoints=many(
                fields(
                    "port",
                    port=TEXT,
                    path={"type": "string", "pattern": "^/"},
                    honorLabels=FLAG,
                    params={"type": "object", "additionalProperties": many(TEXT)},
                    relabelings=many(
                        fields("targetLabel", "replacement", targetLabel=LABEL, replacement=TEXT)
                    ),
                )
            ),
        ),
    ),
    "PrometheusRule": resource(
        "monitoring.coreos.com/v1",
        "PrometheusRule",
        fields(
            "groups",
            groups=many(
                fields(
                    *("name", "rules"),
                    name=TEXT,
                    interval=DURATION,
                    rules=many({"oneOf": [RECORD, ALERT]}),
                )
            ),
        ),
    ),
}
