"""What things of participants are called where those of all of them are listed together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable

Owned = tuple[str, str]
"""A participant, and the name of something of its own: a table, a figure."""


def names_of(things: Iterable[Owned], taken: Collection[str] = ()) -> dict[Owned, str]:
    """What each is called: as its participant calls it, or `participant.name` where another
    participant has one of that name, or it is `taken` by something else."""
    found = list(dict.fromkeys(things))
    count = Counter(name for _, name in found)
    return {
        (participant, name): f"{participant}.{name}" if count[name] > 1 or name in taken else name
        for participant, name in found
    }
