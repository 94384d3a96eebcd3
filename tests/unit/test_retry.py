"""When a failed message is tried again."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saga.choreography import ChoreographyError, Participant
from saga.retry import RUNGS_MS, Retry, TransientError
from saga.runtime.messaging.dead_letters import Failure, Reason, fingerprint
from tests.circle import begin, cancel, complete

NOW = datetime(2030, 1, 1, tzinfo=UTC)


def waits(retry: Retry) -> list[int | None]:
    return [retry.wait_ms(calls, TransientError()) for calls in range(1, retry.max_calls + 1)]


def test_the_wait_grows_to_its_limit_and_then_the_message_is_dead() -> None:
    retry = Retry(max_calls=6, delay=0.5, backoff=3.0, max_delay=15.0)
    assert waits(retry) == [500, 5_000, 5_000, 15_000, 15_000, None]


def test_the_default_is_three_calls_five_seconds_apart_and_more() -> None:
    assert waits(Retry()) == [5_000, 15_000, None]


def test_a_permanent_error_is_never_tried_again() -> None:
    assert Retry(max_calls=5).wait_ms(1, ValueError("no such thing")) is None


def test_what_is_transient_is_the_policys_to_say() -> None:
    assert Retry(transient=(KeyError,)).wait_ms(1, KeyError("later")) == 5_000


@given(
    calls=st.integers(1, 100),
    delay=st.floats(0.001, 3600),
    backoff=st.floats(1, 1e6),
    max_delay=st.floats(0.001, 3600),
)
def test_every_wait_is_a_rung_and_never_shorter_than_asked(
    calls: int, delay: float, backoff: float, max_delay: float
) -> None:
    retry = Retry(101 - 1, delay, backoff, max(delay, max_delay))
    wait = retry.wait_ms(calls, TransientError())
    if calls == 100:
        assert wait is None
    else:
        assert wait in RUNGS_MS
        assert wait >= delay * 1_000


@pytest.mark.parametrize(
    "values",
    [
        {"max_calls": 0},
        {"max_calls": 101},
        {"delay": 0},
        {"delay": 3601},
        {"backoff": 0.5},
        {"max_delay": 1},
        {"max_delay": 4000},
    ],
    ids=str,
)
def test_values_that_make_no_policy_are_refused_by_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(values))} is "):
        Retry(**values)


def test_a_reaction_may_have_a_policy_of_its_own() -> None:
    own, others = Retry(max_calls=9), Retry(max_calls=2)
    participant = Participant(
        "thing", begin, complete, cancel, retry=others, retries={complete: own}
    )
    begun, completed, _ = (reaction.consumes for reaction in participant.reactions)
    assert participant.retry_of(completed) is own
    assert participant.retry_of(begun) is others


def test_a_policy_for_no_reaction_is_refused() -> None:
    with pytest.raises(ChoreographyError, match="complete has a retry policy, but is no reaction"):
        Participant("thing", begin, retries={complete: Retry()})


def test_errors_alike_but_for_ids_and_numbers_share_a_fingerprint() -> None:
    def of(error: Exception) -> str:
        return fingerprint(Failure(Reason.FAILED, error, "thing.normal", NOW))

    one = of(KeyError("thing 0b9f8f0e-5d3c-4c59-9a53-0d5b5d2f7a11 took 17 ms"))
    other = of(KeyError("thing 3c1dca0e-1111-4c59-9a53-0d5b5d2f7a12 took 4 ms"))
    assert one == other
    assert one != of(KeyError("name 17"))
    assert one != of(ValueError("thing 0b9f8f0e-5d3c-4c59-9a53-0d5b5d2f7a11 took 17 ms"))
