"""The nodes of a cluster, named in one URL."""

from __future__ import annotations

import pytest

from saga.local.observe import address_of
from saga.runtime.messaging.connection import addresses_of


def test_a_url_of_one_node_is_its_only_address() -> None:
    assert addresses_of("amqp://order:secret@rabbit:5672/shop") == [
        "amqp://order:secret@rabbit:5672/shop"
    ]


def test_other_nodes_have_the_same_user_virtual_host_and_options() -> None:
    url = "amqps://order:p%40ss@rabbit-1:5671/shop?cafile=/ca.pem&also=rabbit-2:5673,rabbit-3"

    assert addresses_of(url) == [
        "amqps://order:p%40ss@rabbit-1:5671/shop?cafile=/ca.pem",
        "amqps://order:p%40ss@rabbit-2:5673/shop?cafile=/ca.pem",
        "amqps://order:p%40ss@rabbit-3/shop?cafile=/ca.pem",
    ]


def test_a_node_without_a_host_is_no_address() -> None:
    with pytest.raises(ValueError, match="':5672' names no host"):
        addresses_of("amqp://rabbit-1/?also=:5672")


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("amqp://order:secret@[::1]:5672/shop", "[::1]:5672"),
        ("http://127.0.0.1:9464/metrics", "127.0.0.1:9464"),
    ],
)
def test_what_is_scraped_is_named_without_credentials(url: str, address: str) -> None:
    assert address_of(url) == address
