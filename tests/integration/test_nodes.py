"""Waiting for a broker's nodes before queues are made on them."""

from __future__ import annotations

import time

import pytest
import yarl

from saga.broker.setup import wait_for_nodes
from saga.local.node import RabbitNode
from saga.local.server import free_ports
from saga.runtime.messaging.connection import BrokerError


@pytest.fixture
def management(rabbit_node: RabbitNode) -> str:
    return str(yarl.URL(rabbit_node.management_url).with_user("guest").with_password("guest"))


async def test_a_broker_whose_nodes_all_run_is_not_waited_for(management: str) -> None:
    await wait_for_nodes(management, 1, patience_seconds=0.0)


async def test_a_node_that_does_not_run_is_waited_for_and_then_named(management: str) -> None:
    began = time.monotonic()

    with pytest.raises(BrokerError, match=r"1 of 2 nodes of RabbitMQ at .* run; .*--nodes") as said:
        await wait_for_nodes(management, 2, patience_seconds=0.6)
    assert time.monotonic() - began > 0.6
    assert "guest:guest" not in str(said.value)


async def test_a_management_api_that_never_answers_is_named() -> None:
    port = free_ports(["management"])["management"]

    with pytest.raises(BrokerError, match="cannot reach the management API"):
        await wait_for_nodes(f"http://127.0.0.1:{port}", 1, patience_seconds=0.6)
