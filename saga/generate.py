"""The files made from the reactions' signatures: what is in them, which are stale, writing them."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from common.choreography import Choreography
from common.files import write_public
from common.messaging.definitions import definitions, text
from common.messaging.permissions import users_of
from common.messaging.topology import topology_of
from saga.containers import CLUSTER, COMPOSE, PROMETHEUS, container_files
from saga.discovery import packages, spec
from saga.graph.asyncapi import asyncapi
from saga.graph.canvas import canvas
from saga.graph.flow import Flow
from saga.graph.mermaid import mermaid
from saga.graph.svg import svg
from saga.marks import Marks
from saga.schemas.export import schema_files, text_of

README: Final = "README.md"
_MAP: Final = Marks(
    "<!-- The map, by `make generate`: edit the reactions, not this. -->\n",
    "<!-- End of the map. -->\n",
)
PYPROJECT: Final = "pyproject.toml"
_IMPORTS: Final = Marks(
    "# Which packages there are, by `make generate`: import-linter takes no patterns for them.\n",
    "# End of what `make generate` writes.\n",
)
IN_PART: Final = (README, PYPROJECT, COMPOSE, CLUSTER, PROMETHEUS)
"""Files of which a part is generated; the rest is written by hand."""
GENERATED: Final = ("contracts/*/v*.json", "docs/services/*.md")
"""Where all files are generated; one that nothing asks for any more is removed."""


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
        README: _in_part(root / README, _MAP, f"\n```mermaid\n{mermaid(flow)}```\n\n"),
        PYPROJECT: _in_part(root / PYPROJECT, _IMPORTS, _import_contracts()),
        **container_files(root, choreography),
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
            write_public(file, files[file])
        else:
            file.unlink()
    return changed


def _in_part(file: Path, marks: Marks, content: str) -> str:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return marks.replaced(file, text, content)


def _import_contracts() -> str:
    """What the import linter has to know of the services, as TOML."""
    services, whole = packages(), spec().partition(":")[0].partition(".")[0]
    above = ["saga"] if whole == "saga" or not _is_package(whole) else [whole, "saga"]
    return f"""\
[tool.importlinter]
root_packages = {_toml(["common", *above, *services])}
include_external_packages = true

[[tool.importlinter.contracts]]
name = "Services know each other only by their events"
type = "independence"
modules = {_toml(services)}

[[tool.importlinter.contracts]]
name = "common knows no service and no tool"
type = "forbidden"
source_modules = ["common"]
forbidden_modules = {_toml([*above, *services])}
"""


def _is_package(name: str) -> bool:
    found = importlib.util.find_spec(name)
    return found is not None and found.submodule_search_locations is not None


def _toml(words: Sequence[str]) -> str:
    lines = "".join(f'    "{word}",\n' for word in words)
    return f"[\n{lines}]"
