"""Urgent ones go first, and normal ones keep their share, however few places there are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from saga.message import Priority
from saga.runtime.kernel.lanes import NORMAL_SHARE, Lanes, Share

PLACES = 800


def full() -> Lanes[Priority]:
    lanes: Lanes[Priority] = Lanes()
    for priority in Priority:
        for _ in range(PLACES):
            lanes.append(priority, priority)
    return lanes


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 7, 8, 100, 128])
def test_one_place_in_eight_is_for_normal_ones_however_many_are_taken_at_a_time(
    at_a_time: int,
) -> None:
    lanes = full()
    taken: Counter[Priority] = Counter()
    while taken.total() < PLACES:
        taken.update(lanes.take(at_a_time))

    assert abs(taken[Priority.NORMAL] - taken.total() / NORMAL_SHARE) <= 1


def test_where_there_is_one_place_at_a_time_it_is_for_an_urgent_one_first() -> None:
    lanes = full()

    assert [lanes.take(1) for _ in range(NORMAL_SHARE)] == [
        *[[Priority.HIGH]] * (NORMAL_SHARE - 1),
        [Priority.NORMAL],
    ]


@pytest.mark.parametrize("priority", list(Priority))
def test_places_that_one_line_does_not_need_are_the_others(priority: Priority) -> None:
    lanes: Lanes[int] = Lanes()
    for number in range(5):
        lanes.append(number, priority)

    assert lanes.take(3) == [0, 1, 2]
    assert lanes.take(3) == [3, 4]
    assert lanes.take(3) == []
    assert not lanes


def test_what_is_put_first_is_taken_first_of_its_priority() -> None:
    lanes: Lanes[str] = Lanes()
    lanes.append("second", Priority.HIGH)
    lanes.put_first("first", Priority.HIGH)
    lanes.put_first("normal", Priority.NORMAL)

    assert lanes.take(2) == ["first", "second"]


def test_only_what_is_wanted_is_kept() -> None:
    lanes: Lanes[int] = Lanes()
    for number in range(6):
        lanes.append(number, Priority.HIGH if number % 2 else Priority.NORMAL)
    lanes.keep(lambda number: number > 2)

    assert len(lanes) == 3
    assert lanes.take(9) == [3, 5, 4]


@for_all(
    one_in=st.integers(1, 9),
    calls=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 30), st.integers(0, 30))),
)
def test_no_place_is_wasted_and_none_is_given_twice(
    one_in: int, calls: Sequence[tuple[int, int, int]]
) -> None:
    share = Share(one_in)
    for places, first, second in calls:
        of_first, of_second = share.of(places, first, second)

        assert 0 <= of_first <= first
        assert 0 <= of_second <= second
        assert of_first + of_second == min(places, first + second)


def test_a_line_that_was_empty_has_saved_nothing_up() -> None:
    share = Share(NORMAL_SHARE)
    for _ in range(100):
        share.of(1, 10, 0)

    assert share.of(1, 10, 10) == (1, 0)


def test_only_what_stands_ahead_of_all_others_is_taken_ahead() -> None:
    lanes: Lanes[int] = Lanes()
    for number in (2, 4, 5, 6):
        lanes.append(number, Priority.HIGH)
    for number in (1, 8):
        lanes.append(number, Priority.NORMAL)
    lanes.put_first(10, Priority.NORMAL)

    def even(number: int) -> bool:
        return number % 2 == 0

    assert lanes.take_ahead(even, 1) == [2]
    assert lanes.take_ahead(even, 8) == [4, 10]
    assert lanes.take_ahead(even, 8) == []
    assert len(lanes) == 4


def test_a_line_that_is_through_has_saved_nothing_up() -> None:
    share = Share(NORMAL_SHARE)
    assert share.of(100, 1_000, 1) == (99, 1)

    assert share.of(NORMAL_SHARE, 1_000, 1_000) == (NORMAL_SHARE - 1, 1)
