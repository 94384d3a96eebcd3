"""Where a running system's parts are: from the environment, or as `saga up` wrote it down."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

FILE_NAME = "saga.json"
DEAD_LETTERS_FILE_NAME = "dead_letters.db"


class DeploymentError(Exception):
    """No running system is known. Says how to name one."""


class Deployment(BaseModel):
    """The addresses an operator's command needs. Keys are participants' names."""

    model_config = ConfigDict(frozen=True)

    amqp_url: str
    http_urls: dict[str, str]
    database_urls: dict[str, str]
    sandbox_url: str
    dead_letters_url: str | None = None
    """The operator's store of dead letters; by default a file beside the one this is read from."""

    def save(self, folder: Path) -> None:
        """Write it down for other commands; the file holds the broker's password."""
        path = folder / FILE_NAME
        path.touch(mode=0o600)
        path.write_text(self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """What `saga up` wrote down in `folder`. Raises `DeploymentError`."""
        path = folder / FILE_NAME
        try:
            found = cls.model_validate_json(path.read_text())
        except FileNotFoundError:
            raise DeploymentError(
                f"no running system is known in {folder}: start one with `saga up`, "
                f"or name its data folder with --data-dir or DATA_DIR"
            ) from None
        except (OSError, ValidationError) as error:
            raise DeploymentError(f"cannot read {path}: {error}") from error
        if found.dead_letters_url is not None:
            return found
        return found.model_copy(update={"dead_letters_url": dead_letters_url_in(folder)})

    @classmethod
    def default_folder(cls) -> Path:
        """`DATA_DIR`, or `data` in the current folder."""
        return Path(os.environ.get("DATA_DIR", "data"))


def dead_letters_url_in(folder: Path) -> str:
    """Where the operator's store of a system in `folder` is."""
    return f"sqlite:///{folder.resolve() / DEAD_LETTERS_FILE_NAME}"
