"""PostgreSQL's own programs for copies: `pg_dump` and `pg_restore`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from saga.backup import BackupError
from saga.local.postgres import environment_for_programs, find_program
from saga.text import harmless

_GIST_CHARACTERS: Final = 400


async def dump(url: str, snapshot: str, file: Path) -> None:
    """Copy a database, as of an exported snapshot, into a file. Raises `BackupError` and
    `PostgresError`."""
    await _run(
        "pg_dump", url, f"--snapshot={snapshot}", "--format=custom", f"--file={file}", database=True
    )


async def restore(file: Path, url: str) -> None:
    """Fill a database from a copy, all of it or nothing; everything in it belongs to the URL's user
    then. Raises `BackupError` and `PostgresError`."""
    how = ("--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges")
    await _run("pg_restore", url, *how, str(file), database=True)


async def look_through(file: Path) -> None:
    """Read a copy's table of contents. Raises `BackupError` if it has none, and `PostgresError`."""
    await _run("pg_restore", "", "--list", str(file), database=False)


async def _run(name: str, url: str, *arguments: str, database: bool) -> None:
    dsn, password = _apart(url)
    connect = [f"--dbname={dsn}", "--no-password"] if database else []
    process = await asyncio.create_subprocess_exec(
        find_program(name),
        *connect,
        *arguments,
        # In its arguments, every user of the machine would see the password.
        env=environment_for_programs() | ({"PGPASSWORD": password} if password else {}),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, output = await process.communicate()
    except BaseException:
        if process.returncode is None:
            process.kill()
            await process.wait()
        raise
    if process.returncode:
        gist = " ".join(harmless(output.decode(errors="replace")).split())[:_GIST_CHARACTERS]
        raise BackupError(f"{name} failed: {gist or f'exit status {process.returncode}'}")


def _apart(url: str) -> tuple[str, str]:
    """A URL as PostgreSQL's programs take it, and the password that was in it."""
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    query = parse_qsl(parts.query, keep_blank_values=True)
    given = dict(query).get("password", unquote(password))
    rest = urlencode([(key, value) for key, value in query if key != "password"])
    dsn = urlunsplit(("postgresql", f"{name}{at}{hosts}", parts.path, rest, ""))
    return dsn, given
