"""What is counted, under which labels, and in which format it is told."""

from __future__ import annotations

import gc
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.openmetrics.parser import text_string_to_metric_families
from prometheus_client.values import MutexValue

from bench.metrics_cost import last_message
from saga.choreography import Participant
from saga.discovery import participants
from saga.runtime.garbage import YOUNG_OBJECTS, collected_seldom
from saga.runtime.metrics import (
    GENERATIONS,
    UNKNOWN,
    URGENT_OBJECTIVE_SECONDS,
    ConsumerMetrics,
    GarbageMetrics,
    KernelMetrics,
    exposition,
    types_of,
)

OPEN_METRICS = "application/openmetrics-text;version=1.0.0"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARTICIPANTS = sorted(participants().values(), key=lambda participant: participant.name)


def samples(name: str) -> list[dict[str, str]]:
    """The labels of each sample of that name."""
    return [
        sample.labels
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name
    ]


@pytest.mark.parametrize("participant", PARTICIPANTS, ids=lambda participant: participant.name)
def test_every_message_type_is_there_before_the_first_message(participant: Participant) -> None:
    KernelMetrics(participant)

    found = [
        (labels["type"], labels["outcome"])
        for labels in samples("saga_messages_consumed_total")
        if labels["participant"] == participant.name and labels["type"] in types_of(participant)
    ]
    assert {type_ for type_, _ in found} == set(types_of(participant))
    assert {outcome for _, outcome in found} >= {"done", "duplicate", "failed"}


def test_the_type_of_an_unknown_message_is_no_label() -> None:
    consumer = ConsumerMetrics(PARTICIPANTS[0])

    consumer.undecodable("order.placed/3f8c")
    consumer.dead_lettered(None, "malformed", None)

    types = {labels["type"] for labels in samples("saga_messages_dead_lettered_total")}
    types |= {labels["type"] for labels in samples("saga_messages_consumed_total")}
    assert UNKNOWN in types
    assert "order.placed/3f8c" not in types


def test_exemplars_carry_the_trace_id_and_only_open_metrics_has_them() -> None:
    participant = PARTICIPANTS[0]
    traceparent = f"00-{TRACE}-b7ad6b7169203331-01"
    ConsumerMetrics(participant).dead_lettered(None, "malformed", traceparent)

    content, media_type = exposition(OPEN_METRICS)
    plain, plain_media_type = exposition("")

    exemplars = [
        sample.exemplar.labels
        for family in text_string_to_metric_families(content.decode())  # type: ignore[no-untyped-call]  # comes without types
        for sample in family.samples
        if sample.exemplar is not None and sample.name == "saga_messages_dead_lettered_total"
    ]
    assert {"trace_id": TRACE} in exemplars
    assert media_type.startswith("application/openmetrics-text; version=1.0.0")
    assert plain_media_type.startswith("text/plain")
    assert TRACE not in plain.decode()


def test_the_objective_for_urgent_sagas_ends_at_a_bucket() -> None:
    last_message()

    edges = {labels["le"] for labels in samples("saga_seconds_bucket")}
    assert f"{URGENT_OBJECTIVE_SECONDS}.0" in edges


def test_names_end_in_their_unit_or_say_what_is_counted() -> None:
    ours = [family for family in REGISTRY.collect() if family.name.startswith("saga_")]
    assert ours
    for family in ours:
        assert family.documentation.endswith("."), family.name
        if family.type == "histogram":
            assert re.fullmatch(r"saga_(\w+_)?(seconds|messages)", family.name), family.name


def test_a_message_takes_ten_increments_and_looks_no_label_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = last_message()
    looked_up: list[Any] = []
    increments: list[Any] = []
    labels = MetricWrapperBase.labels

    def look_up(metric: MetricWrapperBase, *values: Any, **named: Any) -> MetricWrapperBase:
        looked_up.append(values)
        return labels(metric, *values, **named)

    monkeypatch.setattr(MetricWrapperBase, "labels", look_up)
    for name in ("Counter.inc", "Histogram.observe"):
        kind, _, method = name.partition(".")
        monkeypatch.setattr(f"prometheus_client.{kind}.{method}", counted(kind, method, increments))

    count()  # the first event of a type may look its label up
    looked_up.clear()
    increments.clear()
    count()

    assert looked_up == []
    assert 0 < len(increments) <= 10


def pauses(generation: int) -> float:
    labels = {"participant": "toy", "generation": str(generation)}
    return REGISTRY.get_sample_value("saga_gc_pause_seconds_count", labels) or 0.0


def test_each_pause_of_the_garbage_collector_is_counted_until_the_end() -> None:
    callbacks, threshold = list(gc.callbacks), gc.get_threshold()

    with collected_seldom("toy"):
        gc.disable()  # None but these.
        try:
            before = [pauses(generation) for generation in range(GENERATIONS)]
            for generation in (0, 0, 2):
                gc.collect(generation)
            after = [pauses(generation) for generation in range(GENERATIONS)]
        finally:
            gc.enable()
        assert gc.get_threshold() == (YOUNG_OBJECTS, *threshold[1:])
        assert gc.get_freeze_count() > 0

    assert [a - b for a, b in zip(after, before, strict=True)] == [2, 0, 1]
    assert samples("saga_gc_pause_seconds_count") == []
    assert (list(gc.callbacks), gc.get_threshold()) == (callbacks, threshold)
    assert gc.get_freeze_count() == 0


def test_garbage_may_be_collected_while_metrics_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The metrics library holds locks then; a callback that takes one would wait for ever."""

    def get(value: MutexValue) -> float:
        with value._lock:
            gc.collect(0)
            found: float = value._value
            return found

    monkeypatch.setattr(MutexValue, "get", get)
    with collected_seldom("toy"):
        exposition(OPEN_METRICS)

        assert pauses(0) > 0


def test_a_pause_is_counted_without_a_container_for_it() -> None:
    """What the collector's callback made would be the collector's work."""
    metrics = GarbageMetrics("toy")
    try:
        info = {"generation": 0, "collected": 0, "uncollectable": 0}
        metrics.collecting("start", info)
        metrics.collecting("stop", info)
        gc.collect()
        before = len(gc.get_objects())
        for _ in range(100):
            metrics.collecting("start", info)
            metrics.collecting("stop", info)
        assert len(gc.get_objects()) == before
    finally:
        metrics.close()


def counted(kind: str, method: str, calls: list[Any]) -> Callable[..., None]:
    import prometheus_client

    original = getattr(getattr(prometheus_client, kind), method)

    def call(*arguments: Any, **named: Any) -> None:
        calls.append(method)
        original(*arguments, **named)

    return call
