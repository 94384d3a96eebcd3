"""Who asks every route of a service, and how that ends: made from its OpenAPI document, so that a
new route is asked as it is. It needs no saga of this repository:

    cd examples/trips && python ../../tests/closed.py

asks the services of the project there, and prints what is wrong, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

if __name__ == "__main__":  # The project's packages; but this repository's `tests`.
    sys.path[:] = [str(Path(__file__).parents[1]), *sys.path[1:]]

from saga.auth.keys import new_key, write_keys
from saga.auth.settings import KEYS_FILE_NAME
from saga.runtime.kernel.tables import utc_now
from saga.runtime.problem import PROBLEM
from tests.integration.served import Answer, Served, serving
from tests.issuer import AUDIENCE, Issuer, forged
from tests.openapi import example_of, takes_text

OPEN: Final = frozenset({"/livez", "/readyz", "/metrics"})
EVERY_SCOPE: Final = "*"


@dataclass(frozen=True)
class Operation:
    """A method of a path, and a request that makes sense to it."""

    document: Mapping[str, Any]
    path: str
    method: str
    known: Mapping[str, str]
    """Keyed by path parameter, a value that exists."""

    @property
    def declared(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.document["paths"][self.path][self.method.lower()]
        return found

    @property
    def scope(self) -> str | None:
        """What it takes of its caller, as the document shows it."""
        security = self.declared.get("security", [])
        scopes = [scope for one in security for scope in one.get("bearer", ())]
        return scopes[0] if len(security) == 1 and len(scopes) == 1 else None

    @property
    def target(self) -> str:
        path = self.path
        for parameter in self.declared.get("parameters", ()):
            if parameter["in"] == "path":
                name = parameter["name"]
                path = path.replace(f"{{{name}}}", self.known.get(name, "A"))
        return path

    @property
    def body(self) -> bytes:
        if "requestBody" not in self.declared:
            return b""
        content = self.declared["requestBody"]["content"]["application/json"]
        return json.dumps(example_of(self.document, content["schema"])).encode()

    @property
    def texts(self) -> list[str]:
        """The parameters of its query that take any text."""
        return [
            each["name"]
            for each in self.declared.get("parameters", ())
            if each["in"] == "query" and takes_text(self.document, each["schema"])
        ]

    async def asked(self, served: Served, credentials: str | None, **query: str) -> Answer:
        """Its answer to a caller with that token or key."""
        headers = [(b"Authorization", f"Bearer {credentials}".encode())] if credentials else []
        if self.body:
            headers.append((b"Content-Type", b"application/json"))
        target = f"{self.target}?{urlencode(query)}" if query else self.target
        return await served.ask(self.method, target, headers, self.body)


@dataclass
class Callers:
    """An issuer whose keys are in a file, and API keys: for a service's settings."""

    folder: Path
    issuer: Issuer = field(default_factory=Issuer)
    keys: dict[str, str] = field(default_factory=dict)
    """Keyed by role."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "jwks.json").write_bytes(self.issuer.jwks)
        self.let_in(EVERY_SCOPE)

    def let_in(self, *scopes: str) -> None:
        """Make a key for each of these scopes: known after a second to who has read the file."""
        made = [(scope, *new_key(scope, [scope], now=utc_now())) for scope in scopes]
        self.keys |= {scope: text for scope, text, _ in made}
        self._kept = [*getattr(self, "_kept", ()), *(key for _, _, key in made)]
        write_keys(self.folder / KEYS_FILE_NAME, self._kept)

    @property
    def settings(self) -> dict[str, str]:
        return {
            "AUTH": "on",
            "AUTH_ISSUER": self.issuer.url,
            "AUTH_AUDIENCE": AUDIENCE,
            "AUTH_JWKS": str(self.folder / "jwks.json"),
            "API_KEYS_FILE": str(self.folder / KEYS_FILE_NAME),
            "AUDIT_DIR": str(self.folder / "audit"),
        }


async def operations_of(served: Served, known: Mapping[str, str]) -> list[Operation]:
    """All there are, but for those that are open."""
    document = (await served.ask("GET", "/openapi.json")).json
    return [
        Operation(document, path, method.upper(), known)
        for path, methods in document["paths"].items()
        for method in methods
        if path not in OPEN
    ]


async def wrong_with(served: Served, callers: Callers, known: Mapping[str, str]) -> list[str]:
    """What is not closed of a service as it should be."""
    found: list[str] = []
    issuer = callers.issuer
    operations = await operations_of(served, known)
    strangers: dict[str, str | None] = {"nobody": None, **forged(issuer)}
    for operation in operations:
        scope = operation.scope
        if scope is None:
            found.append(f"{operation.method} {operation.path} declares no scope")
            continue
        for who, credentials in strangers.items():
            answer = await operation.asked(served, credentials)
            found += _amiss(operation, who, answer, 401)
        too_low = await operation.asked(
            served,
            issuer.token(roles=["nothing", "reader"])
            if scope.endswith(":write")
            else issuer.customers("some:other scopes:read"),
        )
        found += _amiss(operation, "a role that is too low", too_low, 403)
        stranger = await operation.asked(served, issuer.customers(scope, owner="mallory"))
        found += _shown_to_mallory(operation, stranger)
        for who in (callers.keys[EVERY_SCOPE], issuer.token(roles=["admin"])):
            if (await operation.asked(served, who)).status in (401, 403):
                found.append(f"{operation.method} {operation.path} turns an admin away")
    return found


def _amiss(operation: Operation, who: str, answer: Answer, status: int) -> Iterator[str]:
    where = f"{operation.method} {operation.path}, asked by {who}"
    if answer.status != status:
        yield f"{where}: {answer.status} instead of {status}"
    elif not answer.headers.get("www-authenticate", "").startswith("Bearer "):
        yield f"{where}: no WWW-Authenticate"
    elif str(status) not in operation.declared["responses"]:
        yield f"{where}: {status} is not declared"
    elif answer.headers["content-type"] != PROBLEM:
        yield f"{where}: {answer.headers['content-type']}"


def _shown_to_mallory(operation: Operation, answer: Answer) -> Iterator[str]:
    """What is wrong with an answer to a caller about what is another's."""
    where = f"{operation.method} {operation.path}, asked by mallory"
    if answer.status in (403, 404, 422):
        return  # 422: not even that is told.
    if answer.status != 200:
        yield f"{where}: {answer.status}"
    for name, value in operation.known.items():
        if value.encode() in answer.body:
            yield f"{where}: shows {name} {value}"


async def main() -> dict[str, list[str]]:
    sys.path.insert(0, str(Path.cwd()))
    from saga.discovery import packages

    wrong: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for package in packages():
            callers = Callers(Path(folder) / package)
            async with serving(package, callers.folder, **callers.settings) as served:
                wrong[package] = await wrong_with(served, callers, {})
    return wrong


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main())))  # noqa: T201 - for the test
