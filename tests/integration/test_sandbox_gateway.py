"""The sandbox provider: each key is one charge, whatever goes wrong around it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine

from common.events import DeclineReason
from payment_service.gateway import (
    Account,
    Fault,
    FaultMode,
    GatewayConfigurationError,
    GatewayUnavailable,
    PaymentGateway,
    SandboxGateway,
)
from payment_service.ledger import ChargeOutcome, Decline, GatewayRefused, Receipt
from tests.polling import until


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'provider.db'}"


@pytest.fixture
async def gateway(url: str) -> AsyncIterator[SandboxGateway]:
    gateway = SandboxGateway(url, seed=1)
    yield gateway
    await gateway.close()


@pytest.fixture
async def elsewhere(gateway: SandboxGateway, url: str) -> AsyncIterator[SandboxGateway]:
    """The same store, opened once more, as another process would."""
    elsewhere = SandboxGateway(url)
    yield elsewhere
    await elsewhere.close()


@pytest.fixture
def commits() -> Iterator[list[Engine]]:
    """Grows by one with each commit."""
    engines: list[Engine] = []

    def committed(connection: sa.Connection) -> None:
        engines.append(connection.engine)

    with ExitStack() as stack:
        sa.event.listen(Engine, "commit", committed)
        stack.callback(sa.event.remove, Engine, "commit", committed)
        yield engines


async def charge(
    gateway: PaymentGateway,
    key: str = "order-1",
    *,
    customer: str = "ada",
    currency: str = "EUR",
    amount_cents: int = 500,
) -> Receipt | Decline:
    return await gateway.charge(
        key, customer=customer, currency=currency, amount_cents=amount_cents
    )


async def refund(
    gateway: PaymentGateway, key: str = "order-1", *, currency: str = "EUR", amount_cents: int = 500
) -> None:
    await gateway.refund(key, currency=currency, amount_cents=amount_cents)


async def test_a_customer_without_an_account_can_pay(gateway: SandboxGateway) -> None:
    assert isinstance(await charge(gateway), Receipt)

    (line,) = gateway.ledger()
    assert (line.key, line.customer, line.currency, line.amount_cents) == (
        "order-1",
        "ada",
        "EUR",
        500,
    )
    assert (line.outcome, line.asked, line.refunded_cents) == (ChargeOutcome.CHARGED, 1, 0)
    assert abs(line.charged_at_ms / 1000 - time.time()) < 60


async def test_a_key_asked_again_gets_the_same_receipt_and_is_charged_once(
    gateway: SandboxGateway,
) -> None:
    gateway.set_accounts([Account("ada", funds_cents=500)])
    first = await charge(gateway)

    assert [await charge(gateway) for _ in range(3)] == [first] * 3
    (line,) = gateway.ledger()
    assert line.asked == 4


async def test_a_key_asked_many_times_at_once_is_charged_once(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", funds_cents=500)])

    answers = await asyncio.gather(*(charge(gateway) for _ in range(50)))

    assert len(set(answers)) == 1
    assert isinstance(answers[0], Receipt)


async def test_receipts_of_different_keys_differ(gateway: SandboxGateway) -> None:
    assert await charge(gateway, "order-1") != await charge(gateway, "order-2")


async def test_answers_outlive_the_process(gateway: SandboxGateway, url: str) -> None:
    receipt = await charge(gateway)
    await gateway.close()

    reopened = SandboxGateway(url)
    assert await charge(reopened) == receipt
    await reopened.close()


async def test_a_blocked_card_is_declined(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", card_blocked=True)])

    assert await charge(gateway) == Decline(DeclineReason.CARD_DECLINED)
    (line,) = gateway.ledger()
    assert (line.outcome, line.reference) == (ChargeOutcome.CARD_DECLINED, "")


async def test_a_decline_is_for_ever_under_its_key(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", card_blocked=True)])
    await charge(gateway, "order-1")
    gateway.set_accounts([Account("ada")])

    assert await charge(gateway, "order-1") == Decline(DeclineReason.CARD_DECLINED)
    assert isinstance(await charge(gateway, "order-2"), Receipt)


async def test_charges_lower_the_funds_until_one_is_too_much(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", funds_cents=1_000)])

    assert isinstance(await charge(gateway, "order-1", amount_cents=600), Receipt)
    assert await charge(gateway, "order-2", amount_cents=401) == Decline(
        DeclineReason.INSUFFICIENT_FUNDS
    )
    assert isinstance(await charge(gateway, "order-3", amount_cents=400), Receipt)


async def test_charges_in_one_transaction_share_the_funds(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", funds_cents=1_000)])

    answers = await asyncio.gather(
        *(charge(gateway, f"order-{n}", amount_cents=300) for n in range(10))
    )

    assert sum(isinstance(answer, Receipt) for answer in answers) == 3


@pytest.mark.parametrize(
    "other", [{"amount_cents": 501}, {"customer": "bob"}, {"currency": "CHF"}], ids=str
)
async def test_a_key_is_refused_for_a_different_charge(
    gateway: SandboxGateway, other: dict[str, object]
) -> None:
    receipt = await charge(gateway)

    with pytest.raises(GatewayRefused, match="order-1"):
        await charge(gateway, **other)  # type: ignore[arg-type]  # one of its own arguments
    assert await charge(gateway) == receipt


@pytest.mark.parametrize("amount_cents", [0, -1, 2**63])
async def test_what_is_no_amount_is_refused_and_disturbs_nobody(
    gateway: SandboxGateway, amount_cents: int
) -> None:
    bad, good = await asyncio.gather(
        charge(gateway, "bad", amount_cents=amount_cents),
        charge(gateway, "good"),
        return_exceptions=True,
    )

    assert isinstance(bad, GatewayRefused)
    assert isinstance(good, Receipt)


async def test_a_refund_gives_the_money_back(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", funds_cents=500)])
    await charge(gateway)
    await refund(gateway)

    (line,) = gateway.ledger()
    assert line.refunded_cents == 500
    assert line.refunded_at_ms is not None
    assert isinstance(await charge(gateway, "order-2"), Receipt)


async def test_a_refund_asked_again_gives_nothing_more(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", funds_cents=500)])
    await charge(gateway)
    await refund(gateway)
    before = gateway.ledger()

    await asyncio.gather(*(refund(gateway) for _ in range(5)))

    assert gateway.ledger() == before
    assert isinstance(await charge(gateway, "order-2", amount_cents=500), Receipt)
    assert isinstance(await charge(gateway, "order-3", amount_cents=1), Decline)


async def test_a_refund_of_more_than_was_charged_is_refused(gateway: SandboxGateway) -> None:
    await charge(gateway)
    with pytest.raises(GatewayRefused, match="9999 cents are more than the 500 charged under"):
        await refund(gateway, amount_cents=9_999)

    (line,) = gateway.ledger()
    assert line.refunded_cents == 0


async def test_a_refunded_charge_asked_again_keeps_its_answer(gateway: SandboxGateway) -> None:
    receipt = await charge(gateway)
    await refund(gateway)

    assert await charge(gateway) == receipt
    (line,) = gateway.ledger()
    assert line.refunded_cents == 500


async def test_a_charge_and_its_refund_may_share_a_transaction(gateway: SandboxGateway) -> None:
    await asyncio.gather(charge(gateway), refund(gateway))

    (line,) = gateway.ledger()
    assert line.refunded_cents == line.amount_cents


async def test_a_refund_of_an_unknown_charge_is_refused(gateway: SandboxGateway) -> None:
    with pytest.raises(GatewayRefused, match="order-1"):
        await refund(gateway)
    assert gateway.ledger() == []


async def test_a_refund_of_a_declined_charge_is_refused(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", card_blocked=True)])
    await charge(gateway)

    with pytest.raises(GatewayRefused, match="order-1"):
        await refund(gateway)


@pytest.mark.parametrize("other", [{"amount_cents": 400}, {"currency": "CHF"}], ids=str)
async def test_a_different_refund_under_the_same_key_is_refused(
    gateway: SandboxGateway, other: dict[str, object]
) -> None:
    await charge(gateway)
    await refund(gateway)

    with pytest.raises(GatewayRefused, match="order-1"):
        await refund(gateway, **other)  # type: ignore[arg-type]  # one of its own arguments


async def test_while_unavailable_nothing_happens(
    gateway: SandboxGateway, elsewhere: SandboxGateway
) -> None:
    elsewhere.set_fault(Fault(FaultMode.UNAVAILABLE))
    with pytest.raises(GatewayUnavailable):
        await charge(gateway)
    assert gateway.ledger() == []

    elsewhere.set_fault(Fault(FaultMode.NONE))
    assert isinstance(await charge(gateway), Receipt)


async def test_a_lost_answer_is_had_by_asking_again_and_charged_once(
    gateway: SandboxGateway, elsewhere: SandboxGateway
) -> None:
    elsewhere.set_accounts([Account("ada", funds_cents=500)])
    elsewhere.set_fault(Fault(FaultMode.LOST_ANSWER))
    with pytest.raises(GatewayUnavailable):
        await charge(gateway)
    (line,) = elsewhere.ledger()
    elsewhere.set_fault(Fault(FaultMode.NONE))

    assert await charge(gateway) == Receipt(line.reference)
    (line,) = elsewhere.ledger()
    assert (line.outcome, line.asked) == (ChargeOutcome.CHARGED, 2)


async def test_a_lost_answer_to_a_refund_is_had_by_asking_again(
    gateway: SandboxGateway, elsewhere: SandboxGateway
) -> None:
    await charge(gateway)
    elsewhere.set_fault(Fault(FaultMode.LOST_ANSWER))
    with pytest.raises(GatewayUnavailable):
        await refund(gateway)
    elsewhere.set_fault(Fault(FaultMode.NONE))
    await refund(gateway)

    (line,) = gateway.ledger()
    assert line.refunded_cents == 500


async def test_a_fault_may_hit_a_share_of_the_questions(gateway: SandboxGateway) -> None:
    gateway.set_fault(Fault(FaultMode.UNAVAILABLE, share=0.3))

    answers = await asyncio.gather(
        *(charge(gateway, f"order-{n}") for n in range(1_000)), return_exceptions=True
    )

    kinds = Counter(type(answer) for answer in answers)
    assert set(kinds) == {Receipt, GatewayUnavailable}
    assert 200 < kinds[GatewayUnavailable] < 400
    assert len(gateway.ledger()) == kinds[Receipt]


async def test_accounts_and_faults_can_be_switched_from_elsewhere_under_load(
    gateway: SandboxGateway, elsewhere: SandboxGateway
) -> None:
    """Two writers on one file: the one that is busy lets the other in."""
    stopped = asyncio.Event()
    answers: Counter[type] = Counter()

    async def load(worker: int) -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            try:
                answer = await charge(gateway, f"{worker}-{number}")
            except GatewayUnavailable as error:
                answers[type(error)] += 1
            else:
                answers[type(answer)] += 1

    async def seen(kind: type) -> None:
        answers.clear()
        await until(lambda: answers[kind] > 0)

    async with asyncio.TaskGroup() as tasks:
        for worker in range(20):
            tasks.create_task(load(worker))
        await seen(Receipt)
        await asyncio.to_thread(elsewhere.set_accounts, [Account("ada", card_blocked=True)])
        await seen(Decline)
        await asyncio.to_thread(elsewhere.set_fault, Fault(FaultMode.UNAVAILABLE))
        await seen(GatewayUnavailable)
        stopped.set()


async def test_many_accounts_are_one_transaction(
    gateway: SandboxGateway, commits: list[Engine]
) -> None:
    gateway.set_accounts(Account(f"customer-{n}", funds_cents=n) for n in range(5_000))

    assert len(commits) == 1


async def test_concurrent_charges_share_transactions(
    gateway: SandboxGateway, commits: list[Engine]
) -> None:
    answers = await asyncio.gather(*(charge(gateway, f"order-{n}") for n in range(200)))

    assert len(set(answers)) == 200
    assert len(commits) <= 3
    assert len(gateway.ledger()) == 200


async def test_answer_delays_of_different_charges_overlap(gateway: SandboxGateway) -> None:
    gateway.set_accounts([Account("ada", answer_delay_ms=200)])
    started = time.monotonic()

    await asyncio.gather(*(charge(gateway, f"order-{n}") for n in range(50)))

    assert 0.2 <= time.monotonic() - started < 50 * 0.2


async def test_the_effect_of_a_delayed_charge_is_there_before_its_answer(
    gateway: SandboxGateway, elsewhere: SandboxGateway
) -> None:
    gateway.set_accounts([Account("ada", answer_delay_ms=600_000)])

    async with asyncio.timeout(30), asyncio.TaskGroup() as tasks:
        slow = tasks.create_task(charge(gateway))
        await until(lambda: len(elsewhere.ledger()) == 1)
        await refund(gateway)  # Not held up by the answer that is held back.
        assert not slow.done()
        slow.cancel()

    (line,) = elsewhere.ledger()
    assert line.refunded_cents == 500


async def test_a_caller_that_is_cancelled_disturbs_nobody(gateway: SandboxGateway) -> None:
    async with asyncio.TaskGroup() as tasks:
        impatient = tasks.create_task(charge(gateway, "impatient"))
        patient = tasks.create_task(charge(gateway, "patient"))
        await asyncio.sleep(0)
        impatient.cancel()

    assert isinstance(patient.result(), Receipt)


async def test_closing_answers_what_has_been_asked(gateway: SandboxGateway) -> None:
    asked = [asyncio.ensure_future(charge(gateway, f"order-{n}")) for n in range(20)]
    await asyncio.sleep(0)
    await gateway.close()

    assert all(isinstance(answer, Receipt) for answer in await asyncio.gather(*asked))
    with pytest.raises(GatewayUnavailable, match="closed"):
        await charge(gateway)


async def test_a_broken_ledger_is_unavailable_not_a_decline(
    gateway: SandboxGateway, url: str
) -> None:
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE charges RENAME TO lost")
    engine.dispose()

    with pytest.raises(GatewayUnavailable, match="no such table"):
        await charge(gateway)


def test_several_may_make_the_same_ledger_at_once(tmp_path: Path) -> None:
    async def open_all(round_: int) -> None:
        url = f"sqlite:///{tmp_path / str(round_) / 'provider.db'}"
        opened = await asyncio.gather(*(asyncio.to_thread(SandboxGateway, url) for _ in range(4)))
        await asyncio.gather(*(gateway.close() for gateway in opened))

    for round_ in range(10):
        asyncio.run(open_all(round_))


@pytest.mark.parametrize(
    "url",
    [
        "provider.db",
        "postgresql://user:secret@localhost/provider",
        "sqlite+aiosqlite:///provider.db",
        "sqlite://",
        "sqlite:///:memory:",
    ],
)
def test_a_url_that_names_no_sqlite_file_is_refused_in_one_line(url: str) -> None:
    with pytest.raises(
        GatewayConfigurationError, match=r"name a file, as in sqlite:///"
    ) as refused:
        SandboxGateway(url)
    assert "\n" not in str(refused.value)
    assert "secret" not in str(refused.value)


def test_a_folder_that_cannot_be_made_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(GatewayConfigurationError, match=r"file/provider\.db") as refused:
        SandboxGateway(f"sqlite:///{tmp_path}/file/provider.db")
    assert "\n" not in str(refused.value)


def test_a_file_that_is_no_database_is_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not a database, and not to be overwritten" * 100)

    with pytest.raises(GatewayConfigurationError, match="not a database") as refused:
        SandboxGateway(f"sqlite:///{tmp_path}/notes.txt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("share", [-0.1, 1.1])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        Fault(FaultMode.UNAVAILABLE, share)


@pytest.mark.parametrize("delay_ms", [-1, 600_001])
def test_an_answer_delay_has_a_limit(delay_ms: int) -> None:
    with pytest.raises(ValueError, match="answer_delay_ms"):
        Account("ada", answer_delay_ms=delay_ms)
