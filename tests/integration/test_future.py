"""`saga future`: what can still happen to an order whose charge is a dead letter."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from inventory_service.domain import AddStock
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.future import asking
from saga.history.archive import Archive
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import DEAD_EXCHANGE, apply, topology_of
from tests.books import Books
from tests.command import saga
from tests.messages import message_of
from tests.order_play import Play, confirmed


@dataclass
class Scene:
    """A system without services, in which one order waits for its money, and one has ended."""

    folder: Path
    waiting: str
    ended: str

    def ask(self, *arguments: str) -> Any:
        return saga("future", *arguments, DATA_DIR=str(self.folder))

    def document(self, *arguments: str) -> dict[str, Any]:
        done = self.ask(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


async def _put(url: str, play: Play) -> None:
    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        await apply(topology_of(choreography()), channel)
        dead = await channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        (delivery,) = play.failed
        letter = message_of(delivery.event.to_bytes())
        letter.headers |= {"x-saga-reason": "failed", "x-saga-error": "no answer"}
        await dead.publish(letter, "payment")


@pytest.fixture(scope="module")
def scene(
    virtual_host: Callable[[], AbstractContextManager[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scene]:
    play = Play(at=utc_now() - timedelta(minutes=1), tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    ended = confirmed(play)
    play.provider_down = True
    waiting = play.place()
    play.deliver()
    folder = tmp_path_factory.mktemp("scene")
    with virtual_host() as url:
        books = Books(folder, play)
        asyncio.run(books.write())
        asyncio.run(_put(url, play))
        books.deployment(url).save(folder)
        yield Scene(folder, waiting, ended)


def test_the_ends_of_a_saga_are_told_each_with_a_shortest_way(scene: Scene) -> None:
    done = scene.ask(scene.waiting)

    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = done.stdout
    assert "all of what can happen to it: " in said
    assert "on its way: stock.reserved to payment, a dead letter" in said
    for end in (
        "order.confirmed (confirmed)",
        "order.cancelled (customer_request)",
        "order.cancelled (deadline_exceeded)",
        "order.cancelled (payment_declined)",
    ):
        assert said.count(end) == 2  # In the table, and above the way to it.
    assert "(confirmed_unpaid)" in said
    assert "order: publishes order.confirmed" in said
    assert "rules not judged, as they read more than this subject: stock_negative" in said
    assert "order.place, stock.add" in said


def test_what_cannot_happen_any_more_is_named(scene: Scene) -> None:
    found = scene.document(scene.ended)

    assert found["out_of_reach"] == ["order.cancelled"]
    (end,) = found["ends"]
    assert end["events"] == [{"type": "order.confirmed", "outcome": "confirmed"}]
    assert end["way"] == []
    assert "confirmed_unpaid" in found["holding"]
    assert "it cannot end any more by: order.cancelled" in scene.ask(scene.ended).stdout


def test_each_step_that_is_listed_can_be_asked_about(scene: Scene) -> None:
    listed = scene.document(scene.waiting)["steps"]
    table = scene.ask(scene.waiting).stdout

    said = {step["what"] for step in listed}
    assert any(what.startswith("the dead letter stock.reserved is replayed at") for what in said)
    assert "its time comes now: order does order.expire" in said
    for step in listed:
        options = [each for one in step["if"] for each in ("--if", one)]
        assert " ".join(map(shlex.quote, options)) in table
        found = scene.document(scene.waiting, *options)
        assert found["ok"]
        assert found["usual"]["events"][0]["type"] == "order.confirmed"
        assert 1 <= found["what_if"]["asked"] <= len(found["what_if"]["way"])


def test_what_would_follow_is_told_beside_what_usually_does(scene: Scene) -> None:
    done = scene.ask(scene.waiting, "--if", "order do order.expire")

    assert done.returncode == 0, done.stderr
    assert "it would come to: order.cancelled (deadline_exceeded)" in done.stdout
    assert "otherwise it comes to: order.confirmed (confirmed)" in done.stdout
    assert "payment: publishes payment.refunded" in done.stdout


def test_an_earlier_moment_has_more_before_it(scene: Scene) -> None:
    found = scene.document(scene.ended, "--event", "2")

    assert found["event"] == 2
    assert {"type": "order.cancelled", "outcome": "deadline_exceeded"} in [
        event for end in found["ends"] for event in end["events"]
    ]
    assert any("not as it was then" in said for said in found["taken_for_granted"])
    assert "as of its event 2 of" in scene.ask(scene.ended, "--event", "2").stdout


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--if", ""), 2, "is no step; write PARTICIPANT take MESSAGE"),
        (("--if", "payment take nothing"), 1, "not on its way"),
        (("--if", "order do order.burn"), 1, "there are: "),
        (("--event", "1000"), 1, "so there is no event 1000"),
    ],
)
def test_what_makes_no_sense_or_is_not_there_is_refused_with_what_would(
    scene: Scene, arguments: tuple[str, str], status: int, said: str
) -> None:
    done = scene.ask(scene.waiting, *arguments)

    assert (done.returncode, done.stdout) == (status, "")
    assert said in done.stderr


def test_a_subject_that_nobody_knows_is_refused(scene: Scene) -> None:
    done = scene.ask(unknown := str(uuid4()))

    assert (done.returncode, done.stdout) == (1, "")
    assert f"no events about '{unknown}'" in done.stderr


def test_what_was_not_looked_at_is_not_called_fine(scene: Scene) -> None:
    done = scene.ask(scene.waiting, "--max-states", "70")
    document = json.loads(scene.ask(scene.waiting, "--max-states", "70", "--json").stdout)

    assert done.returncode == 1
    assert "not all was looked at" in done.stdout
    assert "what holds in all of that" in done.stdout
    assert "cannot end any more" not in done.stdout
    assert (document["ok"], document["out_of_reach"]) == (False, None)


def test_a_history_that_is_behind_is_told_and_not_called_fine(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def behind(_: Archive) -> int:
        return 3

    monkeypatch.setattr(Archive, "behind", behind)
    monkeypatch.setattr(asking, "CATCH_UP_SECONDS", 0.0)
    done = scene.ask(scene.ended)
    nobody = scene.ask(str(uuid4()))

    assert done.returncode == 1
    assert "order.confirmed (confirmed)" in done.stdout
    assert "the history is 3 messages behind the stream" in done.stderr
    assert nobody.returncode == 1
    assert "but the history is 3 messages behind" in nobody.stderr


def test_without_a_broker_it_is_told_what_is_not_known(scene: Scene, tmp_path: Path) -> None:
    known = Deployment.load(scene.folder)
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls=known.database_urls,
        outside_urls=known.outside_urls,
        dead_letters_url=known.dead_letters_url,
    ).save(tmp_path)
    done = saga("future", scene.waiting, DATA_DIR=str(tmp_path))

    assert done.returncode == 1
    assert "order.confirmed (confirmed)" in done.stdout
    assert "how far the history is behind is not known" in done.stderr
