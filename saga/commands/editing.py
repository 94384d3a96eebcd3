"""A text in the user's editor, and files that a user names."""

from __future__ import annotations

import os
from pathlib import Path

from saga.errors import InputError


def contents_of(file: Path) -> str:
    """The text in a file. Raises `InputError`."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}; name another file") from error
    except UnicodeDecodeError:
        raise InputError(f"cannot read {file}: it is not UTF-8; write it in UTF-8") from None


def write_text(file: Path, text: str) -> None:
    """Write a text into a file, whole or not at all. Raises `InputError`."""
    from saga.runtime.files import write_whole

    try:
        write_whole(file, text)
    except OSError as error:
        raise InputError(f"cannot write {file}: {error.strerror}; name another file") from error


def in_editor(text: str) -> str | None:
    """The text as it is left in `$EDITOR`; None if the editor failed. Raises
    `InputError`."""
    import shlex
    import subprocess
    import tempfile

    try:
        command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi") or [
            "vi"
        ]
    except ValueError as error:
        raise InputError(f"EDITOR is no command: {error}; quote it as a shell takes it") from error
    with tempfile.TemporaryDirectory(prefix="saga-") as folder:
        path = Path(folder, "payload.json")
        path.write_text(text, encoding="utf-8")
        try:
            done = subprocess.run([*command, str(path)], check=False)
        except OSError as error:
            raise InputError(
                f"cannot start the editor {command[0]!r}: {error.strerror}; name another in "
                f"EDITOR, or use --set or --file"
            ) from error
        return contents_of(path) if done.returncode == 0 else None
