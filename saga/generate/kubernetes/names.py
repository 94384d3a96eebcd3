"""What things of a saga are called in Kubernetes, which takes small letters, digits and hyphens."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from saga.generate.marks import GenerateError

_STRANGE: Final = re.compile(r"[^a-z0-9.-]+")
OURS: Final = ("any", "console", "exporter", "rabbitmq", "reconcile", "tool", "topology")
"""What there is besides the services."""


def called(name: str) -> str:
    """A name as Kubernetes takes it, for what may have a dot in it as well (a message's type)."""
    return _STRANGE.sub("-", name.lower()).strip("-.")


def checked(services: Iterable[str]) -> None:
    """Raises `GenerateError` for services that cannot be told apart, or from what there is
    besides."""
    known: dict[str, str] = {name: f"the {name} of every saga" for name in OURS}
    for name in services:
        there = called(name)
        if there in known or "." in there:
            raise GenerateError(
                f"the service {name!r} would be called {there!r} on Kubernetes, as "
                f"{known.get(there, 'nothing may be there')}; give it another name"
            )
        known[there] = f"the service {name!r}"


def together(documents: Iterable[str]) -> str:
    """Documents as one file has them."""
    return "---\n".join(documents)
