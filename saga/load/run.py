"""A load of any saga on a running system: sent, waited for, compared with what was predicted."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from sqlalchemy.engine import Connection

from saga.archive import queries
from saga.archive.store import Fact, decoded
from saga.archive.subjects import SUBJECTS
from saga.choreography import Choreography
from saga.declaration import Saga, SagaError
from saga.deployment import Deployment
from saga.envelope import source_of, wrap
from saga.history import pages
from saga.history.archive import Archive
from saga.load.plan import NO_END, Given, Plan
from saga.message import Command, Event
from saga.personal.persons import Persons
from saga.reconcile import GRACE_SECONDS, Report, reconcile
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import intake_queue
from saga.runtime.tasks import side_by_side
from saga.status import status
from saga.wording import counted

BROKER_PATIENCE_SECONDS: Final = 5.0
POLL_SECONDS: Final = 0.2
ENDS_SECONDS: Final = 300.0
"""How long no saga may end, once all are begun, before the wait is given up."""
REST_SECONDS: Final = 30.0
"""How long compensations, and questions on the way, may take after the last saga has ended."""
LISTED_MAX: Final = 100
RUNS_MAX: Final = 1_000
"""How often one seed may be used on one system."""
CATCH_UP_SECONDS: Final = 10.0
"""How long a history that is behind may take to come to the stream's end."""
SUBJECTS_AT_ONCE: Final = 500

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of a load: by subject how it ended, or nothing; and whether the books are right."""

    seed: int
    plan: Plan
    ends: Mapping[str, Sequence[str]]
    report: Report

    @property
    def unexpected(self) -> list[str]:
        """What is not as predicted, a line each; at most `LISTED_MAX` of them."""
        lines = []
        for subject, predicted in self.plan.ends.items():
            found = self.ends.get(subject, ())
            if [*found] not in ([[str(end)] for end in predicted] or [[]]):
                expected = " or ".join(sorted(map(str, predicted))) or NO_END
                ended = " and ".join(found) or "not ended"
                lines.append(f"{subject}: expected {expected}, found {ended}")
        if len(lines) > LISTED_MAX:
            lines[LISTED_MAX:] = [f"and {len(lines) - LISTED_MAX} more"]
        return lines

    @property
    def ok(self) -> bool:
        return self.report.ok and not self.unexpected

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON document."""
        outcomes = Counter(end for ends in self.ends.values() for end in ends or (NO_END,))
        return {
            "ok": self.ok,
            "seed": self.seed,
            "sagas": len(self.plan.ends),
            "outcomes": dict(sorted(outcomes.items())),
            "reconcile": {
                "ok": self.report.ok,
                "checked": dict(self.report.checked),
                "not_covered": list(self.report.not_covered),
                "violations": [
                    {"rule": v.rule, "subject": v.subject, "detail": v.detail}
                    for v in self.report.violations[:LISTED_MAX]
                ],
            },
            "unexpected": self.unexpected,
        }


def plan_of(saga: Saga, sagas: int, seed: int, run: int = 1) -> Plan:
    """The plan of so many sagas, the same for the same seed and run. Raises `SagaError`."""
    if saga.load is None:
        raise SagaError(
            f"{saga.name} has no load: nothing can be sent whose end is known; declare `load`, a "
            f"function that draws a `saga.load.plan.Plan`"
        )
    plan = saga.load(random.Random(seed if run == 1 else f"{seed}/{run}"), sagas)
    if len(plan.ends) < sagas:
        raise SagaError(
            f"the load of {saga.name} says of {counted(len(plan.ends), 'subject')} how they end, "
            f"and {counted(sagas, 'saga is', 'sagas are')} to be begun; let each have a subject "
            f"of its own in `ends`"
        )
    taken = {p.name: p.intake for p in saga.participants}
    for given in (*plan.before, *plan.given):
        if type(given.command) not in taken.get(given.participant, ()):
            raise SagaError(
                f"the load of {saga.name} gives {given.command.type} to {given.participant}, which "
                f"does not take it over the broker; let it have `intake`"
            )
    return plan


async def next_plan(deployment: Deployment, saga: Saga, sagas: int, seed: int) -> Plan:
    """The plan in its first run of whose subjects the archive knows none.

    So the same seed gives the same sagas on every fresh system, and new ones where it has been used
    before. Two who ask at the same time get the same. Raises `SagaError`, also for a load that
    names the same subjects in each run; `HistoryError` where the history is behind, so that it may
    know them soon; `DatabaseError` and `BrokerError`.
    """
    archive = Archive(deployment)
    await archive.catch_up(CATCH_UP_SECONDS)
    before: frozenset[str] = frozenset()
    for run in range(1, RUNS_MAX + 1):
        plan = plan_of(saga, sagas, seed, run)
        known = await archive.read(partial(_known_among, sorted(plan.ends)))
        if not known:
            return plan
        if before == plan.ends.keys():
            raise SagaError(
                f"the load of {saga.name} names the same subjects whatever it draws, and this "
                f"system knows {len(known)} of them, such as {known[0]!r}; let their names depend "
                f"on the chance, or take a fresh system"
            )
        before = frozenset(plan.ends)
    raise SagaError(f"seed {seed} was used {RUNS_MAX} times on this system; take another")


def _known_among(subjects: Sequence[str], connection: Connection) -> list[str]:
    found: list[str] = []
    for start in range(0, len(subjects), SUBJECTS_AT_ONCE):
        found += queries.known_among(connection, subjects[start : start + SUBJECTS_AT_ONCE])
    return found


async def send(deployment: Deployment, plan: Plan, progress: Progress = lambda _: None) -> None:
    """Give all commands of a plan, each in its time, sealed where the system seals. Raises what the
    publisher raises, and `SealingAway`."""
    persons = Persons(deployment.personal_settings())
    publisher = BrokerPublisher(deployment.amqp_url, "saga publish")
    await publisher.open(BROKER_PATIENCE_SECONDS)
    began = time.monotonic()

    async def give(given: Given) -> None:
        await asyncio.sleep(max(0.0, began + given.after_seconds - time.monotonic()))
        command = await persons.as_given(given.command)
        await publisher.publish("", posting_of(_body(given, command), _queue(given)))
        progress(1)

    try:
        for given in plan.before:
            await give(given)
        await side_by_side(*(give(given) for given in plan.given))
    finally:
        await persons.close()
        await publisher.close()


def _body(given: Given, command: Command) -> bytes:
    envelope = wrap(
        command,
        id=given.key,
        source=source_of("saga-publish"),
        time=utc_now(),
        priority=given.priority,
    )
    return envelope.to_bytes()


def _queue(given: Given) -> str:
    return intake_queue(given.participant, given.priority)


async def see_through(
    deployment: Deployment,
    saga: Saga,
    plan: Plan,
    *,
    seed: int,
    sent: Progress = lambda _: None,
    ended: Progress = lambda _: None,
) -> LoadResult:
    """Send a plan to a running system, wait until every saga has ended, or has gone as far as one
    without an end goes, and all is at rest; and check the ends and the books. What does not end is
    part of the result, not an error."""
    await send(deployment, plan, sent)
    ends = await _wait_for_ends(deployment, saga.choreography, plan, ended)
    deadline = time.monotonic() + REST_SECONDS
    at_rest = False
    while not at_rest and time.monotonic() < deadline:
        await asyncio.sleep(POLL_SECONDS)
        at_rest = (await status(deployment, saga.choreography)).at_rest
    # What was to go well without an end may have been cancelled since.
    endless = [subject for subject, end in ends.items() if not end]
    ends |= await _ends_of(Archive(deployment), saga.choreography, endless)
    # What has just ended is judged as well, once nothing goes on any more. What a consumer has
    # in its hands cannot be seen, so what is wrong has to stay so for as long as that may take.
    report = await reconcile(
        deployment,
        saga=saga,
        grace_seconds=0.0 if at_rest else GRACE_SECONDS,
        settle_seconds=REST_SECONDS,
    )
    return LoadResult(seed, plan, ends, report)


async def _wait_for_ends(
    deployment: Deployment, graph: Choreography, plan: Plan, ended: Progress
) -> dict[str, Sequence[str]]:
    archive = Archive(deployment)
    ends: dict[str, Sequence[str]] = {}
    last = time.monotonic()
    while open_ := plan.ends.keys() - ends.keys():
        told = await _ends_of(archive, graph, open_)
        found = {subject: end for subject, end in told.items() if end}
        endless = [subject for subject in open_ - found.keys() if not plan.ends[subject]]
        found |= dict.fromkeys(await archive.read(partial(_at_rest, endless)), ())
        if found:
            ends |= found
            ended(len(found))
            last = time.monotonic()
        elif time.monotonic() - last > ENDS_SECONDS:
            break
        await asyncio.sleep(POLL_SECONDS)
    return ends


async def _ends_of(
    archive: Archive, graph: Choreography, subjects: Collection[str]
) -> dict[str, Sequence[str]]:
    """How each of these subjects has ended; nothing where it has not."""
    facts = await asyncio.to_thread(pages.about, archive.url, subjects)
    return {subject: _outcomes(facts.get(subject, ()), graph) for subject in subjects}


def _at_rest(subjects: Sequence[str], connection: Connection) -> list[str]:
    """Those of these subjects that are known, and about which no participant owes anything."""
    found: list[str] = []
    for start in range(0, len(subjects), SUBJECTS_AT_ONCE):
        page = SUBJECTS.load(connection, subjects[start : start + SUBJECTS_AT_ONCE])
        found += [key for key, (subject, _) in page.items() if not subject.open]
    return found


def _outcomes(facts: Sequence[Fact], graph: Choreography) -> list[str]:
    envelopes = [envelope for fact in facts if (envelope := decoded(fact, graph)) is not None]
    return sorted(
        event.data.outcome
        for event in envelopes
        if isinstance(event.data, Event) and event.data.role.terminal
    )
