"""What it costs to know who asks: orders placed over HTTP, with `AUTH` off and on, in turns.

An order service for each way runs, without the others of its saga, so that nothing but placing
orders is measured; the client, in a process of its own, speaks HTTP on plain sockets.

    python -m bench.auth PORT RESULT LOAD
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import uvloop
import yarl
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from bench.compare import Spread
from bench.rig import SQLITE, Bench, Report, Variant, cpu_seconds, started
from saga.auth.keys import new_key, write_keys
from saga.auth.settings import KEYS_FILE_NAME
from saga.local.node import RabbitNode
from saga.runtime.kernel.tables import utc_now

COST_MAX: Final = 0.05
"""Of the orders a second."""
CONNECTIONS: Final = 16
CONFIRMED_SECONDS: Final = 60.0
ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "bench"
OFF: Final = "off"
KEY: Final = "an API key"
TOKEN: Final = "a token"  # noqa: S105 - what it is called
FRESH: Final = "tokens, each used once"
WAYS: Final = (OFF, KEY, TOKEN, FRESH)


@dataclass(frozen=True, slots=True)
class AuthCost:
    """What one way to be known costs: ratios to the same load without authentication."""

    way: str
    orders_per_second: Spread
    cpu: Spread
    """Of the order service."""

    @property
    def met(self) -> bool:
        """Tokens that are each used once are no load that there is: they are shown, and no more."""
        return self.way == FRESH or self.orders_per_second.median >= 1 - COST_MAX


@dataclass(frozen=True, slots=True)
class _Slice:
    orders_per_second: float
    cpu_ms: float


class _Issuer:
    def __init__(self, folder: Path) -> None:
        self._key = RSAKey.generate_key(2_048, {"kid": "bench"})
        self.file = folder / "jwks.json"
        self.file.write_text(json.dumps(KeySet([self._key]).as_dict(private=False)))

    def tokens(self) -> Iterator[str]:
        while True:
            claims = {
                "iss": ISSUER,
                "aud": AUDIENCE,
                "sub": f"bench-{uuid4()}",
                "roles": ["operator"],
                "exp": int(time.time()) + 3_600,
            }
            yield jwt.encode({"alg": "RS256", "kid": "bench"}, claims, self._key)


async def authentication(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> list[AuthCost]:
    """Measure each way twice in every round, there and back."""
    found: dict[str, list[_Slice]] = {way: [] for way in WAYS}
    issuer = _Issuer(folder)
    text, key = new_key("bench", ["*:write"], now=utc_now())
    write_keys(folder / KEYS_FILE_NAME, [key])
    closed = {
        "AUTH": "on",
        "AUTH_ISSUER": ISSUER,
        "AUTH_AUDIENCE": AUDIENCE,
        "AUTH_JWKS": str(issuer.file),
        "API_KEYS_FILE": str(folder / KEYS_FILE_NAME),
    }
    unlimited = {"HTTP_REQUESTS_PER_SECOND": "0", "AUTH_REQUESTS_PER_SECOND": "0"}
    alone = Variant("alone", programs=SQLITE.programs, services=("order",), environment=unlimited)
    tokens = issuer.tokens()
    async with contextlib.AsyncExitStack() as running:
        # One for each way: a database that has more orders in it is slower.
        benches = {
            way: await running.enter_async_context(
                started(alone, node, folder, seed=1, **({} if way == OFF else closed))
            )
            for way in WAYS
        }
        for number in range(rounds + 1):
            report(f"round {number} of {rounds}" if number else "warming up")
            for way in WAYS + WAYS[::-1]:
                credentials = {
                    OFF: [],
                    KEY: [text],
                    TOKEN: [next(tokens)],
                    FRESH: [next(tokens) for _ in range(orders if way == FRESH else 0)],
                }[way]
                measured = await _placed(benches[way], orders, credentials)
                if number:
                    found[way].append(measured)
    return [
        AuthCost(
            way,
            _ratio([one.orders_per_second for one in found[way]], found[OFF], "orders_per_second"),
            _ratio([one.cpu_ms for one in found[way]], found[OFF], "cpu_ms"),
        )
        for way in WAYS[1:]
    ]


def _ratio(values: list[float], others: list[_Slice], figure: str) -> Spread:
    pairs = zip(values, others, strict=True)
    return Spread.of([value / float(getattr(other, figure)) for value, other in pairs])


async def _placed(bench: Bench, orders: int, credentials: list[str]) -> _Slice:
    """Place so many, and wait until all their events are published: the next slice has the machine
    to itself."""
    pid = bench.system.pid("order")
    url = yarl.URL(bench.system.deployment.http_urls["order"][0])
    load = {"orders": orders, "prefix": uuid4().hex, "credentials": credentials}
    given, result = bench.system.folder / "load.json", bench.system.folder / "placed.json"
    given.write_text(json.dumps(load))
    cpu = cpu_seconds(pid)
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.auth", str(url.port), str(result), str(given)
    )
    if await process.wait():
        raise RuntimeError(f"the load ended with {process.returncode}")
    spent = cpu_seconds(pid) - cpu
    seconds: float = json.loads(result.read_text())
    async with asyncio.timeout(CONFIRMED_SECONDS):
        while await asyncio.to_thread(_backlog, url):  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.1)
    return _Slice(orders / seconds, spent * 1_000 / orders)


def _backlog(url: yarl.URL) -> float:
    import httpx

    text = httpx.get(str(url / "metrics"), trust_env=False).text
    found = [line for line in text.splitlines() if line.startswith("saga_outbox_backlog{")]
    return float(found[0].split()[-1])


# --- the load -------------------------------------------------------------------------------------


async def _load(port: int, load: dict[str, Any]) -> float:
    """Place the orders; gives the seconds that took."""
    numbers = iter(range(load["orders"]))
    credentials: list[str] = load["credentials"]

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for number in numbers:
            writer.write(_request(load["prefix"], number, credentials))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 202"):
                raise RuntimeError(f"the answer is {head[:200]!r}")
            _, _, length = head.lower().partition(b"content-length: ")
            await reader.readexactly(int(length.split(b"\r\n")[0]))
        writer.close()

    began = time.monotonic()
    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    return time.monotonic() - began


def _request(prefix: str, number: int, credentials: list[str]) -> bytes:
    line = {"sku": f"sku-{number % 50}", "quantity": 1, "unit_price_cents": 100}
    order = {"customer": f"customer-{number % 1_000}", "currency": "EUR", "lines": [line]}
    body = json.dumps(order).encode()
    known = ""
    if credentials:
        known = f"Authorization: Bearer {credentials[number % len(credentials)]}\r\n"
    head = (
        f"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {prefix}-{number}\r\n{known}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def main() -> None:
    port, result, given = sys.argv[1:]
    seconds = uvloop.run(_load(int(port), json.loads(Path(given).read_text())))
    Path(result).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
