"""What it costs to know who asks: orders placed over HTTP, with `AUTH` off and on, in turns.

First through the whole saga, as a client has them done. Then an order service for each way runs
without the others of its saga, so that nothing but placing orders is measured. The client, in a
process of its own, speaks HTTP on plain sockets.

    python -m bench.auth      # the client: reads loads a line, prints the seconds they took
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from unittest import mock
from uuid import uuid4

import uvloop
import yarl
from joserfc import jwt
from joserfc.jwk import KeySet, RSAKey

from bench.compare import Spread, all_started
from bench.over_http import placed, placing
from bench.rig import SQLITE, Bench, Measured, Report, Variant, exact_cpu_seconds, started
from saga.auth.keys import new_key, write_keys
from saga.auth.settings import KEYS_FILE_NAME
from saga.local.node import RabbitNode
from saga.runtime.kernel.tables import utc_now

COST_MAX: Final = 0.05
"""Of the orders a second through the whole saga, and of the CPU of an order service by itself."""
OFF_COST_MAX: Final = 0.02
"""The same, for a hook that is there and asks no caller."""
CONFIRMED_SECONDS: Final = 60.0
ISSUER: Final = "https://issuer.example"
AUDIENCE: Final = "bench"
NO_DOOR: Final = "nothing: the hook is taken out"
OFF: Final = "off"
WHOLE_SAGA: Final = "off, in the whole saga"
KEY: Final = "an API key"
TOKEN: Final = "a token"  # noqa: S105 - what it is called
FRESH: Final = "tokens, each used once"
UNLIMITED: Final = {"HTTP_REQUESTS_PER_SECOND": "0", "AUTH_REQUESTS_PER_SECOND": "0"}
WAYS: Final = (NO_DOOR, OFF, KEY, TOKEN, FRESH)


@dataclass(frozen=True, slots=True)
class AuthCost:
    """What one way to be known costs: ratios to the same load on another."""

    way: str
    to: str
    orders_per_second: Spread
    cpu: Spread
    """Of all that runs: the services of a saga, or the order service."""

    @property
    def met(self) -> bool:
        """Whether the orders a second through the whole saga, or the CPU of a service by itself,
        are within the limit. Tokens that are each used once are no load that there is: they are
        shown, and no more."""
        if self.to == WHOLE_SAGA:
            return self.orders_per_second.median >= 1 - COST_MAX
        limit = OFF_COST_MAX if self.way == OFF else COST_MAX
        return self.way == FRESH or self.cpu.median <= 1 + limit


@dataclass(frozen=True, slots=True)
class _Slice:
    """What one or several ways did, each at its place."""

    rates: list[float]
    """Orders a second."""
    cpu_ms: list[float]
    """Of the order service, per order."""


@dataclass(frozen=True, slots=True)
class Placing:
    bench: Bench
    orders: int
    credentials: list[str]


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
    """Measure what the ways cost in the whole saga, and then an order service by itself."""
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
    tokens = issuer.tokens()
    report("the whole saga")
    credentials = {OFF: "", KEY: text, TOKEN: next(tokens)}
    found = await _in_the_whole_saga(node, folder, closed, credentials, rounds, orders, report)
    report("an order service by itself")
    return found + await _alone(node, folder, closed, text, tokens, rounds, orders, report)


async def _in_the_whole_saga(
    node: RabbitNode,
    folder: Path,
    closed: Mapping[str, str],
    credentials: Mapping[str, str],
    rounds: int,
    orders: int,
    report: Report,
) -> list[AuthCost]:
    """Measure each way twice in every round, there and back."""
    found: dict[str, list[Measured]] = {way: [] for way in credentials}
    open_ = {**SQLITE.environment, **UNLIMITED}
    ways = [
        replace(SQLITE, name=way, environment=open_ if way == OFF else {**open_, **closed})
        for way in credentials
    ]
    with mock.patch.dict(os.environ, {"SAGA_API_KEY": credentials[KEY]}):  # To deliver stock.
        async with all_started(ways, node, folder, report) as benches:
            for number in range(rounds + 1):
                report(f"round {number} of {rounds}" if number else "warming up")
                for way in [*credentials, *reversed([*credentials])]:
                    measured = await benches[way].load(
                        orders, over_http=True, credentials=credentials[way]
                    )
                    if number:
                        found[way].append(measured)
    rates = {way: [one.orders_per_second for one in each] for way, each in found.items()}
    spent = {way: [one.services_cpu_ms for one in each] for way, each in found.items()}
    return [
        AuthCost(way, WHOLE_SAGA, _ratio(rates[way], rates[OFF]), _ratio(spent[way], spent[OFF]))
        for way in (KEY, TOKEN)
    ]


async def _alone(
    node: RabbitNode,
    folder: Path,
    closed: Mapping[str, str],
    text: str,
    tokens: Iterator[str],
    rounds: int,
    orders: int,
    report: Report,
) -> list[AuthCost]:
    """Measure orders a second of each way twice in every round, there and back, and CPU of all of
    them at the same time, so that what else the machine does falls on all alike."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    spent: dict[str, list[float]] = {way: [] for way in WAYS}
    alone = Variant("alone", services=("order",), environment=UNLIMITED)
    no_door = replace(alone, programs={"order": ("-m", "bench.without_door")})
    async with _client() as client, contextlib.AsyncExitStack() as running:
        # One for each way: a database that has more orders in it is slower.
        benches = {
            way: await running.enter_async_context(
                started(
                    no_door if way == NO_DOOR else alone,
                    node,
                    folder,
                    seed=1,
                    **({} if way in (NO_DOOR, OFF) else closed),
                )
            )
            for way in WAYS
        }

        def loads(ways: Sequence[str]) -> list[Placing]:
            credentials: dict[str, list[str]] = {
                KEY: [text],
                TOKEN: [next(tokens)],
                FRESH: [next(tokens) for _ in range(orders)] if FRESH in ways else [],
            }
            return [Placing(benches[way], orders, credentials.get(way, [])) for way in ways]

        for number in range(rounds + 1):
            report(f"round {number} of {rounds}" if number else "warming up")
            for way in WAYS + WAYS[::-1]:
                (rate,) = (await _placed(client, loads([way]))).rates
                if number:
                    rates[way].append(rate)
            for order in (WAYS, WAYS[::-1]):
                measured = await _placed(client, loads(order))
                for way, cpu_ms in zip(order, measured.cpu_ms, strict=True):
                    if number:
                        spent[way].append(cpu_ms)
    return [
        AuthCost(way, to, _ratio(rates[way], rates[to]), _ratio(spent[way], spent[to]))
        for way, to in [(OFF, NO_DOOR), *((way, OFF) for way in (KEY, TOKEN, FRESH))]
    ]


def _ratio(values: Sequence[float], to: Sequence[float]) -> Spread:
    return Spread.of_many([one / other for one, other in zip(values, to, strict=True)])


Client = Callable[[list[dict[str, Any]]], Awaitable[list[float]]]
"""Places the orders of several loads at once, and gives the seconds that each took."""


@contextlib.asynccontextmanager
async def _client() -> AsyncIterator[Client]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench.auth",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    writer, reader = process.stdin, process.stdout

    async def place(loads: list[dict[str, Any]]) -> list[float]:
        writer.write(json.dumps(loads).encode() + b"\n")
        await writer.drain()
        if line := await reader.readline():
            seconds: list[float] = json.loads(line)
            return seconds
        raise RuntimeError(f"the load ended with {await process.wait()}")

    try:
        yield place
    finally:
        writer.close()
        await process.wait()


async def _placed(client: Client, loads: Sequence[Placing]) -> _Slice:
    """Place them all at once, and wait until all their events are published: the next slice has the
    machine to itself."""
    pids = [load.bench.system.pid("order") for load in loads]
    urls = [yarl.URL(load.bench.system.deployment.http_urls["order"][0]) for load in loads]
    before = list(map(exact_cpu_seconds, pids))
    seconds = await client(
        [
            {
                "orders": load.orders,
                "prefix": uuid4().hex,
                "credentials": load.credentials,
                "port": url.port,
            }
            for load, url in zip(loads, urls, strict=True)
        ]
    )
    after = list(map(exact_cpu_seconds, pids))
    async with asyncio.timeout(CONFIRMED_SECONDS):
        for url in urls:
            while await asyncio.to_thread(_backlog, url):  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(0.05)
    return _Slice(
        [load.orders / took for load, took in zip(loads, seconds, strict=True)],
        [
            (now - then) * 1_000 / load.orders
            for load, now, then in zip(loads, after, before, strict=True)
        ],
    )


def _backlog(url: yarl.URL) -> float:
    import httpx

    text = httpx.get(str(url / "metrics"), trust_env=False).text
    found = [line for line in text.splitlines() if line.startswith("saga_outbox_backlog{")]
    return float(found[0].split()[-1])


# --- the load -------------------------------------------------------------------------------------


async def _all(loads: list[dict[str, Any]]) -> list[float]:
    return await asyncio.gather(*map(_load, loads))


async def _load(load: dict[str, Any]) -> float:
    """Place the orders; gives the seconds that took."""
    tokens: list[str] = load["credentials"] or [""]
    requests = (
        placing(_order(number), f"{load['prefix']}-{number}", tokens[number % len(tokens)])
        for number in range(load["orders"])
    )
    began = time.monotonic()
    await placed(load["port"], requests)
    return time.monotonic() - began


def _order(number: int) -> dict[str, Any]:
    line = {"sku": f"sku-{number % 50}", "quantity": 1, "unit_price_cents": 100}
    return {"customer": f"customer-{number % 1_000}", "currency": "EUR", "lines": [line]}


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(uvloop.run(_all(json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
