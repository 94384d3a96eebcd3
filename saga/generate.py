"""The files made from the reactions' signatures: what is in them, which are stale, writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from common.choreography import Choreography
from common.messaging.definitions import definitions, text
from common.messaging.permissions import users_of
from common.messaging.topology import topology_of
from saga.graph.asyncapi import asyncapi
from saga.graph.canvas import canvas
from saga.graph.flow import Flow
from saga.graph.mermaid import mermaid
from saga.graph.svg import svg
from saga.schemas.export import schema_files, text_of

README: Final = "README.md"
MAP_BEGINS: Final = "<!-- The map, by `make generate`: edit the reactions, not this. -->\n"
MAP_ENDS: Final = "<!-- End of the map. -->\n"
GENERATED: Final = ("contracts/*/v*.json", "docs/services/*.md")
"""Where all files are generated; one that nothing asks for any more is removed."""


class GenerateError(Exception):
    """The folder is none that files can be generated in. Says what it lacks."""


def generated(root: Path, choreography: Choreography) -> dict[Path, str]:
    """Every generated file below `root`, and the text it should have.

    Raises `GenerateError` if `root` is not the project's folder.
    """
    flow = Flow(choreography)
    files = {
        "rabbitmq/definitions.json": text(
            definitions(topology_of(choreography), users_of(choreography))
        ),
        "contracts/asyncapi.json": text_of(asyncapi(flow)),
        "docs/map.svg": svg(flow),
        README: _with_map(root / README, flow),
    }
    for name, schema in schema_files(choreography).items():
        files[f"contracts/{name}"] = schema
    for participant in choreography.participants:
        files[f"docs/services/{participant.name}.md"] = canvas(flow, participant)
    return {root / name: content for name, content in sorted(files.items())}


def stale(root: Path, choreography: Choreography) -> list[Path]:
    """The files below `root` that are missing, differ from what they should be, or are not asked
    for any more."""
    files = generated(root, choreography)
    differing = [
        file
        for file, content in files.items()
        if not file.exists() or file.read_text(encoding="utf-8") != content
    ]
    left_over = [file for pattern in GENERATED for file in root.glob(pattern) if file not in files]
    return sorted([*differing, *left_over])


def refresh(root: Path, choreography: Choreography) -> list[Path]:
    """Write or remove what is stale; returns that."""
    files = generated(root, choreography)
    changed = stale(root, choreography)
    for file in changed:
        if file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(files[file], encoding="utf-8")
        else:
            file.unlink()
    return changed


def _with_map(readme: Path, flow: Flow) -> str:
    """The README with the map as it is now, between its marks."""
    try:
        before, rest = readme.read_text(encoding="utf-8").split(MAP_BEGINS)
        _, after = rest.split(MAP_ENDS)
    except (OSError, ValueError) as error:
        raise GenerateError(
            f"{readme} does not have the marks of the map once each "
            f"({MAP_BEGINS.strip()} and {MAP_ENDS.strip()}); name the project's folder"
        ) from error
    return f"{before}{MAP_BEGINS}\n```mermaid\n{mermaid(flow)}```\n\n{MAP_ENDS}{after}"
