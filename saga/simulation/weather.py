"""What goes wrong in one run, how often, and until when: drawn from the seed.

Each kind of fault is there in about half of the runs, so that the others also meet without it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass, fields
from typing import Final

FAIR_SHARE = 0.05
"""Runs in which nothing goes wrong."""
KIND_SHARE = 0.5
"""Runs, of the others, that have a kind of fault."""
OFTEN_SHARES = {"outside_unusual": 0.8}
"""Those of kinds of fault that are there more often: what people have to decide comes of them."""
RARE_TIMES = 2
RARE_FACTOR = 4.0
RARE_RATE_MAX = 0.8
"""What comes to a place after something else did, such as what undoes it, a fault befalls so many
times as often, up to a rate, the first `RARE_TIMES`. What comes first is let through as it is, or
the rest would never come."""
FREEZE_MAX_SECONDS = 20.0
STORM_SECONDS = (5.0, 20.0, 60.0)
"""How long it may last; less if everything comes to rest before."""


@dataclass(slots=True)
class Rates:
    """How likely each fault is whenever it could come: in a callback, frame, transaction or
    question. By default, as likely as it may get."""

    crash: float = 1 / 20
    """A process is killed before it runs a callback."""
    crash_at_frame: float = 1 / 4
    """A process is killed when it has just sent a frame."""
    freeze: float = 1 / 100
    """A process makes no progress for a while, from a callback on."""
    reset: float = 1 / 10
    """A connection is lost with a frame, and either side soon knows."""
    stuck: float = 1 / 12
    """A connection passes nothing on any more, from a frame on; either side takes long to know."""
    partition: float = 1 / 30
    """All of a process's connections are stuck at a frame, and for a while it gets no new ones."""
    broker_restart: float = 1 / 40
    """The broker is away for a while, from a frame on."""
    slow_frame: float = 1 / 6
    """A frame, and with it all behind it, takes seconds instead of milliseconds."""
    refused_publish: float = 1 / 3
    """The broker confirms negatively; the message may be in the queues all the same."""
    duplicate: float = 1 / 2
    """A message is twice in a queue."""
    reorder: float = 1 / 2
    """A message overtakes others in its queue."""
    database_away: float = 1 / 3
    """A transaction fails before it begins, or is rolled back at its end."""
    commit_unknown: float = 1 / 3
    """A transaction is committed, and its caller gets an error."""
    conflict: float = 1 / 3
    """A transaction is rolled back, as if another replica had written what it read."""
    data_refused: float = 1 / 3
    """A transaction's data is refused, and rolled back."""
    slow_database: float = 1 / 8
    """A transaction takes seconds."""
    outside_away: float = 0.8
    """An outside does nothing and says so."""
    outside_outage: float = 1 / 3
    """An outside is away for a while, from a question on."""
    lost_answer: float = 0.6
    """An outside does what it is asked, and its answer is lost."""
    slow_outside: float = 2 / 3
    """An outside takes seconds for its answer."""
    outside_unusual: float = 0.9
    """An outside decides otherwise than usual, where no plan says how it does."""
    crash_at_question: float = 1 / 4
    """A process is killed when the outside has just heard its question."""
    broker_forgets: float = 1 / 50
    """The broker ends, from a frame on, and an empty one starts in its place."""
    key_store_away: float = 1 / 3
    """The key store of persons does not answer a question, and does nothing."""
    key_store_outage: float = 1 / 8
    """The key store is away for a while, from a question on."""
    key_store_unknown: float = 1 / 3
    """The key store has committed, and who asked gets an error."""
    key_store_slow: float = 1 / 6
    """The key store takes seconds for its answer."""
    crash_at_key: float = 1 / 4
    """A process is killed when the key that it has made for a new person is committed."""


DOOR_KINDS: Final = frozenset(
    {"key_store_away", "key_store_outage", "key_store_unknown", "key_store_slow", "crash_at_key"}
)
"""Those that only a run with doors has. They are drawn from a chance of its own, so that any other
run is what it would be without them."""


class FaultSchedule:
    """Says when a fault happens, as long as the storm lasts."""

    def __init__(self, chance: random.Random, at_doors: random.Random | None = None) -> None:
        """`at_doors` draws how often it strikes at the doors, of a run that has them."""
        self._chance = chance
        self.rates = _rates(chance, at_doors)
        self.storm_seconds = chance.choice(STORM_SECONDS)
        self._met: defaultdict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        """Keyed by kind of fault and place: how often it could have befallen what, in the order in
        which that came first."""
        self.struck: set[str] = set()
        """The kinds of fault, of those in `Rates`, that there were."""
        self.calm = True
        """Whether nothing goes wrong, as before the storm and after it."""

    def hits(self, kind: str) -> bool:
        """Whether a kind of fault, one of `Rates`, happens now."""
        return self._noted(kind, self.happens(getattr(self.rates, kind)))

    def _noted(self, kind: str, happens: bool) -> bool:
        if happens:
            self.struck.add(kind)
        return happens

    def happens(self, rate: float) -> bool:
        """Whether a fault of this rate happens now."""
        return rate > 0 and not self.calm and self._chance.random() < rate

    def strikes(self, kind: str, where: str, what: str) -> bool:
        """Whether a kind of fault, one of `Rates`, befalls a thing of this sort at a place now."""
        rate: float = getattr(self.rates, kind)
        if rate <= 0 or self.calm:
            return False
        met = self._met[kind, where]
        if met.setdefault(what, 0) < RARE_TIMES and what != next(iter(met)):
            rate = min(rate * RARE_FACTOR, RARE_RATE_MAX)
        met[what] += 1
        return self._noted(kind, self._chance.random() < rate)

    def seconds(self, most: float) -> float:
        """How long something takes that may take up to `most`: a short time is as likely as a
        long one."""
        return most * self._chance.random() ** 3

    def latency(self) -> float:
        """What a frame, a transaction or a question takes."""
        if self._chance.random() < 0.5:
            return 0.0
        return self._chance.random() * 0.004

    def steps_until(self, kind: str) -> float:
        """In how many steps a fault of this kind comes."""
        rate: float = getattr(self.rates, kind)
        if rate <= 0:
            return float("inf")
        return 1 + self._chance.expovariate(rate)


def _rates(chance: random.Random, at_doors: random.Random | None) -> Rates:
    rates = Rates()
    fair = chance.random() < FAIR_SHARE
    for kind in fields(Rates):
        draw = at_doors if kind.name in DOOR_KINDS else chance
        if draw is None:
            setattr(rates, kind.name, 0.0)
            continue
        # Down to a tenth of the worst, small ones as likely as large ones.
        worst: float = getattr(rates, kind.name)
        there = not fair and draw.random() < OFTEN_SHARES.get(kind.name, KIND_SHARE)
        setattr(rates, kind.name, worst * 10 ** -draw.random() if there else 0.0)
    return rates
