"""Topology and permissions as the JSON document that RabbitMQ imports and exports."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from saga.runtime.messaging.permissions import User, name_on_broker
from saga.runtime.messaging.topology import HASH_ARGUMENTS, HASH_TYPE, Topology

SALT_BYTES = 4  # RabbitMQ's own number.
HASHING = "rabbit_password_hashing_sha256"

Definitions = dict[str, Any]


def definitions(
    topology: Topology,
    users: Sequence[User] = (),
    *,
    passwords: Mapping[str, str] | None = None,
    virtual_host: str = "/",
) -> Definitions:
    """What the broker is to hold, with the passwords as salted hashes.

    Users are called as `name_on_broker` says; `passwords` are keyed by their names without that.
    A user for whom there is no password cannot log in; importing such a user takes the password
    from one who is there already.
    """
    here = {"vhost": virtual_host}
    named = {user.name: name_on_broker(user.name, virtual_host) for user in users}
    return {
        "generated_by": "saga topology export: edit the reactions, not this file",
        "vhosts": [{"name": virtual_host}],
        "users": [_user(named[user.name], (passwords or {}).get(user.name)) for user in users],
        "permissions": [{"user": named[user.name], **here, **permission(user)} for user in users],
        "topic_permissions": [
            {
                "user": named[user.name],
                **here,
                "exchange": topic.exchange,
                "write": topic.write,
                "read": topic.read,
            }
            for user in users
            for topic in user.topics
        ],
        "exchanges": [
            {
                "name": name,
                **here,
                "type": type_,
                "durable": True,
                "auto_delete": False,
                "internal": False,
                "arguments": dict(arguments),
            }
            for names, type_, arguments in (
                (topology.exchanges, "topic", {}),
                (topology.hashes, HASH_TYPE, HASH_ARGUMENTS),
            )
            for name in names
        ],
        "queues": [
            {
                "name": queue.name,
                **here,
                "durable": True,
                "auto_delete": False,
                "arguments": dict(queue.arguments),
            }
            for queue in topology.queues
        ],
        "bindings": [
            {
                "source": binding.exchange,
                **here,
                "destination": binding.queue,
                "destination_type": "exchange" if binding.hashed else "queue",
                "routing_key": binding.key,
                "arguments": {},
            }
            for binding in topology.bindings
        ],
    }


def permission(user: User) -> dict[str, str]:
    """A user's permissions in one virtual host, by what they permit."""
    return {"configure": user.configure, "write": user.write, "read": user.read}


def text(document: Definitions) -> str:
    """The document as the text of a file."""
    return json.dumps(document, indent=2) + "\n"


def _user(name: str, password: str | None) -> dict[str, Any]:
    said: dict[str, Any] = {"name": name, "tags": []}
    if password is not None:
        said |= {"password_hash": password_hash(password), "hashing_algorithm": HASHING}
    return said


def password_hash(password: str) -> str:
    """The hash that RabbitMQ keeps of a password, with a new salt.

    https://www.rabbitmq.com/docs/passwords#computing-password-hash
    """
    salt = secrets.token_bytes(SALT_BYTES)
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()
