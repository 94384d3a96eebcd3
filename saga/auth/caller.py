"""Who asks, and what they may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

EVERYTHING: Final = "*"
GUARDED: Final = frozenset({"personal"})
"""What `*:read` and `*:write` leave out: it has to be granted by its name, or with everything."""
_REMEMBERED_MAX: Final = 4_096


class How(StrEnum):
    """How a caller was known."""

    OFF = "off"
    """Not at all: nobody is asked who they are."""
    TOKEN = "token"  # noqa: S105 - a word, and no secret
    KEY = "key"
    LOGIN = "login"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `owner` ties a person to their own sagas; without one, a caller acts for all."""

    subject: str
    how: How
    scopes: frozenset[str]
    owner: str | None = None
    name: str = ""

    def may(self, scope: str) -> bool:
        """Whether what was granted covers a scope such as `rooms:read`."""
        return covers(self.scopes, scope)

    def acts_for(self, owner: str) -> bool:
        """Whether what belongs to `owner` is this caller's to see and to change."""
        return self.owner is None or self.owner == owner


ANYBODY: Final = Caller("anybody", How.OFF, frozenset({EVERYTHING}))
"""Whoever asks where `AUTH` is off."""


class NotAllowed(Exception):
    """A caller who is not known. The reason is for the log: the client is told no more than what
    RFC 6750 has a word for."""

    def __init__(self, reason: str, *, presented: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.presented = presented
        """Whether a token or key came with the request."""


class IssuerAway(Exception):
    """The issuer's keys were never fetched, and cannot be now: nobody can be known."""


@lru_cache(_REMEMBERED_MAX)
def covers(granted: frozenset[str], scope: str) -> bool:
    """Whether one of the granted scopes covers this one. `*` covers all, `*:read` what is read,
    `rooms:*` all of rooms."""
    if EVERYTHING in granted or scope in granted:
        return True
    what, _, how = scope.partition(":")
    return f"{what}:*" in granted or (what not in GUARDED and f"*:{how}" in granted)
