"""How counts are said: "1 dead letter", "2 dead letters"."""

from __future__ import annotations

from typing import Final

_SIBILANTS: Final = ("s", "x", "ch", "sh")


def counted(number: int, one: str, several: str | None = None) -> str:
    """So many of something, with what it is called where it is one: `dead letter`. Where more than
    its last word depends on the number, `several` is all of it: `messages wait`."""
    return f"{number:,} {one if number == 1 else several or _plural(one)}"


def _plural(noun: str) -> str:
    if noun.endswith(_SIBILANTS):
        return f"{noun}es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return f"{noun[:-1]}ies"
    return f"{noun}s"
