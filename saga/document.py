"""What a command has come to last, as a JSON document in a system's data folder: the command writes
it, and the console shows it."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Final, Self

from pydantic import BaseModel, ValidationError

from saga.limits import Moment
from saga.runtime.files import write_whole

_FILE_MODE: Final = 0o600


class SavedDocument(BaseModel):
    """What came of something that began at a time, by a version of the engine. Each subclass has a
    file of its own, in which the one that began last stays."""

    file_name: ClassVar[str]
    """In the data folder."""
    written_by: ClassVar[str]
    """The command that writes it."""

    saga: str
    version: str
    """Of the engine."""
    began_at: Moment

    def save(self, folder: Path) -> None:
        """Write it, unless there is one of this saga that began later. Raises `OSError`."""
        there, _ = self.read(folder)
        if there is None or there.saga != self.saga or there.began_at <= self.began_at:
            text = self.model_dump_json(indent=1) + "\n"
            write_whole(folder / self.file_name, text, _FILE_MODE)

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """The last one of a system; None if there is none that can be read."""
        return cls.read(folder)[0]

    @classmethod
    def read(cls, folder: Path) -> tuple[Self | None, str]:
        """The last one of a system, or None; then, if there is a document, why it cannot be
        read."""
        path = folder / cls.file_name
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8")), ""
        except FileNotFoundError:
            return None, ""
        except OSError as error:
            return None, f"cannot read {path}: {error.strerror}"
        except UnicodeDecodeError:
            return None, f"cannot read {path}: it is not UTF-8"
        except ValidationError:
            return (
                None,
                f"cannot read {path}: it is not what `{cls.written_by}` of this version writes",
            )
