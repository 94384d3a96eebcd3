"""What a backup says of itself: a file that is written last, without which a folder is none."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from saga.backup import BackupError
from saga.backup.parts import DEAD_LETTERS, OUTSIDE
from saga.choreography import PARTITIONS_MAX
from saga.deployment import write_secret

MANIFEST: Final = "backup.json"
KIND: Final = "order-saga backup"
VERSION: Final = 1
MANIFEST_MAX_BYTES: Final = 1_000_000
_CHUNK_BYTES: Final = 1 << 20

Kind = Literal["sqlite", "postgresql"]
Progress = Callable[[int], None]
"""Is told how many bytes more are done."""

SUFFIXES: Final[dict[Kind, str]] = {"sqlite": ".db", "postgresql": ".pgdump"}


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Copied(_Document):
    """One database's copy, in a file of the backup's folder."""

    kind: Kind
    file: Annotated[str, Field(pattern=r"^(outside/)?[a-z][a-z0-9_]*\.(db|pgdump)$")]
    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    revision: str | None = None
    """The last script that made its tables."""
    events: int | None = None
    """How many events its service had published, or keeps."""


class StreamPlace(_Document):
    """How far the history had read its stream."""

    stream_number: int
    offset: int
    key: str


class Manifest(_Document):
    """A backup. All databases are as of `taken_at`."""

    backup: str = KIND
    version: int = VERSION
    program: str
    """The version of the program that took it."""
    taken_at: datetime
    pause_seconds: float
    """How long the services had to wait for the cut."""
    databases: Annotated[dict[str, Copied], Field(min_length=1)]
    """Keyed by service."""
    place: StreamPlace | None = None
    partitions: Annotated[int, Field(ge=1, le=PARTITIONS_MAX)] | None = None
    """How many each queue of the broker had that events are routed to; None where that was not
    known."""
    dead_letters: Copied | None = None
    """The operator's store, if there is one."""
    outside: dict[str, Copied] = {}
    """Keyed by name: the books that an outside keeps beside us: they are not ours, and only ever
    put where there are none."""

    @property
    def copies(self) -> Iterator[tuple[str, Copied]]:
        """Every copy there is, with its name."""
        yield from self.databases.items()
        if self.dead_letters is not None:
            yield DEAD_LETTERS, self.dead_letters
        for name, copied in self.outside.items():
            yield f"{OUTSIDE}/{name}", copied

    @model_validator(mode="before")
    @classmethod
    def _of_before(cls, given: Any) -> Any:
        """Of before there were several outsides."""
        if isinstance(given, dict) and "provider" in given:
            given = dict(given)
            ledger = given.pop("provider")
            given["outside"] = {"provider": ledger} if ledger else {}
        return given

    @property
    def size(self) -> int:
        """Bytes of all copies."""
        return sum(copied.bytes for _, copied in self.copies)

    def save(self, folder: Path) -> None:
        """Write it whole, or not at all. Raises `OSError`."""
        part = folder / f"{MANIFEST}.part"
        write_secret(part, self.model_dump_json(indent=2) + "\n")
        sync(part)
        part.replace(folder / MANIFEST)
        sync(folder)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What a backup's folder says. Raises `BackupError`."""
        path = folder / MANIFEST
        try:
            with path.open("rb") as file:
                text = file.read(MANIFEST_MAX_BYTES)
        except (FileNotFoundError, NotADirectoryError):
            raise BackupError(
                f"{folder} is no backup: it has no {MANIFEST}, which `saga backup` writes last"
            ) from None
        except OSError as error:
            raise BackupError(f"cannot read {path}: {error.strerror}") from error
        try:
            found = cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(map(str, first["loc"])) or "the document"
            raise BackupError(f"{path} is damaged: {where}: {first['msg']}") from None
        if found.backup != KIND:
            raise BackupError(f"{path} is of no backup of this program")
        if found.version != VERSION:
            raise BackupError(
                f"{path} is of version {found.version}; this program reads {VERSION}: use the "
                f"program's version {found.program}, which took it"
            )
        return found


def digest_of(path: Path, progress: Progress = lambda _: None) -> str:
    """The SHA-256 of a file, in hexadecimal. Raises `OSError`."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
            progress(len(chunk))
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush what a file or a folder holds to the disk. Raises `OSError`."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
