"""The contracts as files: what the last release reads and writes, and examples of each version.

`released/<type>/v<N>.json` holds the schemas as they were when they were released last, and
`examples/<type>/v<N>*.json` messages as they were published. A change is judged by both:

- *What the last release reads.* Services are replaced one by one, so a reader of the last release
  meets what is published now. It refuses values, fields and versions that it does not know.
- *What was published by the last release* lies in queues and in the history, and has to be read by
  the code as it is now, through upcasters where its version is not the newest.

Limits that pydantic checks in code (a total that has to add up) are in no schema and not compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from saga.choreography import Choreography
from saga.envelope import Decoder, Undecodable, schema_uri
from saga.errors import Explained
from saga.message import Event, versions_of
from saga.personal.seal import SEALED_PATTERN
from saga.runtime.files import write_public
from saga.schemas.compare import Schema, unreadable
from saga.schemas.export import (
    Travelling,
    schema_files,
    schema_of,
    travelling,
)

RELEASED: Final = "released"
EXAMPLES: Final = "examples"
_NOTICE: Final = "Released, by `saga schemas release`: this is what readers out there know."


class RegistryError(Explained):
    """A contract file that cannot be read. Names it."""


@dataclass(frozen=True, slots=True)
class SchemaProblem:
    """Why a version of a message is not as it has to be."""

    type: str
    version: int
    message: str

    def __str__(self) -> str:
        return f"{self.type} v{self.version}: {self.message}"


def problems(folder: Path, choreography: Choreography) -> list[SchemaProblem]:
    """Everything that would break a reader of the last release, or makes what it published
    unreadable. Raises `RegistryError`."""
    released = _released(folder)
    messages = {message.type: message for message in travelling(choreography)}
    found = [
        *_unknown_to_the_last_release(choreography, released),
        *(
            problem
            for (type_, version), schema in released.items()
            for problem in _compared(messages.get(type_), type_, version, schema)
        ),
    ]
    for message in messages.values():
        found += _examples(folder / EXAMPLES, message)
    return sorted(found, key=lambda problem: (problem.type, problem.version))


def not_sealed_yet(folder: Path, choreography: Choreography) -> list[str]:
    """The released messages with fields that may be sealed, of which the last release reads the
    clear text alone: `PERSONAL=sealed` has to wait until the next one is out. Raises
    `RegistryError`."""
    messages = {message.type: message for message in travelling(choreography)}
    found = []
    for (type_, version), released in _released(folder).items():
        kind = versions_of(messages[type_]).get(version) if type_ in messages else None
        now = "" if kind is None else json.dumps(schema_of(kind))
        pattern = json.dumps(SEALED_PATTERN)
        if now.count(pattern) > json.dumps(released).count(pattern):
            found.append(f"{type_} v{version}")
    return sorted(found)


def release(folder: Path, choreography: Choreography) -> list[Path]:
    """Note the schemas as they are now as released; returns the files that changed.

    To be called when `problems` finds none.
    """
    changed = []
    for name, text in schema_files(choreography, _NOTICE).items():
        file = folder / RELEASED / name
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            write_public(file, text)
            changed.append(file)
    return changed


def _released(folder: Path) -> dict[tuple[str, int], Schema]:
    return {
        (file.parent.name, int(file.stem[1:])): _read(file)
        for file in sorted((folder / RELEASED).glob("*/v*.json"))
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RegistryError(f"{file} cannot be read: {error}") from error
    if not isinstance(document, dict):
        raise RegistryError(f"{file} is JSON, but no object")
    return document


def _unknown_to_the_last_release(
    choreography: Choreography, released: dict[tuple[str, int], Schema]
) -> Iterator[SchemaProblem]:
    types = {type_ for type_, _ in released}
    published = {kind for p in choreography.participants for kind in p.emits}
    for kind in published:
        if kind.type in types and (kind.type, kind.version) not in released:
            yield SchemaProblem(
                kind.type,
                kind.version,
                "is published, but the last release cannot read it; release the class and its "
                "upcasters first, and let the reactions publish the released version until then",
            )


def _compared(
    message: Travelling | None, type_: str, version: int, released: Schema
) -> Iterator[SchemaProblem]:
    kind = versions_of(message).get(version) if message else None
    if kind is None:
        yield SchemaProblem(
            type_,
            version,
            "was released, but has no class any more, so nothing of it can be read; once none is "
            f"left in queues and history, delete it from {RELEASED}/ and {EXAMPLES}/",
        )
        return
    now = schema_of(kind)
    # Events are written by `Envelope.to_bytes`; a command may come from anywhere.
    ours = issubclass(kind, Event)
    for problem in unreadable(now, released, defaults_written=ours):
        yield SchemaProblem(type_, version, f"readers of the last release refuse it: {problem}")
    for problem in unreadable(released, now, defaults_written=ours):
        yield SchemaProblem(
            type_, version, f"what the last release published is refused: {problem}"
        )


def _examples(folder: Path, message: Travelling) -> Iterator[SchemaProblem]:
    decoder = Decoder([message])
    newest = max(versions_of(message))
    for version, kind in versions_of(message).items():
        files = sorted(folder.glob(f"{kind.type}/v{version}.json")) + sorted(
            folder.glob(f"{kind.type}/v{version}-*.json")
        )
        if not files:
            missing = folder / kind.type / f"v{version}.json"
            yield SchemaProblem(
                kind.type, version, f"has no example; put a message of it in {missing}"
            )
        for file in files:
            if reason := _misread(_read(file), kind, decoder, newest):
                yield SchemaProblem(kind.type, version, f"the example {file.name} {reason}")


def _misread(
    document: dict[str, Any], kind: Travelling, decoder: Decoder, newest: int
) -> str | None:
    """Why an example is not read as what it is."""
    if document.get("dataschema") != schema_uri(kind):
        return f"is of {document.get('dataschema')!r}, not of {schema_uri(kind)!r}"
    try:
        read = decoder.decode(json.dumps(document).encode())
    except Undecodable as error:
        return f"cannot be read: {error}"
    except Exception as error:
        return f"cannot be upcast: {type(error).__name__}: {error}"
    if read.data.version != newest:
        return f"is read as version {read.data.version}, but the newest is {newest}"
    return None
