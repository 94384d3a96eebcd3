"""What a project begins with, and then owns: written where it is missing, and never over.

Files for containers and for the broker, the first migration script of each participant, and an
example of each message that travels.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from saga.choreography import Choreography, Participant
from saga.declaration import Saga
from saga.discovery import tables_in
from saga.envelope import Attributes, Undecodable, schema_uri
from saga.runtime.files import make_public_folder
from saga.runtime.kernel.migrations import script_name, write_script
from saga.runtime.kernel.tables import Schema
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
    if not wanted or saga.load is None or not all(map(_has_store, saga.choreography.in_python)):
        return {}
    found: dict[str, str] = {}
    for body in messages_of(saga):
        try:
            uri = Attributes.of(body).dataschema
        except Undecodable:
            continue  # A simulated network is not kind.
        if (name := wanted.pop(uri, None)) is not None:
            found[name] = text_of(json.loads(body))
        if not wanted:
            break
    return found


def _has_store(participant: Participant) -> bool:
    """Whether it is so far that it keeps anything: signatures are drawn and checked before."""
    return find_spec(f"{participant.package}.store") is not None


def missing_scripts(choreography: Choreography) -> list[Path]:
    """The first script of each participant whose folder for migrations has none."""
    return [_first(schema) for schema in _without_scripts(choreography)]


def write_first_scripts(choreography: Choreography) -> None:
    """Write those: what makes the tables. Raises `MigrationError`."""
    for schema in _without_scripts(choreography):
        make_public_folder(_first(schema).parent)
        if (path := write_script(schema, FIRST_SCRIPT)) is not None:
            lay_out(path)


def _without_scripts(choreography: Choreography) -> Iterator[Schema]:
    for participant in filter(_has_store, choreography.in_python):
        schema = tables_in(participant.package)
        if schema.migrations is not None and not any(schema.migrations.glob("v*.py")):
            yield schema


def _first(schema: Schema) -> Path:
    assert schema.migrations is not None  # noqa: S101 - only such are asked about
    return schema.migrations / f"{script_name(1, FIRST_SCRIPT)}.py"


def lay_out(script: Path) -> None:
    """Format a script with ruff, where that is installed."""
    ruff = shutil.which("ruff", path=Path(sys.executable).parent) or shutil.which("ruff")
    if ruff is not None:
        for arguments in (["check", "--fix"], ["format"]):
            subprocess.run([ruff, *arguments, "--quiet", script], check=False)
