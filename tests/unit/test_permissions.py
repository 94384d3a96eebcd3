"""Who may do what: the regular expressions allow exactly what the reactions ask for."""

from __future__ import annotations

import re

import pytest

from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import (
    OPERATOR,
    REPLAY,
    TopicPermission,
    User,
    only,
    users_of,
)
from saga.runtime.messaging.topology import queues_of, topology_of
from tests.circle import GRAPH

TOPOLOGY = topology_of(GRAPH)
USERS = {user.name: user for user in users_of(GRAPH)}
SERVICES = [participant.name for participant in GRAPH.participants]
NAMES = {
    *TOPOLOGY.exchanges,
    *(queue.name for queue in TOPOLOGY.queues),
    *("amq.default", "amq.topic", "amq.direct", "amq.fanout", "amq.headers", "amq.match", ""),
}
KEYS = {f"{event.type}.{priority}" for event in GRAPH.events for priority in ("high", "normal")}


def allowed(pattern: str, names: set[str]) -> set[str]:
    """As RabbitMQ reads it: a match anywhere will do."""
    return {name for name in names if re.search(pattern, name)}


def topic(user: User, exchange: str) -> TopicPermission:
    return next(topic for topic in user.topics if topic.exchange == exchange)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_declares_nothing_and_reads_its_own_queues_only(name: str) -> None:
    participant = next(p for p in GRAPH.participants if p.name == name)

    assert allowed(USERS[name].configure, NAMES) <= {""}
    assert allowed(USERS[name].read, NAMES) == set(queues_of(participant))


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_writes_the_sagas_exchanges_and_never_the_default_one(name: str) -> None:
    assert allowed(USERS[name].write, NAMES) == set(TOPOLOGY.exchanges)


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_publishes_its_own_event_types_only(name: str) -> None:
    participant = next(p for p in GRAPH.participants if p.name == name)
    own = {f"{e.type}.{priority}" for e in participant.publishes for priority in ("high", "normal")}

    assert allowed(topic(USERS[name], "saga.events").write, KEYS) == own


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_sets_aside_under_its_own_names_only(name: str) -> None:
    participant = next(p for p in GRAPH.participants if p.name == name)
    for exchange in TOPOLOGY.exchanges:
        if exchange.startswith("saga.retry."):
            keys = allowed(topic(USERS[name], exchange).write, NAMES)
            assert keys == set(queues_of(participant))
    assert allowed(topic(USERS[name], "saga.dead").write, set(SERVICES)) == {name}


@pytest.mark.parametrize("name", USERS)
def test_every_topic_exchange_that_may_be_written_has_a_record_of_routing_keys(name: str) -> None:
    """Without one, RabbitMQ allows every key."""
    user = USERS[name]

    writable = allowed(user.write, set(TOPOLOGY.exchanges))

    assert writable <= {topic.exchange for topic in user.topics}


def test_only_operators_reach_queues_by_the_default_exchange() -> None:
    assert {name for name, user in USERS.items() if re.search(user.write, "amq.default")} == {
        OPERATOR,
        REPLAY,
    }


def test_the_replay_user_reads_dead_letters_and_the_history_and_declares_nothing() -> None:
    replay = USERS[REPLAY]
    dead = {f"{name}.dlq" for name in SERVICES}

    assert allowed(replay.read, NAMES) == {*dead, "saga.history"}
    assert allowed(replay.write, NAMES) == {"amq.default"}
    assert allowed(replay.configure, NAMES) <= {""}


def test_names_are_taken_literally_and_whole() -> None:
    pattern = only(["a.b", "c+d"])

    assert allowed(pattern, {"a.b", "c+d", "axb", "a.b.c", "xa.b", "ccd", ""}) == {"a.b", "c+d"}
    assert allowed(only([]), {"a", ""}) == {""}


def test_a_password_is_exported_as_a_salted_hash_only() -> None:
    passwords = {name: f"secret of {name}" for name in USERS}

    first = definitions(TOPOLOGY, users_of(GRAPH), passwords=passwords)
    second = definitions(TOPOLOGY, users_of(GRAPH), passwords=passwords)

    assert "secret" not in str(first)
    assert all(user["password_hash"] for user in first["users"])
    assert first["users"] != second["users"]


def test_an_observer_reads_the_history_and_does_nothing_else() -> None:
    history = USERS["history"]

    assert allowed(history.read, NAMES) == {"saga.history"}
    assert allowed(history.configure, NAMES) | allowed(history.write, NAMES) <= {""}
    assert history.topics == ()
