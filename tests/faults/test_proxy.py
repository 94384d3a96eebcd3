"""The proxy does to a connection what it says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest

from tests.faults.proxy import Proxy
from tests.polling import until


@dataclass
class Echo:
    """A server that sends back what it gets."""

    port: int = 0
    got: bytearray = field(default_factory=bytearray)
    ended: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1_000):
                self.got += data
                writer.write(data)
            self.ended.append("closed")
        except ConnectionResetError:
            self.ended.append("reset")
        writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    echo.port = server.sockets[0].getsockname()[1]
    async with server:
        yield echo


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[Proxy]:
    async with Proxy(lambda: echo.port) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def through(
    proxy: Proxy,
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        yield reader, writer
    finally:
        writer.transport.abort()


async def test_it_forwards_both_ways_and_passes_on_a_close(proxy: Proxy, echo: Echo) -> None:
    async with through(proxy) as (_, writer):
        writer.close()
        await until(lambda: echo.ended == ["closed"])
    await until(lambda: proxy.connections == 0)


async def test_a_cut_resets_both_ends_and_new_connections_are_taken(
    proxy: Proxy, echo: Echo
) -> None:
    async with through(proxy) as (reader, _):
        proxy.cut()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        await until(lambda: echo.ended == ["reset"])
    async with through(proxy):
        pass


async def test_what_is_sent_in_silence_arrives_after_it(proxy: Proxy, echo: Echo) -> None:
    async with through(proxy) as (reader, writer):
        proxy.silence()
        writer.write(b"late")
        await writer.drain()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        assert echo.got == b"hello"
        proxy.heal()
        assert await reader.readexactly(4) == b"late"


async def test_a_stranded_client_hears_of_it_only_when_the_network_heals(
    proxy: Proxy, echo: Echo
) -> None:
    async with through(proxy) as (reader, writer):
        proxy.strand()
        await until(lambda: echo.ended == ["reset"])
        writer.write(b"into the void")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await reader.read(1)
        proxy.heal()
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
    assert echo.got == b"hello"


async def test_a_slow_network_delivers_everything(proxy: Proxy, echo: Echo) -> None:
    async with through(proxy) as (reader, writer):
        proxy.slow(0.001)
        writer.write(b"x" * 20_000)
        assert len(await reader.readexactly(20_000)) == 20_000


async def test_a_server_that_is_away_looks_like_a_reset() -> None:
    async with Proxy(lambda: 1) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read(1)
        writer.close()
