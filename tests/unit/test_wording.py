"""How counts are said."""

from __future__ import annotations

import pytest

from saga.wording import counted


@pytest.mark.parametrize(
    ("number", "one", "said"),
    [
        (0, "dead letter", "0 dead letters"),
        (1, "dead letter", "1 dead letter"),
        (2, "query", "2 queries"),
        (3, "way", "3 ways"),
        (12_345, "branch", "12,345 branches"),
    ],
)
def test_a_noun_agrees_with_its_count(number: int, one: str, said: str) -> None:
    assert counted(number, one) == said


def test_what_more_than_the_last_word_depends_on_is_given_whole() -> None:
    said = [counted(number, "message waits", "messages wait") for number in (1, 2)]
    assert said == ["1 message waits", "2 messages wait"]
