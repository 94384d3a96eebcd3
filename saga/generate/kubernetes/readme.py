from __future__ import annotations

from saga.declaration import Saga


def readme(saga: Saga) -> str:
    return "x\n"
