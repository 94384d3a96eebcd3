"""Parcels whose printer `saga up` starts: the program that `LABEL_PROGRAM` names, or none."""

from __future__ import annotations

import os
from typing import Final

from saga.declaration import Saga
from saga.foreign import Foreign
from tests.parcels import LABEL
from tests.parcels import SAGA as PARCELS


def _label(*command: str) -> Foreign:
    return Foreign(
        LABEL.name, *(reaction.function for reaction in LABEL.reactions), command=command
    )


SAGA: Final[Saga] = PARCELS.with_(_label("node", os.environ.get("LABEL_PROGRAM", "main.mjs")))
LOST: Final[Saga] = PARCELS.with_(_label("no-such-program"))
