"""The sealed form of a person's value, and the one cipher that makes it.

`~1.<person id>.<ciphertext>`: printable ASCII, the id 22 and the ciphertext any number of
characters of base64url. AES-SIV (RFC 5297) needs no nonce and has equal values stay equal under one
person's key, wherever they stand, so that what compares and looks up values goes on to work.
"""

from __future__ import annotations

import base64
import re
from datetime import datetime
from typing import TYPE_CHECKING, Final

from saga.errors import Explained

if TYPE_CHECKING:  # Declaring a field loads no cipher.
    from cryptography.hazmat.primitives.ciphers.aead import AESSIV

PREFIX: Final = "~1."
KEY_BYTES: Final = 64
"""Of a person's key: AES-256 in SIV mode takes two."""
CLEAR_MAX_BYTES: Final = 512
"""The longest value, in UTF-8, that is sealed: 128 characters, whichever they are."""
SEALED_MAX_CHARACTERS: Final = 732
"""Of a sealed text: what the longest value comes to. Columns that hold one are as wide."""
SEALED_PATTERN: Final = r"^~1\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{23,706}$"
_SEALED: Final = re.compile(SEALED_PATTERN.removesuffix("$") + r"\Z")
_WITHIN: Final = re.compile(SEALED_PATTERN.removeprefix("^").removesuffix("$"))
_CONSTANT: Final = b"saga personal value 1"
"""Associated data: no wrapped key, nor anything else of ours, can be taken for a value."""


class Unsealable(Explained, ValueError):
    """That is no sealed text of this key store. Does not quote what it holds."""


class Forgotten(Explained):
    """The person's key is gone, and with it what was sealed under it."""

    def __init__(self, person_id: str, at: datetime, reason: str) -> None:
        super().__init__(
            f"person {person_id} was forgotten at {at.isoformat(timespec='seconds')}: {reason}"
        )
        self.person_id = person_id
        self.at = at
        self.reason = reason


def sealed(value: str) -> bool:
    """Whether that is a sealed text, by its form."""
    return value.startswith(PREFIX) and _SEALED.match(value) is not None


def person_id_in(value: str) -> str:
    """Whose a sealed text is. Raises `Unsealable`."""
    if not sealed(value):
        raise Unsealable("it is no sealed value: one begins with ~1. and the id of a person")
    return value[3:25]


def seal_under(cipher: AESSIV, person_id: str, clear: str) -> str:
    """The value, sealed under the person's key. Raises ValueError for one that is too long."""
    data = clear.encode()
    if len(data) > CLEAR_MAX_BYTES:
        raise ValueError(
            f"a personal value has {len(data)} bytes in UTF-8; at most {CLEAR_MAX_BYTES} are sealed"
        )
    # AESSIV takes no empty text.
    ciphertext = cipher.encrypt(b"=" + data, [_CONSTANT, person_id.encode()])
    return f"{PREFIX}{person_id}.{text_of_bytes(ciphertext)}"


def open_under(cipher: AESSIV, value: str) -> str:
    """What was sealed. Raises `Unsealable` if it was not sealed under this key, or was changed."""
    person_id = person_id_in(value)
    try:
        data = cipher.decrypt(bytes_of_text(value[26:]), [_CONSTANT, person_id.encode()])
        return data[1:].decode()
    except Exception as error:
        # Imported here, as an import is work that each value would wait for.
        from cryptography.exceptions import InvalidTag

        if not isinstance(error, InvalidTag | ValueError):
            raise
        raise Unsealable(
            f"a sealed value of person {person_id} cannot be opened: it was changed, or sealed "
            f"under a key that another key store holds"
        ) from None


def shown(value: str) -> str:
    """A value as it is shown to who may not read it: how the id of its person ends, or how it
    begins and ends itself."""
    if sealed(value):
        return f"person …{value[21:25]}"
    name, at, host = value.rpartition("@")
    if at and name and host:
        return f"{name[0]}…@{host[0]}…"
    return f"{value[0]}…" if value else ""


def masked_in(text: str) -> str:
    """A text for people, with each sealed value in it `shown`."""
    if PREFIX not in text:
        return text
    return _WITHIN.sub(lambda match: shown(match[0]), text)


def text_of_bytes(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def bytes_of_text(text: str) -> bytes:
    """The bytes in a base64url text, padded or not. Raises ValueError, also for a text that another
    one stands for the same bytes."""
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if text_of_bytes(data) != text.rstrip("="):
        raise ValueError("it is not what base64url makes of its bytes")
    return data
