"""The services in the compose files.

A container is its authors' once it is there: its entry stays as it is. Entries that are missing are
added, and those of services that do not exist any more are removed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Final

from saga.bootstrap import HTTP_PORT, OUTSIDE_FOLDER
from saga.choreography import Choreography
from saga.generate.marks import Marks, text_in

COMPOSE: Final = "compose.yaml"
CLUSTER: Final = "compose.cluster.yaml"

_FOLDERS: Final = Marks(
    "      # A folder for each service, by `make generate`.\n",
    "      # End of the services' folders.\n",
)
_VOLUMES: Final = Marks(
    "  # One for each service, by `make generate`.\n",
    "  # End of the services' volumes.\n",
)
_SERVICES: Final = Marks(
    "  # The services. `make generate` adds one that is missing here, removes one that there is no"
    " more,\n  # and leaves the others as they are.\n",
    "  # End of the services.\n",
)
_REPLICAS: Final = Marks(
    "  # The second replicas. `make generate` adds one that is missing here, removes one that there"
    " is no\n  # more, and leaves the others as they are.\n",
    "  # End of the second replicas.\n",
)
_KEY: Final = re.compile(r"^  ([\w.-]+):\n", re.MULTILINE)
_HOST_PORT: Final = re.compile(rf':(\d+):{HTTP_PORT}"')
_FIRST_HOST_PORT: Final = 8001


def container_files(
    root: Path, choreography: Choreography, begun: Mapping[str, str], askers: Collection[str] = ()
) -> dict[str, str]:
    """The text that each of these files should have, by its name below `root`. Those that do not
    exist are made from what a project has `begun` with, or left out. `askers` are the participants
    that ask a sandbox whose books are in a file. Raises `GenerateError`."""
    packages = {service.name: service.package for service in choreography.own_services}
    services = dict(sorted(packages.items()))
    participants = {p.name: p.package for p in choreography.in_python}
    foreign = [participant.name for participant in choreography.foreign]
    changes: dict[str, Callable[[Path, str], str]] = {
        COMPOSE: lambda file, text: _compose(file, text, services, foreign, askers),
        CLUSTER: lambda file, text: _with_replicas(file, text, participants, askers),
    }
    texts = {
        name: text_in(file) if (file := root / name).exists() else begun[name]
        for name in changes
        if (root / name).exists() or name in begun
    }
    return {name: changes[name](root / name, text) for name, text in texts.items()}


def _compose(
    file: Path,
    text: str,
    services: Mapping[str, str],
    foreign: Sequence[str],
    askers: Collection[str],
) -> str:
    """Those in other languages have secrets here; their containers are for their authors to add."""
    used = map(int, _HOST_PORT.findall(_SERVICES.content(file, text)))
    free = itertools.count(max(used, default=_FIRST_HOST_PORT - 1) + 1)
    everybody = sorted((*services, *foreign))
    folders = "".join(f"      - {name}-secrets:/secrets/{name}\n" for name in everybody)
    volumes = "".join(f"  {name}-secrets:\n" for name in everybody)
    entries = _entries(_SERVICES.content(file, text))
    for name in services:
        if name not in entries:
            entries[name] = _service(name, services[name], next(free), asks=name in askers)
    text = _FOLDERS.replaced(file, text, folders)
    text = _VOLUMES.replaced(file, text, volumes)
    return _SERVICES.replaced(file, text, _joined(entries, everybody))


def _with_replicas(
    file: Path, text: str, participants: Mapping[str, str], askers: Collection[str]
) -> str:
    entries = _entries(_REPLICAS.content(file, text))
    wanted = {f"{name}-2": name for name in sorted(participants)}
    for replica, name in wanted.items():
        if replica not in entries:
            entries[replica] = _replica(name, participants[name], asks=name in askers)
    return _REPLICAS.replaced(file, text, _joined(entries, list(wanted)))


def _entries(text: str) -> dict[str, str]:
    """The entries of a mapping that is indented by two spaces, by key and in order."""
    _, *keys_and_values = _KEY.split(text)
    keys, values = keys_and_values[::2], keys_and_values[1::2]
    return {key: f"  {key}:\n{value.rstrip()}\n" for key, value in zip(keys, values, strict=True)}


def _joined(entries: dict[str, str], wanted: Sequence[str]) -> str:
    return "".join(f"{entry}\n" for key, entry in entries.items() if key in wanted)


def _service(name: str, package: str, port: int, *, asks: bool) -> str:
    return f"""\
  {name}:
    <<: *service
    command: [python3, -m, {package}.app]
    ports: ["127.0.0.1:{port}:{HTTP_PORT}"]
    volumes: {_volumes(name, asks=asks)}
"""


def _replica(name: str, package: str, *, asks: bool) -> str:
    return f"""\
  {name}-2:
    <<: *replica
    command: [python3, -m, {package}.app]
    networks:
      default: {{ aliases: [{name}] }}
    volumes: {_volumes(name, asks=asks)}
"""


def _volumes(name: str, *, asks: bool) -> str:
    outside = f', "outside:{OUTSIDE_FOLDER}"' if asks else ""
    return f'["{name}-secrets:/run/secrets:ro", "audit:/audit"{outside}]'
