"""The task tracker as it was before anything was counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from saga import Saga

from taskflow import ANALYTICS
from taskflow import SAGA as NOW

SAGA: Final[Saga] = replace(
    NOW, participants=tuple(each for each in NOW.participants if each is not ANALYTICS)
)
