"""What a project begins with, and then owns: written where it is missing, and never over.

Files for containers and for the broker, the first migration script of each participant, and an
example of each message that travels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from saga.choreography import Choreography
from saga.declaration import Saga
from saga.discovery import tables_of
from saga.envelope import schema_uri
from saga.runtime.kernel.migrations import write_script
from saga.schemas.export import text_of, travelling
from saga.schemas.registry import EXAMPLES
from saga.simulation.examples import messages_of

_FOLDER: Final = Path(__file__).with_name("project")
_NAME: Final = "@NAME@"
_SAGA: Final = "@SAGA@"
FIRST_SCRIPT: Final = "First tables"


def texts(name: str, declared: str) -> dict[str, str]:
    """The files a project of this name begins with, by name; its saga is `declared` there."""
    return {
        file.relative_to(_FOLDER).as_posix(): file.read_text(encoding="utf-8")
        .replace(_NAME, name)
        .replace(_SAGA, declared)
        for file in sorted(_FOLDER.rglob("*"))
        if file.is_file()
    }


def examples(folder: Path, saga: Saga) -> dict[str, str]:
    """For each message that travels and has no example in this folder of contracts: one as it was
    published in a simulation. None for one that no load comes to."""
    wanted = {
        schema_uri(kind): f"{EXAMPLES}/{kind.type}/v{kind.version}.json"
        for kind in travelling(saga.choreography)
        if not list((folder / EXAMPLES / kind.type).glob(f"v{kind.version}*.json"))
    }
    if not wanted or saga.load is None:
        return {}
    found: dict[str, str] = {}
    for body in messages_of(saga):
        document = json.loads(body)
        if (name := wanted.pop(document["dataschema"], None)) is not None:
            found[name] = text_of(document)
        if not wanted:
            break
    return found


def without_scripts(choreography: Choreography) -> Iterator[str]:
    """The participants whose tables have a folder for migrations, and no script in it."""
    for participant in choreography.participants:
        folder = tables_of(participant).migrations
        if folder is not None and not any(folder.glob("v*.py")):
            yield participant.name


def write_first_scripts(choreography: Choreography) -> Iterator[Path]:
    """Write what makes the tables of participants that have no script. Raises `MigrationError`."""
    names = {*without_scripts(choreography)}
    for participant in choreography.participants:
        if participant.name in names:
            schema = tables_of(participant)
            if schema.migrations is not None:
                schema.migrations.mkdir(exist_ok=True)
            if (path := write_script(schema, FIRST_SCRIPT)) is not None:
                yield path
