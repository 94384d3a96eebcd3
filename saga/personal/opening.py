"""The key store that settings name."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from saga.personal.keystore import KeyStore, KeyStoreError
from saga.personal.master import MasterKeyError, MasterKeys, new_master_key
from saga.runtime.files import write_whole
from saga.runtime.kernel.opening import database_file
from saga.runtime.settings import PersonalSettings
from saga.runtime.urls import sqlite_url

STORE_FILE: Final = "persons.db"
KEY_FILE: Final = "persons.key"
"""In the data folder, where settings name no others."""


def store_url(settings: PersonalSettings) -> str:
    """Where the keys of persons are."""
    return settings.persons_database_url or sqlite_url(settings.data_dir / STORE_FILE)


def master_keys(settings: PersonalSettings) -> MasterKeys:
    """Raises `MasterKeyError`."""
    if settings.personal_key is not None:
        return MasterKeys.of(settings.personal_key.get_secret_value(), "PERSONAL_KEY")
    file = settings.personal_key_file or settings.data_dir / KEY_FILE
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise MasterKeyError(
            f"cannot read the master key {file}: {why}; name its file in PERSONAL_KEY_FILE, or "
            f"mount it as personal_key into the folder that SECRETS_DIR names"
        ) from None
    return MasterKeys.of(text, str(file))


def made_key(folder: Path) -> Path:
    """The key file of a system in this folder, made if there is none: for one that is tried out on
    this machine. Raises `OSError`."""
    file = folder / KEY_FILE
    if not file.exists():
        write_whole(file, new_master_key(), 0o600)
    return file


def open_store(
    settings: PersonalSettings, *, patience_seconds: float = 0.0, existing: bool = False
) -> KeyStore:
    """Open the key store; a file that is not there is made, unless it has to be `existing`. Blocks.
    Raises `MasterKeyError`, `KeyStoreError` and `KeyStoreAway`."""
    url = store_url(settings)
    if existing and (file := database_file(url)) is not None and not file.is_file():
        raise KeyStoreError(
            f"there is no key store {file}: name it in PERSONS_DATABASE_URL, or its folder with "
            f"--data-dir; where no service runs with PERSONAL=sealed, there is none"
        )
    return KeyStore.open_store(
        url,
        master_keys(settings),
        cache_seconds=settings.personal_cache_seconds,
        patience_seconds=patience_seconds,
    )
