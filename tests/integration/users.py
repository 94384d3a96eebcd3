"""A graph's users on a broker of the test's."""

from __future__ import annotations

import yarl

from saga.broker.management import Management
from saga.broker.setup import apply_topology, virtual_host_of
from saga.choreography import Choreography
from saga.local.node import RabbitNode
from saga.runtime.messaging.permissions import name_on_broker, users_of

Users = dict[str, str]
"""Keyed by user: the URL to connect to as such."""


async def make_users(amqp_url: str, node: RabbitNode, graph: Choreography) -> Users:
    """The graph's topology and users on an empty virtual host, through the management API."""
    await apply_topology(amqp_url, graph)
    users = users_of(graph)
    passwords = {user.name: f"that of {user.name}" for user in users}
    url = yarl.URL(amqp_url)
    management = str(yarl.URL(node.management_url).with_user("guest").with_password("guest"))
    async with Management(management) as api:
        await api.put_users(users, passwords, virtual_host_of(amqp_url))
    return {
        name: str(
            url.with_user(name_on_broker(name, virtual_host_of(amqp_url))).with_password(password)
        )
        for name, password in passwords.items()
    }
