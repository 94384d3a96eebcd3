"""What a console without `--bodies` shows of errors and headers."""

from __future__ import annotations

import pytest

from saga.console.masking import masked_headers
from saga.dlq.quotations import masked_error
from saga.runtime.messaging.dead_letters import ERROR, KEPT, ORIGIN_QUEUE


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("the customer's card 'Ada' is unknown", "the customer's card '‹text of 3›' is unknown"),
        ('KeyError: "Ada\'s"', 'KeyError: "‹text of 5›"'),
        ("is 'Ada\\'s', not 'Bea'", "is '‹text of 6›', not '‹text of 3›'"),
        ("it's 'Ada Love", "it's '‹text of 8›"),
        (
            "data.name: no number [type=int, input_value={'a': 17}, input_type=dict]",
            "data.name: no number [type=int, input_value=‹text of 9›, input_type=dict]",
        ),
        ("[SQL: INSERT] [parameters: (1, 'Ada')]", "[SQL: INSERT] [parameters: ‹text of 10›]"),
        ("data.lines.0: Field required", "data.lines.0: Field required"),
        ("", ""),
    ],
)
def test_what_an_error_quotes_is_left_out_and_its_words_stay(error: str, shown: str) -> None:
    assert masked_error(error) == shown


def test_headers_of_publishers_are_left_out_and_notes_of_ours_and_the_brokers_stay() -> None:
    death = [{"queue": "payment.normal", "routing-keys": ["order.placed.normal"]}]
    assert masked_headers(
        {
            "x-customer": "Ada",
            "x-saga-forged": "Ada",
            "x-nested": {"name": ["Ada"]},
            ORIGIN_QUEUE: "payment.normal",
            KEPT: {"$bytes": "QWRh"},
            ERROR: "no 'Ada' here",
            "x-death": death,
            "x-first-death-queue": "payment.normal",
        }
    ) == {
        "x-customer": "‹text of 3›",
        "x-saga-forged": "‹text of 3›",
        "x-nested": {"name": ["‹text of 3›"]},
        ORIGIN_QUEUE: "payment.normal",
        KEPT: {"$bytes": "‹text of 4›"},
        ERROR: "no '‹text of 3›' here",
        "x-death": death,
        "x-first-death-queue": "payment.normal",
    }
