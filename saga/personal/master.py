"""The master keys, which wrap all others: text of an operator's, never in the key store."""

from __future__ import annotations

import base64
import binascii
import secrets
from hashlib import sha256
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from saga.errors import Explained

MASTER_MIN_BYTES: Final = 32
MASTER_KEYS_MAX: Final = 16
"""Lines: the newest, and those before it that still wrap something."""
_NEW_BYTES: Final = 48
_HOW: Final = "make one with: openssl rand -base64 48"


def new_master_key() -> str:
    """The text of a file with a key that is new."""
    return base64.b64encode(secrets.token_bytes(_NEW_BYTES)).decode() + "\n"


class MasterKeyError(Explained):
    """The master keys are none, or not those of the key store. Quotes no key."""


class MasterKeys:
    """The newest first. All of them unwrap, the newest wraps.

    A key's id is 16 hexadecimal digits of its digest, which tell nothing of it.
    """

    def __init__(self, lines: list[bytes]) -> None:
        """Use `of`."""
        self._ciphers: dict[str, AESSIV] = {}
        for secret in lines:
            id = sha256(b"saga master key id" + secret).hexdigest()[:16]
            wrapping = HKDF(SHA256(), 64, salt=None, info=b"saga persons wrap 1").derive(secret)
            self._ciphers.setdefault(id, AESSIV(wrapping))
        self.newest_id = next(iter(self._ciphers))

    @classmethod
    def of(cls, text: str, where: str) -> MasterKeys:
        """The keys in a text: one a line in base64, the newest first, `#` before a comment.
        `where` names it in errors. Raises `MasterKeyError`."""
        lines = [line.partition("#")[0].strip() for line in text.splitlines()]
        given = [line for line in lines if line]
        if not given:
            raise MasterKeyError(f"{where} holds no key; {_HOW}")
        if len(given) > MASTER_KEYS_MAX:
            raise MasterKeyError(
                f"{where} holds {len(given)} keys; keep the newest and those that wrap something, "
                f"{MASTER_KEYS_MAX} at most"
            )
        return cls([_secret(line, number, where) for number, line in enumerate(given, 1)])

    @property
    def ids(self) -> tuple[str, ...]:
        """The newest first."""
        return tuple(self._ciphers)

    def wrap(self, key: bytes, name: str) -> tuple[bytes, str]:
        """A key, wrapped for `name` alone, and the id of what wraps it."""
        return self._ciphers[self.newest_id].encrypt(key, [name.encode()]), self.newest_id

    def unwrap(self, wrapped: bytes, wrapped_by: str, name: str) -> bytes:
        """Raises `MasterKeyError`."""
        cipher = self._ciphers.get(wrapped_by)
        if cipher is None:
            raise MasterKeyError(
                f"the key store is wrapped by master key {wrapped_by}, and given "
                f"{'is' if len(self.ids) == 1 else 'are'} {', '.join(self.ids)}: put that key back "
                f"into PERSONAL_KEY_FILE, in a line of its own, or name the store that belongs to "
                f"these in PERSONS_DATABASE_URL"
            )
        try:
            return cipher.decrypt(wrapped, [name.encode()])
        except InvalidTag:
            raise MasterKeyError(
                f"the row {name} of the key store was changed, or is another row's: restore the "
                f"key store from its own backup"
            ) from None


def _secret(line: str, number: int, where: str) -> bytes:
    try:
        secret = base64.b64decode(line, validate=True)
    except (binascii.Error, ValueError):
        raise MasterKeyError(f"key {number} in {where} is not base64; {_HOW}") from None
    if len(secret) < MASTER_MIN_BYTES:
        raise MasterKeyError(
            f"key {number} in {where} has {len(secret)} bytes, and takes {MASTER_MIN_BYTES} or "
            f"more; {_HOW}"
        )
    return secret
