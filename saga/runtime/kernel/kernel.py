"""Group commit: the messages in flight share one transaction.

A group takes what is waiting, urgent messages first, and is decided on optimistically: where an
assumption turns out to be wrong, nothing is written, and the group is decided on again, this time
pessimistically (`saga.runtime.kernel.transaction`). A lone message does not wait for others.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy.engine import Connection

from saga.choreography import Participant
from saga.envelope import Envelope, MessageKey, source_of, wrap
from saga.message import Answer, Ask, Command, Intent, Priority
from saga.runtime import tracing
from saga.runtime.kernel.begun import Begun
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.fold import is_shared
from saga.runtime.kernel.lanes import NORMAL_SHARE, Lanes, Share
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.states import RestsOnBlank
from saga.runtime.kernel.step import Decision, Firing, OutsideSignature, reaction_to
from saga.runtime.kernel.tables import Clock, Tables, VersionConflict, utc_now
from saga.runtime.kernel.transaction import Deferred, GroupTransaction, WorkResult
from saga.runtime.kernel.work import Done, Duplicate, Failed, Outcome, Work
from saga.runtime.metrics import KernelMetrics
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.telemetry import ABOUT

log = logging.getLogger(__name__)

GROUP_MAX = 128
"""Messages in one transaction."""
BROKERS_SHARE = 2
"""One place in so many goes to what came from the broker, however much is asked over HTTP."""
TURNS = 1
"""Of the event loop, before a group is taken: what is about to arrive joins it."""
PESSIMISTIC_GROUPS = 32
"""After a conflict, so many groups are decided on pessimistically."""
ASKING_MAX = 256
"""Intents being asked at once."""
FORGET_SECONDS = 0.2
"""How often confirmed outbox rows are removed, with a group if there is one."""
FORGET_AT_ONCE = 128
"""Confirmed rows that are removed without waiting for that time to come."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 5.0
CONFLICT_BACKOFF_MIN_SECONDS, CONFLICT_BACKOFF_MAX_SECONDS = 0.002, 0.5
"""The longest that a group waits, a random part of it, after its first and after its last conflicts
with another replica."""


class WrongAnswer(TypeError):
    """The outside was asked, and what `Service.ask` made of its answer is of another class than the
    intent's `answer`: nothing of it may be recorded."""


def _expected(intent: Intent, answer: Answer) -> Answer:
    """The answer. Raises `WrongAnswer`."""
    if type(answer) is not intent.answer:
        raise WrongAnswer(
            f"{type(intent).__name__} about {intent.subject!r} was answered by "
            f"{type(answer).__name__}, not by {intent.answer.__name__}; correct its `ask`"
        )
    if answer.subject != intent.subject:
        raise WrongAnswer(
            f"{type(intent).__name__} about {intent.subject!r} was answered about "
            f"{answer.subject!r}; correct its `ask`"
        )
    return answer


class Kernel:
    """Turns messages into committed decisions, each once.

    Belongs to one event loop. `handle` may be called from many tasks; `run` by one.
    """

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: Tables,
        outbox: Outbox,
        ask: Mapping[type[Intent], Ask] | None = None,
        *,
        clock: Clock = utc_now,
        new_id: Callable[[], UUID] = uuid4,
        jitter: Callable[[float, float], float] = random.uniform,
        group_max: int = GROUP_MAX,
        asking_max: int = ASKING_MAX,
        normal_share: int = NORMAL_SHARE,
        begun: Begun | None = None,
    ) -> None:
        """`group_max` messages are in one transaction, `asking_max` intents asked at once; see
        `Lanes` for `normal_share`."""
        self._begun = begun
        self._participant = participant
        self._database = database
        self._tables = tables
        self._outbox = outbox
        self._ask = dict(ask or {})
        self._clock = clock
        self._new_id = new_id
        self._jitter = jitter
        self._group_max = group_max
        # Where there are several states, a decision may rest on one that it does not write, so that
        # no version tells; and where subjects share one, replicas may deadlock.
        several = len(participant.states) > 1
        self._checks = database.shared and (several or any(map(is_shared, participant.states)))
        self._pessimistic_left = 0
        """Groups that are still to be decided on pessimistically."""
        self._metrics = KernelMetrics(participant)
        self._metrics.watch(self, lambda kernel: kernel._unresolved)
        self._commit_loop = RetryLoop("commits", "commit")
        self._lanes: Lanes[Work] = Lanes(normal_share)
        self._local: Lanes[Work] = Lanes(normal_share)
        self._share = Share(BROKERS_SHARE)
        self._asked: dict[MessageKey, list[Work]] = {}
        """Keyed by the message that led to a question which is open: what waits for its end because
        it is that message again."""
        outbox.on_confirmed = self._look_at_outbox
        self._wake = asyncio.Event()
        self._committing = False
        """What is abandoned meanwhile may turn out to have led to a question."""
        self._resting = False
        """Whether nothing but the wake-up ends the wait."""
        self._held_back = False
        self._asking = asyncio.Semaphore(asking_max)
        self._asks: set[asyncio.Task[None]] = set()
        self._unresolved = 0

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return (self._commit_loop,)

    @property
    def held_back(self) -> bool:
        """Whether no more is begun of what came from the broker, see `hold_back`."""
        return self._held_back

    @property
    def idle(self) -> bool:
        """Whether no message is waiting, being decided or being asked about."""
        return self._unresolved == 0 and not self._committing

    async def handle(
        self,
        envelope: Envelope[Any],
        *,
        local: bool = False,
        attempt: int = 1,
        digest: bytes | None = None,
        firing: Firing | None = None,
    ) -> Outcome:
        """Decide on a message and commit the decision; `attempt` counts the tries of it.

        A message whose source and id were done before is a `Duplicate`; `Failed` with `Conflicting`
        where its `digest` and that of what was done are both known, and differ.

        Returns when it is durable, or known to have been before, or refused. Waits as long as the
        database is away; a message from the broker, which is not `local`, also as long as the
        outbox is busy, or it is held back. When cancelled, the message may be committed or not.
        """
        resolved: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        ABOUT.set(envelope)
        work = self.take(
            envelope,
            partial(_set, resolved),
            local=local,
            attempt=attempt,
            digest=digest,
            firing=firing,
        )
        try:
            return await resolved
        finally:
            self.abandon(work)

    def take(
        self,
        envelope: Envelope[Any],
        then: Callable[[Outcome], None],
        *,
        local: bool = False,
        attempt: int = 1,
        digest: bytes | None = None,
        firing: Firing | None = None,
    ) -> Work:
        """The same without waiting: `then` is called with the outcome, from the event loop, unless
        the work is abandoned before."""
        lanes = self._local if local else self._lanes
        work = Work(envelope, envelope.data, then, lanes, self._clock(), attempt, digest, firing)
        if tracing.active is not None:
            work.context = tracing.active.here()
        self._unresolved += 1
        lanes.append(work, envelope.priority)
        self._wake.set()
        return work

    def abandon(self, work: Work) -> None:
        """It is awaited no more: it is not begun, if it has not begun yet. What the outside
        was asked for it is recorded all the same."""
        if work.then is not None:
            work.then = None
            if not work.asked:
                self._unresolved -= 1

    def abandon_all(self, works: Iterable[Work]) -> None:
        """The same of many, which are not kept waiting: while nothing can be committed, more and
        more would come."""
        for work in works:
            self.abandon(work)
        self._lanes.keep(_is_wanted)

    async def give(
        self,
        command: Command,
        *,
        id: str | None = None,
        priority: Priority = Priority.NORMAL,
    ) -> Done | Duplicate:
        """Carry out a command given in process; returns when that is durable.

        It is carried out once per `id`. Raises what its reaction raises.
        """
        envelope = wrap(
            command,
            id=id or str(self._new_id()),
            source=source_of(self._participant.name),
            time=self._clock(),
            priority=priority,
        )
        return await self._done_locally(envelope)

    async def fire(self, firing: Firing) -> Done | Duplicate:
        """Carry out what is due about a state, once, even if other replicas try at the same time.

        `Duplicate` if it is not due: its time has not come by the kernel's clock, or another
        replica or another message was faster. Then nothing is noted, so it may be fired later.
        What is brought forward is in the audit record if, and only if, it is committed. Raises
        what its reaction raises, and `DueStays`.
        """
        envelope = firing.envelope(self._participant.name, self._clock())
        return await self._done_locally(envelope, firing)

    async def _done_locally(
        self, envelope: Envelope[Any], firing: Firing | None = None
    ) -> Done | Duplicate:
        outcome = await self.handle(envelope, local=True, firing=firing)
        if isinstance(outcome, Failed):
            raise outcome.error
        return outcome

    async def run(self) -> None:
        """Commit groups until cancelled; drain first, or the last group may be cut short."""
        now = asyncio.get_running_loop().time
        forgot_at = now()
        while True:
            for _ in range(TURNS):
                await asyncio.sleep(0)
            group = self._take()
            due = now() - forgot_at >= FORGET_SECONDS
            if not group:
                self._wake.clear()
                due = not await self._woken()
                if not due and self._outbox.removable < FORGET_AT_ONCE:
                    continue
            confirmed = self._outbox.take_confirmed(1 if due else FORGET_AT_ONCE)
            if confirmed:
                forgot_at = now()
            if group or confirmed:
                self._committing = bool(group)
                try:
                    await self._commit(group, confirmed)
                except BaseException:
                    self._outbox.give_back(confirmed)
                    raise
                finally:
                    self._committing = False

    def hold_back(self, held_back: bool) -> None:
        """Begin no more of what came from the broker, or go on with it. What the outside has
        answered is committed all the same: only we know of it."""
        self._held_back = held_back
        self._wake.set()

    def _look_at_outbox(self) -> None:
        """Wake up to forget what was confirmed, if only that ends the wait, if it is much, or if
        messages wait for the outbox to be less busy."""
        if self._resting or self._lanes or self._outbox.removable >= FORGET_AT_ONCE:
            self._wake.set()

    async def _woken(self) -> bool:
        """Wait for work; False when instead it is time to forget what was confirmed."""
        self._resting = self._outbox.idle
        try:
            # Not `wait_for`: on Python 3.11 it can swallow a cancellation.
            async with asyncio.timeout(None if self._resting else FORGET_SECONDS):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    def _take(self) -> list[Work]:
        """The next group, empty if there is nothing to do now. Work that is awaited no more is left
        out, and there may be more of that than a group takes."""
        while self._local or self._lanes:
            waiting = 0 if self._outbox.busy or self._held_back else len(self._lanes)
            of_local, of_lanes = self._share.of(self._group_max, len(self._local), waiting)
            taken = self._local.take(of_local) + self._lanes.take(of_lanes)
            if self._held_back:
                taken += self._lanes.take_ahead(_was_asked, self._group_max - len(taken))
            group = [work for work in taken if _is_wanted(work) and not self._has_to_wait(work)]
            if group or not taken:
                return group
        return []

    def _has_to_wait(self, work: Work) -> bool:
        """Whether the same message is waiting for an answer; this one is decided on after that."""
        if work.asked or (same := self._asked.get(work.envelope.key)) is None:
            return False
        same[:] = [*filter(_is_wanted, same), work]
        return True

    async def _commit(self, group: Sequence[Work], confirmed: Sequence[str]) -> None:
        """Commit the group, however long the database is away; split it if its data is refused."""
        backoff_seconds = BACKOFF_MIN_SECONDS
        conflict_backoff_seconds = CONFLICT_BACKOFF_MIN_SECONDS
        while True:
            started = time.monotonic()
            pessimistic = self._pessimistic_left > 0
            try:
                results, outgoing = await self._database.transaction(
                    partial(self._decide, group, confirmed, pessimistic=pessimistic),
                    brief=not pessimistic,
                )
            except RestsOnBlank:
                # No other replica has to do with it, so it is for this group.
                self._pessimistic_left = 1
            except VersionConflict as conflict:
                if self._database.shared:  # else it can only be a message that was done before
                    self._metrics.conflicts.inc()
                if not pessimistic:
                    self._pessimistic_left = PESSIMISTIC_GROUPS
                    continue
                if conflict_backoff_seconds == CONFLICT_BACKOFF_MAX_SECONDS:
                    self._commit_loop.failed(
                        f"another replica keeps writing the same rows of {conflict}"
                    )
                # A random part of it, or two replicas would meet again and again.
                await asyncio.sleep(self._jitter(0, conflict_backoff_seconds))
                conflict_backoff_seconds = min(
                    conflict_backoff_seconds * 2, CONFLICT_BACKOFF_MAX_SECONDS
                )
            except Exception as error:
                if self._database.is_away(error):
                    self._outbox.look_again()
                    self._pessimistic_left = PESSIMISTIC_GROUPS  # It may have been committed.
                    self._commit_loop.failed(error)
                    self._metrics.paused_seconds.inc(backoff_seconds)
                    await asyncio.sleep(backoff_seconds)
                    backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
                elif group and not pessimistic:
                    # What was done before may be what is refused.
                    self._pessimistic_left = PESSIMISTIC_GROUPS
                elif len(group) > 1:
                    for number, work in enumerate(group):
                        if number == 0 or not self._has_to_wait(work):
                            await self._commit([work], confirmed if number == 0 else ())
                    return
                elif group:
                    self._commit_loop.succeeded()  # The database is there, and has said no.
                    self._go_on(group[0], Failed(error))
                    self._outbox.give_back(confirmed)
                    return
                else:
                    raise
            else:
                self._commit_loop.succeeded()
                self._metrics.committed(len(group), time.monotonic() - started)
                if pessimistic and group:
                    self._pessimistic_left -= 1
                self._outbox.forgotten(confirmed)
                if outgoing:
                    self._outbox.publish(outgoing)
                for work, result in zip(group, results, strict=True):
                    self._go_on(work, result)
                return

    def _go_on(self, work: Work, result: WorkResult) -> None:
        if tracing.active is not None and work.span is not None:
            error = result.error if isinstance(result, Failed) else None
            tracing.active.end(work.span, error, work.envelope.data)
        if isinstance(result, Deferred):
            work.lanes.append(work, work.envelope.priority)
            self._wake.set()
            return
        if not isinstance(result, Decision):
            if isinstance(result, Failed) and isinstance(result.error, OutsideSignature):
                reaction = reaction_to(self._participant, work.message)
                self._metrics.refused(reaction.name, result.error.reason)
            self._resolve(work, result)
            return
        if self._begun is not None:
            self._begun.committed(result)
        self._metrics.decided(result.events)
        if work.firing is not None and not work.asked:
            late = self._clock() - work.firing.due.at
            early = work.firing.brought_forward is not None
            self._metrics.fired(work.envelope.type, None if early else late.total_seconds())
        if result.intent is None:
            self._resolve(work, Done(result.events, result.own))
            return
        if not work.asked:
            work.asked = True
            self._asked[work.envelope.key] = []
            if work.then is None:  # Abandoned while it was decided on.
                self._unresolved += 1
        task = asyncio.create_task(self._ask_outside(work, result.intent))
        self._asks.add(task)
        task.add_done_callback(self._asks.discard)

    def _resolve(self, work: Work, outcome: Outcome) -> None:
        then, work.then = work.then, None
        if work.asked or then is not None:
            self._unresolved -= 1
        if work.asked:
            work.asked = False
            for again in self._asked.pop(work.envelope.key):
                again.lanes.append(again, again.envelope.priority)
                self._wake.set()
        if then is not None:
            self._metrics.handled(work.envelope, outcome, time.monotonic() - work.began)
            then(outcome)

    async def _ask_outside(self, work: Work, intent: Intent) -> None:
        """Ask, outside any transaction; the answer goes ahead of what waits."""
        ABOUT.set(work.envelope)
        async with self._asking:
            began = time.monotonic()
            try:
                with tracing.asking(type(intent).__name__, work.span):
                    work.message = _expected(intent, await self._ask[type(intent)](intent))
            except Exception as error:
                self._metrics.asked(intent, "failed", time.monotonic() - began)
                self._resolve(work, Failed(error))
                return
            self._metrics.asked(intent, "answered", time.monotonic() - began)
        work.lanes.put_first(work, work.envelope.priority)
        self._wake.set()

    def _decide(
        self,
        group: Sequence[Work],
        confirmed: Sequence[str],
        connection: Connection,
        *,
        pessimistic: bool,
    ) -> tuple[list[WorkResult], list[Outgoing]]:
        """The work of one transaction, see `GroupTransaction.run`; runs where that does."""
        writes = WriteSet()
        self._outbox.remove(writes, confirmed)
        if not group:
            writes.execute(connection)
            return [], []
        transaction = GroupTransaction(
            self._participant,
            self._database,
            self._tables,
            self._outbox,
            self._metrics,
            connection,
            self._clock(),
            checks=self._checks,
            pessimistic=pessimistic,
            begun=self._begun,
        )
        return transaction.run(group, writes)


def _was_asked(work: Work) -> bool:
    """Whether it is an answer, while the kernel holds back what is none."""
    return work.asked


def _is_wanted(work: Work) -> bool:
    """Whether a client waits for it, or it has to be brought to its end."""
    return work.then is not None or work.asked


def _set(resolved: asyncio.Future[Outcome], outcome: Outcome) -> None:
    if not resolved.done():
        resolved.set_result(outcome)
