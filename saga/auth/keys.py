"""API keys: made once, kept as hashes in a file, revoked by taking them out of it.

A key reads `sagakey_<id>_<secret>`: who sees one in a log knows what it is and which to revoke. Its
256 random bits need no slow hash, so that a caller is known in microseconds.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final, NamedTuple

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from saga.auth.caller import AuthMethod, Caller, NotAllowed
from saga.errors import Explained, InputError
from saga.personal.seal import sealed
from saga.runtime.files import locked, write_whole
from saga.runtime.urls import printable

log = logging.getLogger(__name__)

PREFIX: Final = "sagakey_"
SUBJECT_PREFIX: Final = "key:"
"""Before a key's id: so who has it is called."""
SECRET_BYTES: Final = 32
ID_BYTES: Final = 5
KEYS_MAX: Final = 1_000
FILE_MAX_BYTES: Final = 1_000_000
NAME_MAX: Final = 128
"""Characters."""
SCOPES_MAX: Final = 64
LOOK_SECONDS: Final = 1.0
"""From one look at the file to the next: so soon a change counts."""
USED_SECONDS: Final = 60.0
"""From one note that a key was used to the next."""
USED_FOLDER: Final = "keys"
_KEY: Final = re.compile(rf"{PREFIX}([0-9a-f]{{{2 * ID_BYTES}}})_([\w-]{{43}})", re.ASCII)
SCOPE: Final = re.compile(r"\*|(\*|[a-z][a-z0-9_-]*):(\*|[a-z][a-z0-9_-]*)")
_OWNER_ONLY: Final = 0o600

Scope = Annotated[str, Field(pattern=rf"^({SCOPE.pattern})$", max_length=64)]


class KeysError(Explained):
    """A file of keys that cannot be read or written. Names it."""


class ApiKey(BaseModel):
    """One key, without its secret. Times are UTC."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: Annotated[str, Field(pattern=rf"^[0-9a-f]{{{2 * ID_BYTES}}}$")]
    name: Annotated[str, Field(min_length=1, max_length=NAME_MAX)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """Of the whole key."""
    scopes: Annotated[tuple[Scope, ...], Field(min_length=1, max_length=SCOPES_MAX)]
    owner: Annotated[str, Field(min_length=1, max_length=255)] | None = None
    """Whose sagas it acts on, if not on all."""
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = None

    def is_live(self, now: datetime) -> bool:
        return self.expires_at is None or now < self.expires_at

    @property
    def ends_at(self) -> float:
        """In seconds since 1970; infinite for one that has no end."""
        return math.inf if self.expires_at is None else self.expires_at.timestamp()

    @property
    def caller(self) -> Caller:
        return Caller(
            f"{SUBJECT_PREFIX}{self.id}",
            AuthMethod.KEY,
            frozenset(self.scopes),
            self.owner,
            "" if self.owner is not None else self.name,
        )


class _KeysDocument(BaseModel):
    model_config = ConfigDict(extra="ignore")

    keys: Annotated[tuple[ApiKey, ...], Field(max_length=KEYS_MAX)] = ()


def new_key(
    name: str,
    scopes: Iterable[str],
    *,
    owner: str | None = None,
    expires_at: datetime | None = None,
    now: datetime,
) -> tuple[str, ApiKey]:
    """A key, and what is kept of it. Raises `InputError`."""
    scopes = sorted(set(scopes))
    for scope in scopes:
        if not SCOPE.fullmatch(scope):
            raise InputError(f"{printable(scope)!r} is no scope; write rooms:write, *:read or *")
    if owner is not None and sealed(owner):
        raise InputError("an owner is named in clear, and this is a sealed text")
    id = secrets.token_hex(ID_BYTES)
    text = f"{PREFIX}{id}_{secrets.token_urlsafe(SECRET_BYTES)}"
    try:
        return text, ApiKey(
            id=id,
            name=name,
            sha256=_digest(text),
            scopes=tuple(scopes),
            owner=owner,
            created_at=now,
            expires_at=expires_at,
        )
    except ValidationError as error:
        why = "; ".join(
            f"{'.'.join(map(str, found['loc']))}: {found['msg']}"
            for found in error.errors(include_url=False)
        )
        raise InputError(f"no such key can be made: {why}") from None


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def read_keys(file: Path) -> tuple[ApiKey, ...]:
    """The keys in a file; none if it is not there. Raises `KeysError`."""
    try:
        with file.open("rb") as stream:
            content = stream.read(FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        return ()
    except OSError as error:
        raise KeysError(f"cannot read the API keys in {file}: {error.strerror}") from None
    if len(content) > FILE_MAX_BYTES:
        raise KeysError(f"{file} is longer than {FILE_MAX_BYTES} bytes: revoke keys in it")
    try:
        return _KeysDocument.model_validate_json(content).keys
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"])) or "the document"
        raise KeysError(f"cannot read the API keys in {file}: {where}: {first['msg']}") from None


def write_keys(file: Path, keys: Iterable[ApiKey], mode: int | None = _OWNER_ONLY) -> None:
    """Write them all. Raises `KeysError`."""
    document = _KeysDocument(keys=tuple(keys)).model_dump_json(indent=2, exclude_none=True)
    try:
        write_whole(file, f"{document}\n", mode)
    except OSError as error:
        raise KeysError(f"cannot write the API keys in {file}: {error.strerror}") from None


@contextlib.contextmanager
def changing(file: Path) -> Iterator[list[ApiKey]]:
    """The keys in a file, to be changed; written at the end. One process at a time changes them.
    Raises `KeysError`."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(file))
        except OSError as error:
            raise KeysError(f"cannot change the API keys in {file}: {error.strerror}") from None
        keys = [*read_keys(file)]
        yield keys
        if len(keys) > KEYS_MAX:
            raise KeysError(f"{file} may hold {KEYS_MAX} keys at most: revoke some")
        write_keys(file, keys, None if file.exists() else _OWNER_ONLY)


def last_used(folder: Path, id: str) -> datetime | None:
    """When a key was used last, to the minute, as the processes that share an audit folder noted
    it; None where none of them did. Raises `KeysError` where that cannot be told."""
    try:
        found = (folder / USED_FOLDER / id).stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeysError(
            f"when keys were used is not known: cannot read {folder / USED_FOLDER}: "
            f"{error.strerror}; name the services' AUDIT_DIR by --audit-dir"
        ) from None
    return datetime.fromtimestamp(found.st_mtime, UTC)


@dataclass(frozen=True, slots=True)
class _Found:
    """Which file was read."""

    inode: int
    size: int
    changed_at: int


class _Known(NamedTuple):
    """Who has a key that was checked."""

    id: str
    caller: Caller
    expires_at: float
    """In seconds since 1970."""


class ApiKeys:
    """The keys in a file, which is read again when it has changed, or is made."""

    def __init__(self, file: Path, used_folder: Path | None = None) -> None:
        """Notes in `used_folder` which keys were used, if it can. Raises `KeysError`."""
        self._file = file
        self._used = None if used_folder is None else used_folder / USED_FOLDER
        self._found = self._look()
        self._looked_at = time.monotonic()
        self._keys = {key.id: key for key in read_keys(file)}
        self._known: dict[bytes, _Known] = {}
        """Those that were used since the file was read, keyed by their hash."""
        self._used_at: dict[str, float] = {}

    def __len__(self) -> int:
        self._read_again()
        return len(self._keys)

    def caller(self, text: str) -> Caller:
        """Whose key that is. Raises `NotAllowed`."""
        self._read_again()
        digest = hashlib.sha256(text.encode(errors="backslashreplace")).digest()
        known = self._known.get(digest)
        if known is None or time.time() >= known.expires_at:
            key = self._checked(text)
            known = self._known[digest] = _Known(key.id, key.caller, key.ends_at)
        self._note(known.id)
        return known.caller

    def _checked(self, text: str) -> ApiKey:
        """The key that it is. Raises `NotAllowed`."""
        match = _KEY.fullmatch(text)
        if match is None:
            raise NotAllowed("it does not read like a key")
        id = match[1]
        key = self._keys.get(id)
        if key is None:
            raise NotAllowed(f"there is no key {id}; it may be revoked")
        if not hmac.compare_digest(key.sha256, _digest(text)):
            raise NotAllowed(f"it is not the key {id}")
        if not key.is_live(datetime.now(UTC)):
            raise NotAllowed(f"the key {id} expired at {key.expires_at:%Y-%m-%d %H:%M} UTC")
        if key.owner is not None and sealed(key.owner):
            raise NotAllowed(f"the owner of the key {id} is a sealed text, and not a name")
        return key

    def again(self, caller: Caller) -> Caller:
        """The same caller, as their key is by now. Raises `NotAllowed` where it is revoked, or has
        expired."""
        self._read_again()
        key = self._keys.get(caller.subject.removeprefix(SUBJECT_PREFIX))
        if key is None or not key.is_live(datetime.now(UTC)):
            raise NotAllowed(f"{caller.subject} is revoked, or has expired")
        return key.caller

    def _look(self) -> _Found | None:
        try:
            found = self._file.stat()
        except OSError:
            return None
        return _Found(found.st_ino, found.st_size, found.st_mtime_ns)

    def _read_again(self) -> None:
        now = time.monotonic()
        if now - self._looked_at < LOOK_SECONDS:
            return
        self._looked_at = now
        found = self._look()
        if found == self._found:
            return
        try:
            keys = read_keys(self._file)
        except KeysError as error:
            log.error("%s; the keys read before stay valid until it can be read", error)
            return
        self._found = found
        self._keys = {key.id: key for key in keys}
        self._known = {}
        log.info("%d API keys are read from %s", len(keys), self._file)

    def _note(self, id: str) -> None:
        now = time.monotonic()
        if self._used is None or now - self._used_at.get(id, -USED_SECONDS) < USED_SECONDS:
            return
        self._used_at[id] = now
        try:
            self._used.mkdir(parents=True, exist_ok=True)
            (self._used / id).touch(_OWNER_ONLY)
        except OSError as error:
            log.debug("that the key %s is used cannot be noted: %s", id, error)
