"""The engine speaks of sagas, participants and subjects, and of no domain."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import pytest

ROOT: Final = Path(__file__).parents[2]
DOMAIN: Final = frozenset(
    {
        *("cart", "card", "cents", "currency", "customer", "customers", "invoice"),
        *("inventory", "stock", "warehouse", "shelf", "sku", "skus", "shipment", "shipping"),
        *("payment", "payments", "charge", "charged", "charges", "refund", "refunded", "refunds"),
        *("mail", "mailed", "mailer", "mails", "notification", "shop", "shops", "orders"),
    }
)
"""Words of the orders. A letter is a dead letter, and a delivery the broker's."""
ORDER: Final = re.compile(
    r"order_id|order_service|order's|/orders|[\"'`]order[\"'`]|\border[.:-]\w|\border=(?!True)"
    r"|\b(?:an|each) order\b|\bOrder(?=[A-Z])|(?<=[a-z])Order\b|\[Order\]|_ORDER\b"
)
"""Where `order` is what a customer buys, and not a sequence."""
PARTS: Final = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+")
TEMPLATE: Final = ROOT / "saga" / "template"


class Kept(NamedTuple):
    file: str
    word: str


KEPT: Final[dict[Kept, str]] = {
    Kept("archive/migrations/v0002_pages_are_filtered_within_an_index.py", "orders"): (
        "says what the script of an earlier version did"
    ),
    Kept("backup/manifest.py", "order"): "a backup's kind, in files that exist",
    Kept("envelope.py", "order"): "`urn:order-saga:` is on the wire",
    Kept("history/transfer.py", "order"): "an exported history's kind, in files that exist",
}
"""Keyed by file and word: why it stays."""


def spoken(file: Path) -> Iterator[str]:
    """The domain's words among a file's names, strings and comments."""
    for token in tokenize.generate_tokens(io.StringIO(file.read_text()).readline):
        if token.type in (tokenize.OP, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT):
            continue
        words = {word.lower() for word in PARTS.findall(token.string)}
        yield from words & DOMAIN
        if ORDER.search(token.string.replace("_IN_ORDER", "")):
            yield "order"


def test_no_word_of_a_domain_is_in_the_engine() -> None:
    files = [f for f in (ROOT / "saga").rglob("*.py") if TEMPLATE not in f.parents]
    found = {
        Kept(file.relative_to(ROOT / "saga").as_posix(), word)
        for file in files
        for word in spoken(file)
    }

    assert found - KEPT.keys() == set(), "say it in the engine's words, or keep it with a reason"
    assert KEPT.keys() - found == set(), "nothing keeps these any more"


@pytest.mark.parametrize(
    "text",
    [
        "class OrderPlaced: ...",
        "order_id = 1",
        "# for an order's customer",
        'x = "stock.reserved"',
        "def settle_charge(): ...",
        "url = f'/orders/{subject}'",
    ],
)
def test_a_word_of_a_domain_is_found_wherever_it_stands(text: str, tmp_path: Path) -> None:
    file = tmp_path / "it.py"
    file.write_text(text)

    assert [*spoken(file)]


@pytest.mark.parametrize(
    "text",
    ["# in their order, in order", "in_order(a)", "x = 'ORDER BY key'", "@dataclass(order=True)"],
)
def test_a_sequence_is_no_word_of_a_domain(text: str, tmp_path: Path) -> None:
    file = tmp_path / "it.py"
    file.write_text(text)

    assert not [*spoken(file)]
