"""What is still open when a person is to be forgotten: by reactions, not by the types of events."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest

from saga.archive.store import Fact
from saga.archive.subjects import Subject, SubjectRules
from saga.personal.lookup import is_open
from saga.runtime.kernel.tables import utc_now
from tests.recorded import simulated

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "trips"
SEEDS: Final = range(4)


@pytest.fixture
def saga(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Of another project: trips, which providers' answers and cancellations overtake."""
    monkeypatch.syspath_prepend(EXAMPLE)
    yield import_module("trips").SAGA
    for name in [name for name in sys.modules if name.partition(".")[0] == "trips"]:
        del sys.modules[name]


def test_what_is_over_keeps_nobody_waiting_whichever_way_it_ended(saga: Any) -> None:
    rules, overtaken = SubjectRules(saga.choreography), 0
    for seed, facts in simulated(saga, SEEDS):
        about: defaultdict[str, list[Fact]] = defaultdict(list)
        for fact in facts:
            about[fact.attributes.subject].append(fact)
        for subject, told in about.items():
            by_types = Subject(subject).after((fact.attributes for fact in told), rules)
            overtaken += by_types.open
            assert not is_open(saga.choreography, subject, told, utc_now()), (seed, subject)
            assert is_open(saga.choreography, subject, told[:1], utc_now()), (seed, subject)
    assert overtaken, "no trip ended in a way that the types of its events do not tell"
