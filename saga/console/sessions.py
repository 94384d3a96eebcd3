"""Who is logged in. What there is to know stays here; a browser has a random id, and no token."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from saga.auth.caller import Caller

SESSIONS_MAX: Final = 10_000
"""Beyond, the one that has been idle for longest ends."""
NOTED_MAX: Final = 256
"""Addresses of one session that are remembered as noted in the audit trail."""
ID_BYTES: Final = 32


@dataclass(slots=True)
class LoginSession:
    """One person in one browser, from login to logout."""

    caller: Caller
    csrf: str
    """What each form of theirs has in it, and no page of another site knows."""
    began_at: float
    """On the clock of `Sessions`, as the next one."""
    seen_at: float
    _noted: OrderedDict[str, None] = field(default_factory=OrderedDict)

    def is_news(self, what: str) -> bool:
        """Whether it is the first time that this is noted of them, as far as is remembered: a page
        that brings itself up to date is one look, not one every two seconds."""
        news = what not in self._noted
        self._noted[what] = None
        self._noted.move_to_end(what)
        if len(self._noted) > NOTED_MAX:
            self._noted.popitem(last=False)
        return news


class Sessions:
    """All sessions of a console: in memory, so they end with it. Belongs to one event loop."""

    def __init__(
        self,
        idle_seconds: float,
        longest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_seconds = idle_seconds
        self._longest_seconds = longest_seconds
        self._clock = clock
        self._secret = secrets.token_bytes(ID_BYTES)
        self._sessions: OrderedDict[str, LoginSession] = OrderedDict()
        """Keyed by digest of the id; the one that was used last stands last."""

    def begin(self, caller: Caller) -> str:
        """A new session, always under a new id, which is for the browser alone."""
        id_ = random_id()
        now = self._clock()
        self._sessions[_digest(id_)] = LoginSession(caller, self.csrf_of(id_), now, now)
        while len(self._sessions) > SESSIONS_MAX:
            self._sessions.popitem(last=False)
        return id_

    def find(self, id_: str, *, active: bool) -> LoginSession | None:
        """The session of that id, unless it has ended. `active` says that the person asks, and not
        a page that is open: only that keeps it from being idle."""
        digest = _digest(id_)
        session = self._sessions.get(digest)
        if session is None:
            return None
        now = self._clock()
        if (
            now - session.seen_at >= self._idle_seconds
            or now - session.began_at >= self._longest_seconds
        ):
            del self._sessions[digest]
            return None
        if active:
            session.seen_at = now
            self._sessions.move_to_end(digest)
        return session

    def end(self, id_: str) -> None:
        """End it, if there is one of that id."""
        self._sessions.pop(_digest(id_), None)

    def csrf_of(self, id_: str) -> str:
        """What proves that a form is from a page that the browser with this id was given."""
        return hmac.new(self._secret, id_.encode(), "sha256").hexdigest()


def random_id() -> str:
    """A secret that cannot be guessed: 256 random bits, in Base64."""
    return secrets.token_urlsafe(ID_BYTES)


def _digest(id_: str) -> str:
    # Looked up by digest, how long a look-up takes says nothing about ids that exist.
    return hashlib.sha256(id_.encode()).hexdigest()
