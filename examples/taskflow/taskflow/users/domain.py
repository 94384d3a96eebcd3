"""A user: registered once. Nothing ends a user, and nothing has to follow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from saga import Decided, Participant, State

from taskflow.language import RegisterUser, UserRegistered


@dataclass(frozen=True, slots=True)
class User(State):
    """What is known of one user."""

    registered_at: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, registered_at=at) if isinstance(message, UserRegistered) else self


def register(command: RegisterUser, user: User) -> UserRegistered | None:
    return UserRegistered(user=command.user) if user.registered_at is None else None


PARTICIPANT = Participant("users", register)
