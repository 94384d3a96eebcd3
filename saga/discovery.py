"""Which saga a command is about: the one that the project's `pyproject.toml` names.

    [tool.saga]
    saga = "trips:SAGA"
    partitions = 4  # of each queue that events are routed to; may be left out

`SAGA` in the environment comes before that. Membership is explicit: nothing is found by looking
through the import path.
"""

from __future__ import annotations

import importlib
import os
import sys
import sysconfig
import tomllib
import traceback
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from saga.choreography import (
    PARTITIONS_MAX,
    Choreography,
    ChoreographyError,
    Observer,
    Participant,
)
from saga.declaration import Saga, SagaError
from saga.errors import Explained

if TYPE_CHECKING:
    from saga.runtime.kernel.tables import Schema, Tables

VARIABLE: Final = "SAGA"
PYPROJECT: Final = "pyproject.toml"
_INSTALLED: Final = (
    *(Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")),
    Path(__file__).parent,
)
"""Where Python, libraries and the engine are."""


def spec() -> str:
    """Where the saga is declared, as `module:NAME`. Raises `SagaError`."""
    if where := os.environ.get(VARIABLE):
        return where
    for folder in _folders():
        file = folder / PYPROJECT
        if file.is_file() and (where := saga_named_in(file)):
            return where
    raise SagaError(
        f'no saga is named: write saga = "module:NAME" under [tool.saga] in {PYPROJECT} here or in '
        f"a folder above, or set {VARIABLE}"
    )


def _folders() -> Iterator[Path]:
    """Where a project may be: here, above, and where this engine is worked on."""
    here = Path.cwd()
    yield from (here, *here.parents)
    yield Path(__file__).parents[1]


def saga_named_in(file: Path) -> str | None:
    """The saga that a project's file names, if it names one. Raises `SagaError`."""
    found = _said_in(file)
    return None if found is None else str(found["saga"])


def declared_partitions() -> int | None:
    """How many partitions the project says that its queues have, under `[tool.saga]`; None where
    it says nothing, or there is no project here. Raises `SagaError`."""
    where = spec()
    for folder in _folders():
        file = folder / PYPROJECT
        if file.is_file() and (found := _said_in(file)) is not None and found["saga"] == where:
            return partitions_in(file)
    return None


def partitions_in(file: Path) -> int | None:
    """The same of the project of this file."""
    number = (_said_in(file) or {}).get("partitions")
    if number is None:
        return None
    if type(number) is not int or not 1 <= number <= PARTITIONS_MAX:
        raise SagaError(
            f"{file}: partitions = {number!r} under [tool.saga] is no number from 1 to "
            f"{PARTITIONS_MAX}"
        )
    return number


def _said_in(file: Path) -> Mapping[str, Any] | None:
    try:
        tools = tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {})
    except (OSError, ValueError) as error:
        raise SagaError(f"cannot read {file}: {error}") from error
    found = tools.get("saga") if isinstance(tools, dict) else None
    if found is None:
        return None
    if not isinstance(found, dict) or not isinstance(found.get("saga"), str):
        raise SagaError(f'{file}: write saga = "module:NAME" under [tool.saga]')
    return found


def saga() -> Saga:
    """The saga. Raises `SagaError`."""
    return _load(spec())


@cache
def _load(where: str) -> Saga:
    found = named(where if ":" in where else f"{where}:SAGA")
    if not isinstance(found, Saga):
        raise SagaError(f"{where!r} names no Saga; write module:NAME, as in trips:SAGA")
    return found


def named(where: str) -> Any:
    """What `module:NAME` of the project is; None if the module has no such name. Raises
    `SagaError`."""
    module, _, name = where.partition(":")
    if not all(map(str.isidentifier, module.split("."))):
        raise SagaError(f"{where!r} names no module; write module:NAME, as in trips:SAGA")
    return getattr(loaded(module, where), name, None)


def loaded(module: str, where: str = "") -> ModuleType:
    """A module of the project, imported; `where` is what asks for it. Raises `SagaError`."""
    # A command that was installed does not look where it is called.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except Explained:
        raise
    except Exception as error:  # Whatever a user's module does when it is loaded.
        if isinstance(error, ModuleNotFoundError) and _is_within(module, error.name):
            raise SagaError(
                f"there is no module {error.name!r}, in which {where or module!r} should be; run "
                f"this in the project's folder, or correct {VARIABLE} or [tool.saga]"
            ) from error
        raise SagaError(f"{module!r} cannot be loaded: {_explained(error)}") from error


def _is_within(module: str, package: str | None) -> bool:
    return package is not None and f"{module}.".startswith(f"{package}.")


def _explained(error: Exception) -> str:
    """What is wrong and where, in one line; a syntax error says where by itself."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError):
        return said
    places = traceback.extract_tb(error.__traceback__)
    # The project's own line, and not that of a library which refuses what it is given.
    own = [place for place in places if not _is_installed(place.filename)]
    place = (own or places)[-1]
    return f"{said} ({place.filename}, line {place.lineno})"


def _is_installed(file: str) -> bool:
    """Whether a file is of Python itself, of a library, or of the engine."""
    path = Path(file)
    return file.startswith("<") or any(path.is_relative_to(root) for root in _INSTALLED)


def packages() -> list[str]:
    """The names of the services' packages."""
    return sorted(services())


def participants() -> dict[str, Participant]:
    """Keyed by its package's name: each participant."""
    found = services().items()
    return {package: service for package, service in found if isinstance(service, Participant)}


def observers() -> dict[str, Observer]:
    """Keyed by its package's name: each observer."""
    found = services().items()
    return {package: service for package, service in found if isinstance(service, Observer)}


def services() -> dict[str, Participant | Observer]:
    """Keyed by its package's name: each service in Python."""
    found: dict[str, Participant | Observer] = {}
    for service in choreography().own_services:
        other = found.setdefault(service.package, service)
        if other is not service:
            raise ChoreographyError(
                f"{other.name} and {service.name} are both of the package {service.package}; a "
                f"service has a package of its own"
            )
    return dict(sorted(found.items()))


def choreography() -> Choreography:
    """The graph of all participants, and who observes them."""
    return saga().choreography


def schema_in(package: str) -> Schema:
    """All tables of the service in a package: its `store.TABLES`. Raises `SagaError`."""
    from saga.runtime.kernel.tables import Schema  # SQLAlchemy: most commands do without

    schema = named(f"{package}.store:TABLES")
    if not isinstance(schema, Schema):
        raise SagaError(f"{package}.store.TABLES is no Schema; name the service's tables so")
    return schema


def tables_in(package: str) -> Tables:
    """The same of a participant. Raises `SagaError`."""
    from saga.runtime.kernel.tables import Tables

    tables = schema_in(package)
    if not isinstance(tables, Tables):
        raise SagaError(f"{package}.store.TABLES is no Tables; name the participant's tables so")
    return tables


def tables_of(name: str) -> Tables:
    """The tables of the participant of that name. Raises `SagaError`."""
    for package, service in participants().items():
        if service.name == name:
            return tables_in(package)
    raise SagaError(f"there is no participant {name!r} whose tables could be read")
