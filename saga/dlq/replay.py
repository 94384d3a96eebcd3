"""Sending letters again: a frozen selection, a few at first, no faster than asked, and no further
than they succeed.

A letter succeeds when its message's inbox row is there, and fails when the message is dead again.
It goes to its origin queue only, under its own id, so that sending it twice has the effect of
sending it once: that is what makes a replay that was killed safe to go on with.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from saga.dlq import DlqError, SelectionChanged
from saga.dlq.collect import collect
from saga.dlq.desk import DeadLetterDesk, ReadingDesk
from saga.dlq.examine import REPLAYS_MAX, Expectation, Verdict
from saga.dlq.letters import DeadLetter, posting_of
from saga.dlq.replays import Replay
from saga.dlq.selection import FrozenSelection, Selection
from saga.dlq.states import HERE, ItemState, LetterState
from saga.errors import InputError, NotFound
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.messaging.permissions import REPLAY
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.wire import Unroutable
from saga.runtime.tasks import cancel_all, in_thread
from saga.runtime.urls import printable
from saga.wording import counted

RAMP: Final = (1, 5, 25, 125)
"""How many are sent at first, each step once the one before has succeeded; then all the others."""
RATE_MAX: Final = 100_000.0
FAILING_MAX: Final = 0.2
TIMEOUT_SECONDS: Final = 60.0
"""How long it may take to hear of a message: longer than all its tries together."""
TIMEOUT_MAX_SECONDS: Final = 86_400.0
UNHEARD_MAX: Final = 1_000
"""Messages sent and not yet heard of, beyond which sending waits."""
RECENT: Final = 100
"""The messages heard of last, whose share of failures counts."""
EXAMINED_TOGETHER: Final = 200
TOGETHER_MAX: Final = 100
"""Messages whose confirms are awaited together."""
BURST_SECONDS: Final = 0.25
"""How much of a second's rate may be sent at once."""
CATCH_UP: Final = 1.08
"""How much faster than its rate a replay goes that fell behind it, while it waited for the first
few messages for instance."""
JUDGE_EVERY_SECONDS, JUDGE_EVERY_AT_FIRST_SECONDS = 0.1, 0.02
_PAUSE_SECONDS: Final = 0.01
_LOCK_AGAIN_SECONDS: Final = 0.02
_LOCK_LOOKS_MAX: Final = 5

STOPPED: Final = "an operator stopped it; it waits to be resumed"

_OUT: Final = (ItemState.SENDING, ItemState.SENT)
_FAILED: Final = (ItemState.FAILED, ItemState.UNANSWERED, ItemState.REFUSED)

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """How to replay. `rate` is in messages per second, None for as fast as it goes; `max_failing`
    is the share of the messages heard of lately that may have failed. Raises `InputError`."""

    rate: float | None = None
    max_failing: float = FAILING_MAX
    max_replays: int = REPLAYS_MAX
    timeout_seconds: float = TIMEOUT_SECONDS
    force: bool = False

    def __post_init__(self) -> None:
        if self.rate is not None and not 0 < self.rate <= RATE_MAX:
            raise InputError(
                f"the rate is {self.rate:g}; it takes messages per second, more than 0 and at most "
                f"{RATE_MAX:g}"
            )
        if not 0 <= self.max_failing <= 1:
            raise InputError(f"max-failing is {self.max_failing:g}; it takes a share from 0 to 1")
        if self.max_replays < 1:
            raise InputError(f"max-replays is {self.max_replays}; it takes 1 or more")
        if not 0 < self.timeout_seconds <= TIMEOUT_MAX_SECONDS:
            raise InputError(
                f"the timeout is {self.timeout_seconds:g}; it takes seconds, more than 0 and at "
                f"most {TIMEOUT_MAX_SECONDS:g}"
            )


@dataclass(slots=True)
class ReplayResult:
    """What came of a replay. `counts` has every letter of the frozen selection once."""

    run: int
    counts: Mapping[ItemState, int]
    letters: Sequence[tuple[int, ItemState, str]]
    stopped: str | None
    resumed: bool
    seconds: float
    sent: int
    """Messages sent in this command; less than all when it went on with a replay."""
    sending_seconds: float

    @property
    def ok(self) -> bool:
        """Whether every letter of the selection is done."""
        return self.stopped is None and set(self.counts) <= {ItemState.DONE}

    @property
    def rate(self) -> float | None:
        """Messages per second, from the first sent to the last."""
        return (self.sent - 1) / self.sending_seconds if self.sent > 1 else None

    def to_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "run": self.run,
            "resumed": self.resumed,
            "stopped": self.stopped,
            "selected": sum(self.counts.values()),
            **{str(state): self.counts.get(state, 0) for state in ItemState},
            "sent_now": self.sent,
            "seconds": round(self.seconds, 3),
            "rate": None if self.rate is None else round(self.rate, 1),
            "not_done": [
                {"letter": number, "state": str(state), "detail": detail}
                for number, state, detail in self.letters
                if state is not ItemState.DONE
            ],
        }


async def dry_run(
    desk: ReadingDesk,
    selection: Selection,
    settings: ReplaySettings,
    *,
    limit: int | None = None,
    after: tuple[datetime, int] | None = None,
) -> list[tuple[DeadLetter, Verdict]]:
    """What a replay would do with each letter of the selection, in its order. Sends nothing. With a
    `limit`, with so many, behind the letter with that first failure and number."""
    if limit is None:
        letters = await in_thread(desk.store.find, selection, HERE)
    else:
        letters = await in_thread(desk.store.page, selection, HERE, limit, after, contents=True)
    examiner = desk.examiner(settings.max_replays)
    verdicts: dict[int, Verdict] = {}
    for start in range(0, len(letters), EXAMINED_TOGETHER):
        part = letters[start : start + EXAMINED_TOGETHER]
        verdicts |= await examiner.examine(part, force=settings.force)
        await asyncio.sleep(0)  # Others may have their turn.
    return [(letter, verdicts[letter.number]) for letter in letters]


async def replay(
    desk: DeadLetterDesk,
    selection: Selection | None,
    settings: ReplaySettings,
    *,
    why: str = "",
    confirmed: FrozenSelection | None = None,
    resuming: int | None = None,
    stop: Stop | None = None,
    begun: Callable[[Replay, int], None] = lambda _, __: None,
    progress: Progress = lambda _: None,
) -> ReplayResult:
    """Replay the letters selected, or go on with the replay of them that never ended.

    With None as the selection, go on with the one that never ended: whichever that is, or the one
    that is `resuming`. With what was `confirmed` of the
    letters selected, it is a new replay of just these, or none; others that came later are left.
    `begun` is told the run and how many letters are open; `progress`, how many more are heard of.
    Once `stop` is asked for, no more are sent, and the replay waits to be resumed. Raises
    `DlqError`, `InputError`, and `BrokerError` if the broker goes away: then the same call goes on.
    """
    stop = stop or Stop()
    async with alone(desk.store.path):
        run, resumed = await in_thread(_run, desk, selection, settings, why, confirmed, resuming)
        replays = desk.store.replays
        replaying = _Replaying(desk, run, settings, progress, stop)
        begun(run, len(await in_thread(replays.open_items, run)))
        publisher = BrokerPublisher(desk.deployment.amqp_url_of(REPLAY), "saga dlq replay")
        started = time.monotonic()
        try:
            await publisher.open()
            stopped = await replaying.work(publisher)
        finally:
            await publisher.close()
        seconds = time.monotonic() - started
        counts = await in_thread(replays.count, run)
        result = ReplayResult(
            run.number,
            counts,
            await in_thread(replays.items_of, run),
            stopped,
            resumed,
            seconds,
            replaying.sent,
            replaying.sending_seconds,
        )
        summary = {name: value for name, value in result.to_json().items() if name != "not_done"}
        if stop.asked and stopped == STOPPED:
            await in_thread(replays.pause, run, stopped, summary, stop.why)
        else:
            await in_thread(replays.end, run, stopped or "finished", summary, why)
    return result


@dataclass(slots=True)
class Stop:
    """Asks a replay to send no more; it then waits to be resumed. `why` is for the audit record."""

    asked: bool = False
    why: str = ""

    def ask(self, why: str) -> None:
        self.asked, self.why = True, why


def _run(
    desk: DeadLetterDesk,
    selection: Selection | None,
    settings: ReplaySettings,
    why: str,
    confirmed: FrozenSelection | None,
    resuming: int | None,
) -> tuple[Replay, bool]:
    """The run to work on: the one that never ended, or a new one."""
    unfinished = desk.store.replays.unfinished()
    if resuming is not None and (unfinished is None or unfinished.number != resuming):
        raise DlqError(f"replay {resuming} does not wait to be resumed any more; look again")
    if unfinished is None:
        if selection is None:
            raise NotFound("no replay waits to be resumed: each one begun has ended")
        now = None if confirmed is None else confirmed.at
        letters = desk.store.find(selection, HERE, contents=False, now=now)
        numbers = [letter.number for letter in letters]
        if confirmed is not None:
            numbers = confirmed.within(numbers)
            if not confirmed.are(numbers):
                raise SelectionChanged(desk.store.count(selection, HERE))
        return desk.store.replays.begin(selection, numbers, asdict(settings), why), False
    if selection is not None and (
        confirmed is not None or selection.to_json() != unfinished.selection
    ):
        raise DlqError(
            f"replay {unfinished.number} of {unfinished.selection or 'all letters'} was begun and "
            f"never ended; go on with it by `saga dlq replay --resume` first"
        )
    return unfinished, True


@asynccontextmanager
async def alone(store: Path) -> AsyncIterator[None]:
    """One replay or edit at a time: two replays would count each other's successes and failures,
    and a letter would be sent twice. Raises `DlqError`."""
    descriptor = os.open(_lock_of(store), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        looks = 0
        while not _take(descriptor, fcntl.LOCK_EX):
            # Who only looks, as `at_work` does, has it for an instant.
            if looks == _LOCK_LOOKS_MAX:
                raise DlqError(
                    f"another replay or edit is at work on {store}; wait for it, or stop it first"
                )
            looks += 1
            await asyncio.sleep(_LOCK_AGAIN_SECONDS)
        yield
    finally:
        os.close(descriptor)


def at_work(store: Path) -> bool:
    """Whether a replay or an edit is at work on the store, in whatever process."""
    try:
        descriptor = os.open(_lock_of(store), os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        return not _take(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock_of(store: Path) -> Path:
    return store.with_name(store.name + ".lock")


def _take(descriptor: int, kind: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


@dataclass(slots=True)
class _Pace:
    """So many a second, and no more than a little at once after a pause."""

    rate: float | None
    clock: Callable[[], float] = time.monotonic
    _tokens: float = 1.0
    _spent: int = 0
    _started: float = 0.0
    _at: float = 0.0

    def __post_init__(self) -> None:
        self._started = self._at = self.clock()

    def allows(self, wanted: int) -> int:
        """How many of those wanted may go now."""
        if self.rate is None:
            return wanted
        now = self.clock()
        most = max(1.0, self.rate * BURST_SECONDS)
        behind = self._spent < (now - self._started) * self.rate
        pace = self.rate * (CATCH_UP if behind else 1.0)
        self._tokens = min(most, self._tokens + (now - self._at) * pace)
        self._at = now
        return min(wanted, int(self._tokens))

    def spend(self, count: int) -> None:
        self._tokens -= count
        self._spent += count


class _Replaying:
    """One command's work on a run."""

    def __init__(
        self,
        desk: DeadLetterDesk,
        run: Replay,
        settings: ReplaySettings,
        progress: Progress,
        stop: Stop,
    ) -> None:
        self._desk = desk
        self._store = desk.store
        self._run = run
        self._settings = settings
        self._progress = progress
        self._stop = stop
        self._examiner = desk.examiner(settings.max_replays)
        self._waiting: deque[int] = deque()
        self._unheard: dict[int, tuple[DeadLetter, float]] = {}
        self._recent: deque[bool] = deque(maxlen=RECENT)
        self._pace = _Pace(settings.rate)
        self._participants: set[str] = set()
        self._judging: asyncio.Task[None] | None = None
        self._judged_at = 0.0
        self.sent = 0
        self._first_at = self._last_at = 0.0

    @property
    def sending_seconds(self) -> float:
        return max(self._last_at - self._first_at, 1e-9)

    async def work(self, publisher: BrokerPublisher) -> str | None:
        """Send and listen until every letter is heard of; returns why it stopped before, if so."""
        await self._take_up()
        try:
            return await self._work(publisher)
        finally:
            if self._judging is not None:
                await cancel_all(self._judging)

    async def _work(self, publisher: BrokerPublisher) -> str | None:
        ramp = iter(RAMP)
        step: int | None = next(ramp)
        left = step  # of this step of the ramp
        while self._waiting or self._unheard:
            if self._stop.asked:
                return STOPPED
            room = UNHEARD_MAX - len(self._unheard) if step is None else (left or 0)
            count = self._pace.allows(min(room, TOGETHER_MAX, len(self._waiting)))
            if count > 0:
                sent = await self._send(publisher, count)
                if left is not None:
                    left -= sent
            self._judge_if_due(
                JUDGE_EVERY_SECONDS if step is None else JUDGE_EVERY_AT_FIRST_SECONDS
            )
            step_ended = step is not None and not left and not self._unheard
            if (step is None or step_ended) and (why := self._too_many_fail()):
                return why
            if step_ended:
                step = next(ramp, None)
                left = step
            elif count <= 0:
                await asyncio.sleep(_PAUSE_SECONDS)
        return self._too_many_fail()

    async def _take_up(self) -> None:
        """Where the run stands. Of what was being sent it is unknown whether it went: it is sent
        again, unless it is done, or dead again, which it was not without having been sent."""
        items = dict(await in_thread(self._store.replays.open_items, self._run))
        now = time.monotonic()
        out = [number for number, state in items.items() if state in _OUT]
        for letter in await in_thread(self._letters, out):
            if letter.state is LetterState.DEAD:
                del items[letter.number]
                await self._hear([letter.number], ItemState.FAILED, "it is dead again")
            elif items[letter.number] is ItemState.SENT:
                del items[letter.number]
                self._unheard[letter.number] = letter, now
                self._participants.add(letter.participant)
        self._waiting.extend(items)

    def _letters(self, numbers: Collection[int]) -> list[DeadLetter]:
        if not numbers:
            return []
        found = {
            letter.number: letter for letter in self._store.find(Selection(numbers=tuple(numbers)))
        }
        return [found[number] for number in numbers if number in found]

    async def _send(self, publisher: BrokerPublisher, count: int) -> int:
        """Send the next letters that may be sent; returns how many were."""
        numbers = [self._waiting.popleft() for _ in range(count)]
        letters = await in_thread(self._letters, numbers)
        verdicts = await self._examiner.examine(letters, force=self._settings.force)
        going: list[DeadLetter] = []
        for letter in letters:
            verdict = verdicts[letter.number]
            skipped = self._skipped(letter, verdict)
            if skipped is None:
                going.append(letter)
            else:
                await self._hear([letter.number], *skipped, counts=False)
        # One that is sending already was counted before it was first sent.
        replays = {
            letter.number: letter.replays + (letter.state is LetterState.DEAD) for letter in going
        }
        may_go = await in_thread(self._store.replays.mark_sending, self._run, replays)
        await self._hear(
            [letter.number for letter in going if letter.number not in may_go],
            ItemState.SKIPPED,
            "another command has dealt with it",
            counts=False,
        )
        going = [letter for letter in going if letter.number in may_go]
        self._pace.spend(len(going))
        await self._publish(publisher, going, replays)
        return len(going)

    def _skipped(self, letter: DeadLetter, verdict: Verdict) -> tuple[ItemState, str] | None:
        """What becomes of a letter that is not sent; None if it is."""
        if letter.state not in HERE:
            return ItemState.SKIPPED, f"it is {letter.state}"
        resumed = letter.state is LetterState.SENDING
        match verdict.expectation:
            case Expectation.HANDLED:
                return None
            case Expectation.ALREADY_DONE:
                return ItemState.DONE, verdict.detail
            case Expectation.CAPPED if resumed:
                return None
            case Expectation.UNDECODABLE if self._settings.force:
                return None
            case _:
                return ItemState.SKIPPED, f"{verdict.expectation}: {verdict.detail}"

    async def _publish(
        self, publisher: BrokerPublisher, letters: Sequence[DeadLetter], replays: Mapping[int, int]
    ) -> None:
        results = await asyncio.gather(
            *(
                publisher.publish("", posting_of(letter, replays[letter.number]))
                for letter in letters
            ),
            return_exceptions=True,
        )
        now = time.monotonic()
        if not self.sent:
            self._first_at = now
        confirmed: list[DeadLetter] = []
        away: BaseException | None = None
        for letter, result in zip(letters, results, strict=True):
            if result is None:
                confirmed.append(letter)
            elif isinstance(result, Unroutable):
                await self._hear([letter.number], ItemState.REFUSED, f"not routed: {result}")
            else:
                away = result
        self.sent += len(confirmed)
        self._last_at = now
        numbers = [letter.number for letter in confirmed]
        await in_thread(self._store.replays.mark_sent, self._run, numbers)
        # Not before: what is heard of them is noted after they are noted as sent.
        for letter in confirmed:
            self._unheard[letter.number] = letter, now
            self._participants.add(letter.participant)
        if away is not None:
            raise BrokerError(
                f"RabbitMQ at {printable(self._desk.deployment.amqp_url_of(REPLAY))} went away: "
                f"{str(away) or type(away).__name__}; once it is well, `saga dlq replay --resume` "
                f"goes on"
            ) from away

    def _judge_if_due(self, every_seconds: float) -> None:
        """Begin to find out what became of what was sent, beside the sending."""
        if self._judging is not None:
            if not self._judging.done():
                return
            self._judging.result()
        if time.monotonic() - self._judged_at > every_seconds:
            self._judged_at = time.monotonic()
            self._judging = asyncio.create_task(self._judge())

    async def _judge(self) -> None:
        """Find out what became of what was sent."""
        if not self._unheard:
            return
        await collect(self._desk.connection, self._store, sorted(self._participants))
        letters = [letter for letter, _ in self._unheard.values()]
        # In this order: what is done never dies again.
        states = await in_thread(self._store.states_of, list(self._unheard))
        done = await self._examiner.done(letters)
        await self._hear(sorted(done), ItemState.DONE)
        dead = [n for n in self._unheard if states.get(n) is LetterState.DEAD]
        await self._hear(dead, ItemState.FAILED, "it is dead again")
        settled = [
            n
            for n in self._unheard
            if states.get(n) in (LetterState.DISCARDED, LetterState.REPLACED)
        ]
        await self._hear(settled, ItemState.SKIPPED, "an operator has settled it", counts=False)
        late = time.monotonic() - self._settings.timeout_seconds
        unanswered: dict[bool, list[int]] = {True: [], False: []}
        for number, (letter, at) in self._unheard.items():
            if at < late:
                unanswered[self._examiner.is_foreign(letter.participant)].append(number)
        after = f"after {self._settings.timeout_seconds:g} s"
        detail = f"neither done nor dead again {after}"
        await self._hear(unanswered[False], ItemState.UNANSWERED, detail)
        # It may have dealt with it by saying nothing, which cannot be told here.
        detail = f"neither answered nor dead again {after}; its participant's own log tells more"
        await self._hear(unanswered[True], ItemState.UNANSWERED, detail, counts=False)

    async def _hear(
        self, numbers: Collection[int], state: ItemState, detail: str = "", *, counts: bool = True
    ) -> None:
        if not numbers:
            return
        await in_thread(self._store.replays.mark_items, self._run, numbers, state, detail)
        for number in numbers:
            self._unheard.pop(number, None)
            if counts:
                self._recent.append(state in _FAILED)
        self._progress(len(numbers))

    def _too_many_fail(self) -> str | None:
        if not self._recent:
            return None
        failing, heard = sum(self._recent), len(self._recent)
        if failing / heard <= self._settings.max_failing:
            return None
        return (
            f"{failing} of the last {counted(heard, 'message')} failed again, more than "
            f"{self._settings.max_failing:.0%}"
        )
