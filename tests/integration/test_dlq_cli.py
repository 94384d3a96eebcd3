"""`saga dlq` as a user at a terminal meets it, on the real services' topology."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from typer.testing import CliRunner

from common.events import HeldLine, OrderCancelled, StockReserved
from payment_service.gateway import SandboxGateway
from saga.cli import app
from saga.deployment import Deployment
from saga.discovery import choreography, participants, tables_in
from saga.dlq.lookup import look
from saga.envelope import wrap
from saga.message import Priority
from saga.reconcile import reconcile
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging import dead_letters as headers_of
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    apply,
    topology_of,
    wait_queue,
    work_queue,
)
from saga.status import status
from tests import forked
from tests.messages import message_of
from tests.polling import until

TABLES = {participant.name: tables_in(package) for package, participant in participants().items()}
ORDER = UUID(int=7)


def reserved(order: UUID = ORDER, id: str = "reserved-7") -> Any:
    event = StockReserved(
        order_id=order,
        customer="ada",
        currency="EUR",
        total_cents=995,
        lines=(HeldLine(sku="tea", quantity=1),),
    )
    return wrap(
        event,
        id=id,
        source="/services/inventory",
        time=utc_now(),
        priority=Priority.NORMAL,
        sequence=1,
    )


class Stage:
    """Databases of the services, which do not run, and the topology."""

    def __init__(self, folder: Path, deployment: Deployment, channel: Any) -> None:
        self.folder = folder
        self.deployment = deployment
        self.channel = channel

    async def publish(self, envelope: Any, exchange: str, key: str, **headers: Any) -> None:
        target = await self.channel.get_exchange(exchange, ensure=False)
        message = message_of(envelope.to_bytes())
        message.headers |= headers
        await target.publish(message, key)

    async def bury(self, envelope: Any, participant: str = "payment") -> None:
        """The event in the history, and dead at one participant that reacts to it."""
        await self.publish(envelope, EVENTS_EXCHANGE, envelope.routing_key)
        queue = work_queue(participant, Priority.NORMAL)
        found = await self.channel.get_queue(queue, ensure=False)
        await found.get(no_ack=True)
        await self.publish(envelope, DEAD_EXCHANGE, participant, **dead(queue))

    async def depth(self, queue: str) -> int:
        declared = await self.channel.declare_queue(queue, passive=True)
        count: int = declared.declaration_result.message_count
        return count

    async def has(self, queue: str, count: int) -> bool:
        return await self.depth(queue) == count

    async def lost(self) -> set[str]:
        report = await reconcile(self.deployment, settle_seconds=0.0)
        return {v.subject for v in report.violations if v.rule == "lost"}

    def saga(self, *arguments: str) -> Any:
        return CliRunner().invoke(
            app, ["dlq", *arguments, "--data-dir", str(self.folder)], env={"COLUMNS": "300"}
        )

    async def saga_process(self, *arguments: str) -> str:
        """What a process of its own prints; an event loop that runs has no room for another."""
        command = (forked.SAGA, "dlq", *arguments, "--data-dir", str(self.folder))
        return (await asyncio.to_thread(forked.run, *command)).stdout


def dead(queue: str) -> dict[str, Any]:
    at = utc_now().isoformat()
    return {
        headers_of.REASON: "failed",
        headers_of.ERROR_TYPE: "GatewayUnavailable",
        headers_of.ERROR: "no answer [from] the provider",
        headers_of.FINGERPRINT: "abcabcabcabc",
        headers_of.ATTEMPTS: 4,
        headers_of.FIRST_FAILED_AT: at,
        headers_of.LAST_FAILED_AT: at,
        headers_of.ORIGIN_QUEUE: queue,
    }


@pytest.fixture
async def stage(amqp_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    deployment = Deployment(
        amqp_url=amqp_url,
        http_urls={},
        database_urls={name: f"sqlite:///{tmp_path / name}.db" for name in TABLES},
        outside_urls={"provider": f"sqlite:///{tmp_path / 'provider'}.db"},
    )
    deployment.save(tmp_path)
    for name, tables in TABLES.items():
        engine = sqlite_engine(deployment.database_urls[name])
        tables.metadata.create_all(engine)
        engine.dispose()
    await SandboxGateway(deployment.outside_urls["provider"]).close()
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel(on_return_raises=True)
        await apply(topology_of(choreography()), channel)
        yield Stage(tmp_path, Deployment.load(tmp_path), channel)


@pytest.fixture
async def letter(stage: Stage) -> Stage:
    """A stage with one dead letter of payment's: number 1."""
    await stage.bury(reserved())
    await until(lambda: stage.has("payment.dlq", 1))
    return stage


def test_list_groups_and_names_an_example(letter: Stage) -> None:
    for by in ("fingerprint", "type", "service"):
        done = letter.saga("list", "--by", by, "--json")
        assert done.exit_code == 1
        (group,) = json.loads(done.stdout)["groups"]
        assert (group["letters"], group["example"], group["subjects"]) == (1, 1, 1)
    done = letter.saga("list")
    assert "GatewayUnavailable: no answer [from] the provider" in done.stdout
    assert "abcabcabcabc" in done.stdout


FILTERS = {
    ("--queue", "payment.normal"): 1,
    ("--queue", "payment.dlq"): 1,
    ("--queue", "payment.high"): 0,
    ("--service", "order"): 0,
    ("--type", "stock.reserved"): 1,
    ("--type", "order.placed"): 0,
    ("--error", "NO ANSWER"): 1,
    ("--error", "100%"): 0,
    ("--order", str(ORDER)): 1,
    ("--older-than", "1h"): 0,
    ("--newer-than", "1h"): 1,
    ("--fingerprint", "abcabcabcabc"): 1,
    ("--state", "discarded"): 0,
}


def test_list_filters(letter: Stage) -> None:
    for filters, found in FILTERS.items():
        done = letter.saga("list", "--by", "letter", "--json", *filters)
        assert (json.loads(done.stdout)["letters"], filters) == (found, filters)
        assert done.exit_code == (1 if found else 0)


def test_show_tells_everything_and_what_a_replay_would_do(letter: Stage) -> None:
    done = letter.saga("show", "reserved-7", "--json")
    assert done.exit_code == 0
    document = json.loads(done.stdout)
    assert document["letter"] == 1
    assert document["payload"]["data"]["total_cents"] == 995
    assert document["correlation_id"] == str(ORDER)
    assert len(document["trace_id"]) == 32
    assert document["headers"][headers_of.ATTEMPTS] == 4
    assert document["replay"]["expectation"] == "handled"
    text = letter.saga("show", "1").stdout
    assert "total_cents" in text
    assert "no answer [from] the provider" in text


BAD_INPUT = {
    ("list", "--queue", "payment.lost"): "payment.lost",
    ("list", "--service", "closed"): "closed",
    ("list", "--type", "order.lost"): "order.lost",
    ("list", "--older-than", "-5"): "-5",
    ("list", "--newer-than", "soon"): "soon",
    ("export", "--type", "order.lost"): "order.lost",
    ("export", "/no/such/folder/letters.jsonl"): "/no/such/folder/letters.jsonl",
    ("replay", "--rate", "0"): "rate is 0",
    ("replay", "--rate", "nan"): "rate is nan",
    ("replay", "--rate", "-1"): "rate is -1",
    ("replay", "--rate", "inf"): "rate is inf",
    ("replay", "--max-failing", "2"): "max-failing is 2",
    ("replay", "--max-replays", "0"): "max-replays is 0",
    ("replay", "--timeout", "0"): "timeout is 0",
    ("replay", "--queue", "payment.lost"): "payment.lost",
    ("replay", "1", "--resume"): "--resume",
    ("edit", "1", "--set", "total_cents=many"): "data.total_cents",
    ("edit", "1", "--set", "total_cents=-1"): "data.total_cents",
    ("edit", "1", "--set", "lines.3.quantity=1"): "'3'",
    ("edit", "1", "--set", "total_cents"): "path=value",
    ("edit", "1", "--set", "a=1", "--file", "x"): "--file",
    ("edit", "1", "--file", "/no/such/file"): "/no/such/file",
    ("discard", "--reason", "so"): "name the letters",
    ("discard", "1", "--reason", " "): "--reason",
    ("restore",): "name the letters",
    ("purge", "--older-than", "7d", "--reason", "so"): "'7d'",
    ("purge", "--older-than", "long", "--reason", "so"): "'long'",
    ("purge", "--older-than", "200d", "--reason", " "): "--reason",
    ("audit", "--limit", "0"): "limit is 0",
}


NOT_THERE = {
    ("list", "--order", "nobody's"): "nobody's",
    ("show", "99"): "99",
    ("show", "no-such-id"): "no-such-id",
    ("replay", "99"): "99",
    ("replay", "--resume"): "no replay",
    ("edit", "99", "--set", "total_cents=1"): "99",
    ("discard", "99", "--reason", "so"): "99",
    ("restore", "99"): "99",
    ("list", "--fingerprint", "cafecafecafe"): "cafecafecafe",
}


def test_bad_input_is_one_line_that_names_it_and_changes_nothing(letter: Stage) -> None:
    letter.saga("list")
    for arguments, named in (BAD_INPUT | NOT_THERE).items():
        done = letter.saga(*arguments)
        status = 1 if arguments in NOT_THERE else 2
        assert done.exit_code == status, (arguments, done.output)
        assert done.stdout == ""
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        assert named in line, arguments
    here, settled = look(letter.deployment.dead_letters_url)
    assert (len(here), settled) == (1, [])
    actions = json.loads(letter.saga("audit", "--json").stdout)["actions"]
    assert [action["action"] for action in actions] == ["collect"]


def test_an_export_has_a_letter_a_line(letter: Stage, tmp_path: Path) -> None:
    lines = letter.saga("export").stdout.splitlines()
    assert [json.loads(line)["message_id"] for line in lines] == ["reserved-7"]
    file = tmp_path / "letters.jsonl"
    assert letter.saga("export", str(file)).exit_code == 0
    assert file.read_text().splitlines() == lines


def test_a_young_letter_is_not_purged(letter: Stage) -> None:
    letter.saga("discard", "1", "--reason", "a test")
    done = letter.saga("purge", "--older-than", "90d", "--reason", "spring", "--json")
    assert (done.exit_code, json.loads(done.stdout)) == (0, {"purged": []})
    newest = json.loads(letter.saga("audit", "--json").stdout)["actions"][0]
    assert (newest["action"], newest["selection"]) == ("purge", {"older_than": 90 * 86_400})


def test_an_editor_that_changes_nothing_sends_nothing(letter: Stage) -> None:
    done = CliRunner().invoke(
        app, ["dlq", "edit", "1", "--data-dir", str(letter.folder)], env={"EDITOR": "true"}
    )
    assert done.exit_code == 0
    assert "nothing was changed" in done.stderr


def test_an_editor_edits(letter: Stage) -> None:
    done = CliRunner().invoke(
        app,
        ["dlq", "edit", "1", "--json", "--data-dir", str(letter.folder)],
        env={"EDITOR": "sed -i s/995/996/"},
    )
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["changed"]
    assert '+    "total_cents": 996' in document["diff"]


# --- others count what is in the store ------------------------------------------------------------


async def test_what_is_in_the_store_is_not_lost_and_is_seen(letter: Stage) -> None:
    key = "payment/reserved-7"
    assert await letter.lost() == set()
    await until_collected(letter)
    assert await letter.lost() == set()
    report = await reconcile(letter.deployment, settle_seconds=0.0)
    assert report.dead_letters["payment"] == 1
    found = await status(letter.deployment, choreography())
    assert found.dead_letters["payment"] == found.stored_dead_letters["payment"] == 1
    assert [p for p in found.problems if "1 dead letter of payment in the store" in p]
    remove_store(letter)
    assert await letter.lost() == {key}


async def test_what_was_discarded_is_settled(letter: Stage) -> None:
    await letter.saga_process("discard", "1", "--reason", "a test")
    assert await letter.lost() == set()
    report = await reconcile(letter.deployment, settle_seconds=0.0)
    assert report.dead_letters["payment"] == 0
    assert report.checked["settled_by_hand"] == 1


async def test_what_was_replaced_is_settled_and_the_copy_is_owed_once(letter: Stage) -> None:
    said = await letter.saga_process("edit", "1", "--set", "total_cents=996", "--json")
    copy = json.loads(said)["copy"]
    assert await letter.lost() == set()
    queue = await letter.channel.get_queue("payment.normal", ensure=False)
    await until(lambda: letter.has("payment.normal", 1))
    await queue.get(no_ack=True)
    assert await letter.lost() == {f"payment/{copy}"}


async def test_an_edited_event_is_nothing_that_happened_twice(stage: Stage) -> None:
    cancelled = wrap(
        OrderCancelled.model_validate_json(
            f'{{"order_id": "{ORDER}", "customer": "ada", "reason": "customer_request"}}'
        ),
        id="cancelled-7",
        source="/services/order",
        time=utc_now(),
        priority=Priority.NORMAL,
        sequence=2,
    )
    await stage.bury(cancelled)
    await until(lambda: stage.has("payment.dlq", 1))
    # Without grace, or what is found would depend on how long the edit takes.
    before = await reconcile(stage.deployment, grace_seconds=0.0, settle_seconds=0.0)
    await stage.saga_process("edit", "1", "--set", "customer=bob")
    after = await reconcile(stage.deployment, grace_seconds=0.0, settle_seconds=0.0)
    assert {(v.rule, v.subject) for v in after.violations} == {
        (v.rule, v.subject) for v in before.violations
    }
    assert after.checked["events"] == before.checked["events"] + 1


async def test_what_waits_to_be_tried_again_is_not_lost(stage: Stage) -> None:
    await stage.publish(reserved(), EVENTS_EXCHANGE, "stock.reserved.normal")
    await stage.publish(reserved(), wait_queue(3_600_000), "payment.normal")
    queue = await stage.channel.get_queue("payment.normal", ensure=False)
    await until(lambda: stage.has("payment.normal", 1))
    await queue.get(no_ack=True)
    assert await stage.lost() == set()
    report = await reconcile(stage.deployment, settle_seconds=0.0)
    assert report.checked["messages_waiting"] == 1
    found = await status(stage.deployment, choreography())
    assert found.waits == {wait_queue(3_600_000): 1}
    assert not found.at_rest


async def until_collected(stage: Stage) -> None:
    await stage.saga_process("list")
    assert await stage.depth("payment.dlq") == 0


def remove_store(stage: Stage) -> None:
    Path(str(stage.deployment.dead_letters_url).removeprefix("sqlite:///")).unlink()


async def test_a_name_where_none_is_marked_is_found_in_its_letter_and_got_rid_of(
    stage: Stage,
) -> None:
    name = "Zebedee Quigley"

    async def look() -> dict[str, Any]:
        command = (forked.SAGA, "forget", "--verify", "--json", "--data-dir", str(stage.folder))
        done = await asyncio.to_thread(forked.run, *command, given=f"{name}\n")
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    told = reserved()
    odd = told.model_copy(update={"data": told.data.model_copy(update={"currency": name})})
    queue = work_queue("payment", Priority.NORMAL)
    long_ago = (utc_now() - timedelta(days=400)).isoformat()
    times = dict.fromkeys((headers_of.FIRST_FAILED_AT, headers_of.LAST_FAILED_AT), long_ago)
    await stage.publish(odd, DEAD_EXCHANGE, "payment", **dead(queue) | times)
    await stage.saga_process("list")

    (letter,) = (await look())["letters"]

    assert (letter["letter"], letter["state"]) == (1, "dead")
    assert "`saga dlq discard 1`" in letter["way_out"]
    assert "`saga dlq purge`" in letter["way_out"]
    await stage.saga_process("discard", "1", "--reason", "it names a person")
    await stage.saga_process("purge", "--older-than", "365d", "--reason", "it names a person")
    after = await look()
    assert (after["letters"], after["found"], after["found_in"]) == ([], 0, [])
