"""Files of which a part is generated: what stands between two lines that mark it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from saga.errors import Explained


class GenerateError(Explained):
    """The folder is none that files can be generated in. Says what it lacks."""


def text_in(file: Path) -> str:
    """What a file of which a part is generated says. Raises `GenerateError`."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise GenerateError(f"{file} is not UTF-8 ({error}); write it in UTF-8") from error


@dataclass(frozen=True, slots=True)
class Marks:
    """The text before and the text after a generated part; each occurs once in its file."""

    begins: str
    ends: str

    def content(self, file: Path, text: str) -> str:
        """The generated part of a file's text. Raises `GenerateError`."""
        return self._parts(file, text)[1]

    def replaced(self, file: Path, text: str, content: str) -> str:
        """A file's text with another generated part. Raises `GenerateError`."""
        before, _, after = self._parts(file, text)
        return f"{before}{self.begins}{content}{self.ends}{after}"

    def any_in(self, text: str) -> bool:
        """Whether a file means to have such a part."""
        return self.begins in text or self.ends in text

    def _parts(self, file: Path, text: str) -> tuple[str, str, str]:
        try:
            before, rest = text.split(self.begins)
            content, after = rest.split(self.ends)
        except ValueError as error:
            raise GenerateError(
                f"{file} does not have the lines {self.begins.strip()!r} and "
                f"{self.ends.strip()!r} once each; put them there, or name the project's folder"
            ) from error
        return before, content, after
