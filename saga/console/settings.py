"""How a console is served."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from saga.console import PORT
from saga.errors import InputError
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


def check_host(host: str, *, in_container: bool) -> None:
    """Nobody logs in yet, so only this machine may ask. Raises `InputError`."""
    try:
        local = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    if not local and not in_container:
        raise InputError(
            f"--host is {host!r}, and a console asks nobody who he is: serve it on 127.0.0.1, "
            f"behind a proxy that does ask; or, in a container whose port is published on "
            f"127.0.0.1 only, add --in-container"
        )
