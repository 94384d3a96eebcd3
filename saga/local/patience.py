"""How long what is started on this machine may take: `START_SECONDS`."""

from __future__ import annotations

import time
from typing import Annotated, Final

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from saga.runtime.settings import load

WAY_OUT: Final = "a busy machine takes longer: set START_SECONDS to more"


class StartSettings(BaseSettings):
    """What `saga` reads from the environment about starting."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    start_seconds: Annotated[float, Field(gt=0, le=3600)] = 180.0
    """How long a broker, a database server, a service or one of their own commands may take until
    it is ready. One that ends before is noticed at once."""


def start_seconds() -> float:
    """How long something that is started may take. Raises `SettingsError`."""
    return load(StartSettings).start_seconds


class StartDeadline:
    """The time that something has which is being started."""

    def __init__(self, seconds: float | None = None) -> None:
        """Begins now; by default as long as `START_SECONDS` says. Raises `SettingsError`."""
        self.seconds = start_seconds() if seconds is None else seconds
        self._deadline = time.monotonic() + self.seconds

    @property
    def is_over(self) -> bool:
        return time.monotonic() > self._deadline

    def lost_with(self, name: str, said: str) -> str:
        """What to say when the time is over: who was not ready, and what that said last."""
        return f"{name} was not ready within {self.seconds:g} s: {said}; {WAY_OUT}"
