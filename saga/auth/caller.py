"""Who asks, and what they may."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Final

from saga.text import harmless

EVERYTHING: Final = "*"
READS_PERSONS: Final = "personal:read"
GUARDED: Final = frozenset({"personal"})
"""What `*:read` and `*:write` leave out: it has to be granted by its name, or with everything."""
NAME_MAX: Final = 100
"""Characters, of what a record calls a caller."""
_REMEMBERED_MAX: Final = 4_096


class AuthMethod(StrEnum):
    """How a caller was known."""

    OFF = "off"
    """Not at all: authentication is off."""
    TOKEN = "token"  # noqa: S105 - a word, and no secret
    KEY = "key"
    LOGIN = "login"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `owner` ties a user to their own sagas; without one, a caller acts for all."""

    subject: str
    how: AuthMethod
    scopes: frozenset[str]
    owner: str | None = None
    name: str = ""
    """What a caller who acts for all calls themselves. None of an owner, whom it may name: what is
    recorded of callers outlives `saga forget`."""
    sealed_owner: str | None = None
    """What the owner's name is sealed as, where routes see sealed names."""

    def may(self, scope: str) -> bool:
        """Whether what was granted covers a scope such as `rooms:read`."""
        return covers(self.scopes, scope)

    def may_read(self, value: str) -> bool:
        """Whether a person's value, given in clear, is shown to this caller: it is their own, or
        all are."""
        return value == self.owner or self.may(READS_PERSONS)

    def acts_for(self, owner: str | None) -> bool:
        """Whether what belongs to `owner`, in clear or sealed, is this caller's business. What
        belongs to no owner is for callers who act for all."""
        if self.owner is None:
            return True
        return owner is not None and owner in (self.owner, self.sealed_owner)

    @property
    def recorded_as(self) -> str:
        """How a record names them: first what is unique, then what they call themselves."""
        subject, name = (harmless(text)[:NAME_MAX] for text in (self.subject, self.name))
        return f"{subject} ({name})" if name and name != subject else subject


ANYBODY: Final = Caller("anybody", AuthMethod.OFF, frozenset({EVERYTHING}))
"""Every caller where `AUTH` is off."""


class NotAllowed(Exception):
    """A caller who is not known. The reason is for the log: the client is told no more than what
    RFC 6750 has a word for."""

    def __init__(self, reason: str, *, presented: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.presented = presented
        """Whether a token or key came with the request."""


class IssuerAway(Exception):
    """The issuer's keys were never fetched, and cannot be now: no caller can be known."""


@lru_cache(_REMEMBERED_MAX)
def covers(granted: frozenset[str], scope: str) -> bool:
    """Whether one of the granted scopes covers this one. `*` covers all, `*:read` what is read,
    `rooms:*` all of rooms."""
    if EVERYTHING in granted or scope in granted:
        return True
    what, _, how = scope.partition(":")
    return f"{what}:*" in granted or (what not in GUARDED and f"*:{how}" in granted)
