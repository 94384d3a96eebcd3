"""URLs of brokers, servers and files: made, read in one way only, and shown without passwords."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import yarl

from saga.text import harmless

SQLITE_SCHEMES: Final = ("sqlite", "sqlite+pysqlite")

_AFTER_HOST: Final = re.compile(r"^[^/?#]*//[^/?#]*[/?#](?P<rest>.*)$", re.DOTALL)
_CREDENTIALS: Final = re.compile(r"^.*@", re.DOTALL)
# From the first colon to the last @: of a password that was not encoded, no part is left.
_PASSWORD: Final = re.compile(r"(?<=://)([^/@\s:\"]*):[^\s\"]*(?=@)")


def unambiguous(url: str) -> str:
    """The URL, if its user and password end where they seem to. Raises ValueError, which does not
    quote it.

    With a slash in its password, `amqp://trip:12/34@broker/` names the host `trip`.
    """
    match = _AFTER_HOST.match(url)
    if match is not None and "@" in match["rest"]:
        raise ValueError(
            "it has an @ after its host; write special characters of user, password and path as "
            "%XX: %2F for /, %3F for ?, %23 for #, %40 for @"
        )
    return url


def text_of(url: yarl.URL) -> str:
    """The URL as a text that is `unambiguous`: yarl writes an encoded @ of the path as such."""
    text = str(url)
    match = _AFTER_HOST.match(text)
    if match is None:
        return text
    start = match.start("rest")
    return text[:start] + text[start:].replace("@", "%40")


def printable(url: str) -> str:
    """A URL without its password, also where it is no valid one."""
    try:
        parsed = yarl.URL(unambiguous(url))
        if not parsed.host:
            raise ValueError
    except ValueError:
        return harmless(_CREDENTIALS.sub("***@", url))
    return harmless(text_of(parsed.with_password("***") if parsed.password else parsed))


def without_passwords(text: str) -> str:
    """A text that may quote URLs, without the passwords in them."""
    return _PASSWORD.sub(r"\1:***", text) if "://" in text else text


def sqlite_url(path: Path) -> str:
    """The URL of a SQLite file, whatever characters its name has."""
    import sqlalchemy as sa  # Takes a while, which `saga --help` need not wait for.

    url = sa.URL.create(SQLITE_SCHEMES[0], database=str(path.absolute()))
    return url.render_as_string(hide_password=False)


def sqlite_path(url: str) -> Path | None:
    """The file that a SQLite URL names; None if it names none. Raises ValueError for any other
    URL, which is not quoted."""
    import sqlalchemy as sa

    try:
        parsed = sa.engine.make_url(url)
    except (sa.exc.ArgumentError, ValueError):  # of a port, which quotes it
        raise ValueError("it is no URL of a database") from None
    if parsed.drivername not in SQLITE_SCHEMES:
        raise ValueError("it is no URL of a SQLite file")
    if "?" in url:  # A file of another name would be opened.
        raise ValueError("it has options, which no SQLite URL has here; write a ? of a name as %3F")
    if parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))
