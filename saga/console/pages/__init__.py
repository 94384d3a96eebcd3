"""The pages, each with its routes."""

from __future__ import annotations

from typing import Final

from saga.console.pages import (
    audit,
    books,
    decide,
    due,
    keys,
    letters,
    login,
    messages,
    proof,
    replays,
    sagas,
    services,
    stuck,
    trail,
    waiting,
    whole_map,
)

PAGES: Final = tuple(
    module.routes
    for module in (
        whole_map,
        messages,
        sagas,
        letters,
        replays,
        stuck,
        waiting,
        due,
        books,
        decide,
        proof,
        services,
        audit,
        trail,
        keys,
        login,
    )
)
