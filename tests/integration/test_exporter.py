"""`saga exporter`: the store of dead letters and the books, as Prometheus gets them."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from saga.deployment import Deployment
from saga.dlq.figures import FINGERPRINTS_MAX, OTHER, figures
from saga.dlq.letters import Copy
from saga.dlq.selection import Selection
from saga.dlq.store import Store
from saga.exporter import Exporter
from saga.runtime.messaging.frames import NO_PROPERTIES
from tests.polling import until

NOW = datetime(2020, 1, 1, tzinfo=UTC)


def copy(number: int, *, fingerprint: str, participant: str = "payment") -> Copy:
    """One that died `number` hours ago."""
    died = NOW - timedelta(hours=number)
    return Copy(
        participant=participant,
        key=f"message-{number}",
        died=died.isoformat(),
        event_id=f"message-{number}",
        type="stock.reserved",
        subject=None,
        queue=f"{participant}.normal",
        reason="failed",
        error_type="Unavailable",
        error="no answer",
        fingerprint=fingerprint,
        attempts=4,
        replays=0,
        first_failed_at=died,
        last_failed_at=died,
        properties={},
        headers={},
        raw=NO_PROPERTIES,
        body=b"{}",
    )


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'dead_letters.db'}"


def filled(url: str, *copies: Copy) -> Store:
    store = Store(url)
    store.take(copies, NOW)
    return store


def test_dead_letters_are_counted_by_what_went_wrong_and_settled_ones_are_not(url: str) -> None:
    store = filled(
        url,
        copy(1, fingerprint="aa"),
        copy(2, fingerprint="aa"),
        copy(3, fingerprint="bb"),
        copy(9, fingerprint="cc"),
    )
    store.discard(Selection(fingerprint="cc"), "a test")
    store.close()

    found = figures(url)

    assert found.here == {("payment", "failed", "aa"): 2, ("payment", "failed", "bb"): 1}
    assert found.oldest == {"payment": NOW - timedelta(hours=3)}


def test_only_so_many_kinds_of_failure_are_told_apart(url: str) -> None:
    kinds = FINGERPRINTS_MAX + 5
    many = [copy(1_000 + number, fingerprint="most") for number in range(3)]
    filled(url, *many, *(copy(n, fingerprint=f"{n:012x}") for n in range(kinds))).close()

    found = figures(url).here

    assert len(found) == FINGERPRINTS_MAX + 1
    assert found["payment", "failed", "most"] == 3
    assert found["payment", "failed", OTHER] == kinds + 1 - FINGERPRINTS_MAX
    assert sum(found.values()) == kinds + 3


def test_a_store_that_was_never_needed_is_not_made(url: str, tmp_path: Path) -> None:
    assert figures(url).here == {}
    assert figures(None).here == {}
    assert list(tmp_path.iterdir()) == []


def deployment(url: str, port: int) -> Deployment:
    """One whose broker is not there."""
    return Deployment(
        amqp_url=f"amqp://guest:guest@127.0.0.1:{port}/",
        http_urls={},
        database_urls={},
        outside_urls={"provider": url},
        dead_letters_url=url,
    )


async def test_books_that_cannot_be_read_are_counted_and_are_not_told_to_be_right(
    url: str, closed_port: int
) -> None:
    filled(url, copy(1, fingerprint="aa")).close()
    with Exporter(deployment(url, closed_port), host="127.0.0.1", port=0) as exporter:
        reconciling = asyncio.create_task(exporter.run(0.05))

        def samples() -> dict[str, float]:
            """The greatest of each name."""
            text = httpx.get(exporter.url, trust_env=False).text
            found: dict[str, float] = {}
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    found[sample.name] = max(sample.value, found.get(sample.name, sample.value))
            return found

        async def failed_again() -> bool:
            return (await asyncio.to_thread(samples))["saga_reconcile_failures_total"] > 1

        await until(failed_again)
        found = await asyncio.to_thread(samples)
        reconciling.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reconciling

    assert found["saga_dead_letters"] == 1
    assert found["saga_dead_letters_oldest_seconds"] > timedelta(hours=1).total_seconds()
    assert "saga_reconcile_violations" not in found


def test_an_address_in_use_is_one_line_with_the_way_out(url: str) -> None:
    with Exporter(deployment(url, 1), host="127.0.0.1", port=0) as first:
        port = int(first.url.rpartition(":")[2].partition("/")[0])
        second = Exporter(deployment(url, 1), host="127.0.0.1", port=port)
        with pytest.raises(OSError, match="--port"):
            second.__enter__()
