"""HTTP over TLS: what a server shows, and whom a client trusts.

Both speak TLS 1.2 or later. The files are read when a process starts, so a new certificate takes a
restart.
"""

from __future__ import annotations

import ssl
from contextvars import ContextVar
from functools import lru_cache
from pathlib import Path
from typing import Final

from saga.runtime.settings import ClientTlsSettings, HttpSettings, SettingsError, load

OF_DEPLOYMENT: Final[ContextVar[Path | None]] = ContextVar("of_deployment", default=None)
"""The authority of the deployment that was loaded last."""
MINIMUM: Final = ssl.TLSVersion.TLSv1_2


def context_of(settings: HttpSettings) -> ssl.SSLContext | None:
    """What a server needs, or None where it speaks plain HTTP. Raises `SettingsError`."""
    certificate, key = settings.http_cert_file, settings.http_key_file
    if certificate is None:
        if key is not None:
            raise SettingsError("HTTP_KEY_FILE names a key of no certificate: set HTTP_CERT_FILE")
        return None
    for name, file in (("HTTP_CERT_FILE", certificate), ("HTTP_KEY_FILE", key)):
        if file is not None:
            _check_readable(name, file)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MINIMUM
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        # With a password, or OpenSSL would ask the terminal for that of an encrypted key.
        context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        where = f"{key} (HTTP_KEY_FILE)" if key is not None else "no file in HTTP_KEY_FILE"
        raise SettingsError(
            f"cannot serve TLS with {certificate} (HTTP_CERT_FILE) and {where}: "
            f"{error.reason or error}; both are PEM, the key belongs to the certificate and is not "
            f"encrypted"
        ) from None
    return context


def trusted() -> ssl.SSLContext:
    """Whom a client of the services trusts: the authority in `HTTP_CA_FILE` of the environment,
    else that of the deployment, else the system's. Raises `SettingsError`."""
    file = load(ClientTlsSettings).http_ca_file or OF_DEPLOYMENT.get()
    if file is None:
        return _trusting(None, 0)
    _check_readable("HTTP_CA_FILE", file)
    return _trusting(file, file.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _trusting(file: Path | None, _changed_at: int) -> ssl.SSLContext:
    # Reading the system's certificates takes tens of milliseconds.
    try:
        context = ssl.create_default_context(cafile=file)
    except ssl.SSLError as error:
        raise SettingsError(
            f"{file} (HTTP_CA_FILE) holds no certificate that can be used, as PEM: "
            f"{error.reason or error}"
        ) from None
    context.minimum_version = MINIMUM
    return context


def _check_readable(name: str, file: Path) -> None:
    try:
        with file.open("rb"):
            pass
    except OSError as error:
        raise SettingsError(f"cannot read {file} ({name}): {error.strerror}") from None
