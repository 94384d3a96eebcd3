"""How a console is served."""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field, SecretStr

from saga.console import PORT
from saga.runtime.settings import HttpSettings

_PREFIX: Final = re.compile(r"(/[\w.~-]+)*")


def _prefix(text: str) -> str:
    text = text.rstrip("/")
    if not _PREFIX.fullmatch(text):
        raise ValueError(f"{text!r} is no path to put before others; write it like /saga")
    return text


def _trace_url(text: str) -> str:
    if text and not (text.startswith(("http://", "https://")) and "{trace_id}" in text):
        raise ValueError(f"{text!r} is no address of a trace; write http://host/trace/{{trace_id}}")
    return text


def _login_scope(text: str) -> str:
    if "openid" not in text.split():
        raise ValueError("it has no `openid`, without which there is no id token; add that")
    return text


class ConsoleSettings(HttpSettings):
    """A console's settings; those of the command line come before the environment's."""

    http_port: int = PORT
    console_write: bool = False
    """Whether it may change anything: replay, discard, bring forward."""
    console_prefix: Annotated[str, AfterValidator(_prefix)] = ""
    """The path under which a proxy has it."""
    console_bodies: bool = False
    """Whether it shows what is in messages: personal data, as a rule."""
    body_max_bytes: Annotated[int, Field(ge=1024)] = 262_144
    """A form may have a letter's payload in it, percent-encoded."""
    console_trace_url: Annotated[str, AfterValidator(_trace_url)] = ""
    """Where traces are shown: an address with `{trace_id}` in it."""
    management_url: str | None = None
    """The broker's management API, as an administrator: then it is told how the broker differs from
    the signatures."""
    auth_client_id: str | None = None
    """What the issuer knows this console as; then people log in there."""
    auth_client_secret: SecretStr | None = None
    """What the console proves that with; none for a public client."""
    auth_login_scope: Annotated[str, AfterValidator(_login_scope)] = "openid profile"
    """What the issuer is asked for, so that the id token has the claim of the roles."""
    console_session_idle_minutes: Annotated[float, Field(gt=0, le=10_080)] = 30.0
    """A user who is idle for so long is logged out."""
    console_session_hours: Annotated[float, Field(gt=0, le=720)] = 10.0
    """A user who has been logged in for so long logs in again."""
