"""The files made from the reactions' signatures: what is in them, which are stale, writing them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from saga.choreography import Choreography
from saga.discovery import packages, saga, spec
from saga.generate.begun import examples, missing_scripts, write_first_scripts
from saga.generate.begun import texts as begun_texts
from saga.generate.containers import CLUSTER, COMPOSE, container_files
from saga.generate.marks import GenerateError, Marks
from saga.generate.monitoring import FOLDER, PROMETHEUS, monitoring_files
from saga.graph.asyncapi import asyncapi
from saga.graph.canvas import canvas
from saga.graph.flow import Flow
from saga.graph.svg import svg
from saga.runtime.files import write_public
from saga.runtime.messaging.definitions import definitions, text
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of
from saga.schemas.export import schema_files, text_of

PYPROJECT: Final = "pyproject.toml"
_IMPORTS: Final = Marks(
    "# Which packages there are, by `make generate`: import-linter takes no patterns for them.\n",
    "# End of what `make generate` writes.\n",
)
IN_PART: Final = (PYPROJECT, COMPOSE, CLUSTER, f"{FOLDER}/{PROMETHEUS}")
"""Files of which a part is generated; the rest is written by hand."""
CONTRACTS: Final = "contracts"
GENERATED: Final = ("contracts/*/v*.json", "docs/services/*.md")
"""Where all files are generated; one that nothing asks for any more is removed."""


def generated(root: Path, choreography: Choreography) -> dict[Path, str]:
    """Every generated file below `root`, and the text it should have: of those that the project
    owns once they are there, only the missing ones.

    Raises `GenerateError` if `root` is not the project's folder.
    """
    if not (root / PYPROJECT).is_file():
        raise GenerateError(f"{root.absolute()} has no {PYPROJECT}; name the project's folder")
    flow = Flow(choreography)
    begun = begun_texts(saga().name, spec())
    files = {name: text for name, text in begun.items() if not (root / name).exists()}
    files |= {f"{CONTRACTS}/{n}": text for n, text in examples(root / CONTRACTS, saga()).items()}
    files |= {
        "rabbitmq/definitions.json": text(
            definitions(topology_of(choreography), users_of(choreography))
        ),
        "contracts/asyncapi.json": text_of(asyncapi(flow, saga().name)),
        "docs/map.svg": svg(flow),
        **_in_part(root, PYPROJECT, _IMPORTS, _import_contracts(root, choreography)),
        **container_files(root, choreography, begun),
        **monitoring_files(root, saga().name, [each.name for each in choreography.own_services]),
    }
    for name, schema in schema_files(choreography).items():
        files[f"{CONTRACTS}/{name}"] = schema
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
    return sorted([*differing, *left_over, *missing_scripts(choreography)])


def refresh(root: Path, choreography: Choreography) -> list[Path]:
    """Write or remove what is stale; returns that."""
    files = generated(root, choreography)
    changed = stale(root, choreography)
    scripts = missing_scripts(choreography)
    for file in changed:
        if file in files:
            write_public(file, files[file])
        elif file not in scripts:
            file.unlink()
    write_first_scripts(choreography)
    return changed


def _in_part(root: Path, name: str, marks: Marks, content: str) -> dict[str, str]:
    """The file with this content between the marks; nothing if it has none of them."""
    file = root / name
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return {name: marks.replaced(file, text, content)} if marks.any_in(text) else {}


def _import_contracts(root: Path, choreography: Choreography) -> str:
    """What the import linter has to know of the packages there are, as TOML: each ring may know
    those within it only."""
    services = [name for name in packages() if _is_of(name, root)]
    whole = [name for name in [_top(spec().partition(":")[0])] if _is_of(name, root)]
    engine = [name for name in ["saga"] if _is_of(name, root)]
    messages = (*choreography.recorded, *(c for p in choreography.participants for c in p.intake))
    tops = {_top(message.__module__) for message in messages}
    language = sorted(tops - {*services, *whole, *engine})
    contracts = [
        _forbidden("The engine knows no saga", engine, [*language, *services, *whole]),
        _forbidden("The published language knows no service", language, [*services, *whole]),
        _forbidden("No service knows the whole", services, whole),
    ]
    return f"""\
[tool.importlinter]
root_packages = {_toml([*engine, *language, *services, *whole])}
include_external_packages = true

[[tool.importlinter.contracts]]
name = "Services know each other only by their events"
type = "independence"
modules = {_toml(services)}
{"".join(contracts)}"""


def _forbidden(name: str, sources: Sequence[str], forbidden: Sequence[str]) -> str:
    if not sources or not forbidden:
        return ""
    return f"""
[[tool.importlinter.contracts]]
name = "{name}"
type = "forbidden"
source_modules = {_toml(sources)}
forbidden_modules = {_toml(forbidden)}
"""


def _top(module: str) -> str:
    return module.partition(".")[0]


def _is_of(name: str, root: Path) -> bool:
    """Whether it is a package of the project itself."""
    return (root / name / "__init__.py").is_file()


def _toml(words: Sequence[str]) -> str:
    lines = "".join(f'    "{word}",\n' for word in words)
    return f"[\n{lines}]"
