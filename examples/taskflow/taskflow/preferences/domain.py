"""What a user prefers: a digest, unless they have said otherwise, perhaps before we knew them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Self

from saga import Decided, Participant, State

from taskflow.language import ChangePreferences, PreferencesSet, UserRegistered


@dataclass(frozen=True, slots=True)
class Preferences(State):
    """The preferences of one user; None where nothing was said of them."""

    digest: bool | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, digest=message.digest) if isinstance(message, PreferencesSet) else self


def begin(event: UserRegistered, preferences: Preferences) -> PreferencesSet | None:
    if preferences.digest is not None:
        return None
    return PreferencesSet(user=event.user, digest=True)


def change(command: ChangePreferences, preferences: Preferences) -> PreferencesSet | None:
    if preferences.digest is command.digest:
        return None
    return PreferencesSet(user=command.user, digest=command.digest)


PARTICIPANT = Participant("preferences", begin, change)
