"""Which partitions there are by the choreography, whose they are, and who may read them."""

from __future__ import annotations

import re

import pytest

from saga.runtime.messaging.partitions import owned
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import (
    HISTORY_STREAM,
    divisible,
    is_partition,
    partition_queue,
    queues_of,
    reads,
    telltale,
    topology_of,
    undivided,
)
from tests.circle import GRAPH
from tests.ordering import compare

DIVIDED = topology_of(GRAPH, 3)
PARTITIONS = {"a.high": 4, "a.normal": 4}


def test_undivided_queues_are_what_they_were() -> None:
    topology = topology_of(GRAPH)
    assert not topology.hashes
    assert not any(binding.hashed for binding in topology.bindings)
    assert not any(is_partition(queue.name) for queue in topology.queues)


def test_a_divided_queue_stays_and_gets_partitions_with_one_consumer_at_a_time() -> None:
    queues = {queue.name: queue for queue in DIVIDED.queues}
    for participant in GRAPH.participants:
        for name in divisible(GRAPH, participant):
            whole = dict(queues[name].arguments)
            for number in range(3):
                part = dict(queues[partition_queue(name, number)].arguments)
                assert part.pop("x-single-active-consumer") is True
                assert part == whole
            assert f"{name}.3" not in queues


def test_every_key_leads_to_a_divided_queue_or_the_history() -> None:
    bound = [binding for binding in DIVIDED.bindings if binding.exchange == "saga.events"]
    assert {b.queue for b in bound if not b.hashed} == {HISTORY_STREAM}
    assert {b.queue for b in bound if b.hashed} == set(DIVIDED.hashes)


def test_the_telltale_of_a_participant_is_divided_last() -> None:
    names = [queue.name for queue in DIVIDED.queues if is_partition(queue.name)]
    for participant in GRAPH.participants:
        own = [name for name in names if reads(participant, name)]
        if own:
            assert undivided(own[-1]) == telltale(participant)


def test_the_history_is_declared_after_all_partitions() -> None:
    assert DIVIDED.queues[-1].name == HISTORY_STREAM


@pytest.mark.parametrize("replicas", [1, 2, 3, 4, 5])
def test_each_partition_belongs_to_one_replica(replicas: int) -> None:
    members = [f"r{number}" for number in range(replicas)]
    parts = [owned(PARTITIONS, members, replica) for replica in members]
    assert sum(map(len, parts)) == 8
    assert set().union(*parts) == {f"{queue}.{n}" for queue in PARTITIONS for n in range(4)}


def test_a_replica_has_the_same_partitions_of_each_queue() -> None:
    assert owned(PARTITIONS, ["a", "b"], "b") == {
        "a.high.1",
        "a.high.3",
        "a.normal.1",
        "a.normal.3",
    }


def test_a_replica_whose_lease_has_run_out_has_no_partitions() -> None:
    assert owned(PARTITIONS, ["a", "b"], "c") == set()


def test_services_may_read_partitions_that_come_later_and_none_of_others() -> None:
    users = {user.name: user for user in users_of(GRAPH)}
    for participant in GRAPH.participants:
        for other in GRAPH.participants:
            for queue in queues_of(other):
                part = partition_queue(queue, 17)
                may = re.search(users[participant.name].read, part) is not None
                assert may == (participant is other and queue in divisible(GRAPH, other))


def test_what_overtakes_another_is_found() -> None:
    first = _event(b"1", "/a", 1)
    second = _event(b"2", "/a", 2)
    inverted = [first, second, _event(b"3", "/b", 1, "2"), _event(b"4", "/b", 2, "1")]
    found, pairs = compare(inverted)
    assert (len(found), pairs) == (1, 1)
    kept = [first, second, _event(b"3", "/b", 1, "1"), _event(b"4", "/b", 2, "2")]
    assert compare(kept) == ([], 1)


def _event(id: bytes, source: str, sequence: int, cause: str = "") -> tuple[str, bytes]:
    body = (
        b'{"id": "%b", "source": "%b", "correlationid": "s", "type": "t", "sequence": "%d", '
        b'"causationid": "%b"}' % (id, source.encode(), sequence, cause.encode())
    )
    return "t.normal", body
