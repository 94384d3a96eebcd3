"""Each mistake that people make is found, most of them as a short story."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from saga.verify import ModelReport, model_of, verify

from tests.twins import TWINS

STEPS_MAX = 12


@pytest.fixture(scope="module")
def reports() -> Iterator[dict[str, ModelReport]]:
    yield {name: verify(model_of(*make())) for name, make in TWINS.items()}


@pytest.mark.parametrize("name", TWINS)
def test_a_mistake_is_found(name: str, reports: dict[str, ModelReport]) -> None:
    assert reports[name].schedule is not None


def test_most_are_shown_in_a_few_steps(reports: dict[str, ModelReport]) -> None:
    lengths = {n: len(report.schedule.steps) for n, report in reports.items() if report.schedule}

    assert sum(length <= STEPS_MAX for length in lengths.values()) >= 0.8 * len(TWINS), lengths
