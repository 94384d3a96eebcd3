"""An event loop with a clock of its own, on which whole processes live, freeze and die.

Nothing here waits: when nothing can run, the clock goes to the next timer. Which of the callbacks
that could run does so next is drawn by lot, so code must not rest on their order, although asyncio
keeps it. All that happens is a function of the seed.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVarTuple, Unpack
from weakref import WeakKeyDictionary

from sqlalchemy.util import greenlet_spawn

STEP_SECONDS = 0.00002
"""What running one callback takes of the simulated time: so timers also end while there is work."""

CLOSE_MAX = 10
"""How often a killed task may wait while it cleans up."""

Ts = TypeVarTuple("Ts")


@dataclass(eq=False, slots=True)
class SimulatedProcess:
    """What dies together. Its tasks, timers and callbacks are those that were begun in `context`,
    or by one of them."""

    name: str
    alive: bool = True
    frozen_until: float = 0.0
    context: Context = field(init=False)
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    futures: list[asyncio.Future[Any]] = field(default_factory=list)
    """Those that are no tasks."""

    def __post_init__(self) -> None:
        self.context = copy_context()
        self.context.run(_process.set, self)


_process: ContextVar[SimulatedProcess] = ContextVar("process")


def current_process() -> SimulatedProcess:
    """The process whose code is running."""
    return _process.get()


class _Handle(asyncio.TimerHandle):
    """A callback, which is due at a time. (asyncio's own classes do not tell their context.)"""

    __slots__ = ("process",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        if context is None:
            context = copy_context()
        # What asyncio's own constructors do, which call each other: there are thousands in a run.
        self._context = context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._repr = None
        self._source_traceback = None
        self._when = when
        self._scheduled = False
        self.process = context[_process]

    @property
    def what(self) -> str:
        """The code that it runs."""
        callback = self._callback
        task = getattr(callback, "__self__", None)
        if isinstance(task, asyncio.Task):
            return _innermost(task.get_coro())
        return str(getattr(callback, "__qualname__", callback))


class SimulatedLoop(asyncio.BaseEventLoop):
    """Runs callbacks until it is told to stop. All on it has to be in a `SimulatedProcess`."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__()
        self._random = chance.random
        self._now = 0.0
        self._ready_handles: list[_Handle] = []
        self._timers: list[tuple[float, int, _Handle]] = []
        self._timer_count = 0
        self._stopped = False
        self._seen: Counter[str] | None = None
        """What the steps are, while they are counted."""
        self.steps = 0
        self._threads: WeakKeyDictionary[Any, asyncio.Task[Any]] = WeakKeyDictionary()
        """Keyed by executor: what its thread was given last."""
        self.before_step: Callable[[SimulatedProcess], None] = lambda _: None
        """Called with the process whose callback is to run next; may kill it."""
        self.on_error: Callable[[str, BaseException | None], None] = lambda _, __: None
        """Called with what no task or callback has dealt with."""

    def run(self, until: float, steps_max: float = math.inf) -> None:
        """Run until the time `until`, or until stopped, or until nothing is left to do, or until
        there were `steps_max` steps in all."""
        asyncio._set_running_loop(self)
        self._stopped = False
        try:
            self._run(until, steps_max)
        finally:
            asyncio._set_running_loop(None)

    def most_of(self, steps: int, until: float) -> str:
        """Run so many steps more, and say what most of them were."""
        self._seen = Counter()
        try:
            self.run(until, self.steps + steps)
            ((what, count),) = self._seen.most_common(1) or [("nothing", 0)]
        finally:
            self._seen = None
        return f"{count} of {steps} more were {what}"

    def stop(self) -> None:
        self._stopped = True

    def jump(self, to: float) -> None:
        """Let the clock show a later time, as on a machine that has slept: all timers that would
        have ended meanwhile end now."""
        self._now = max(self._now, to)

    def spawn(
        self, process: SimulatedProcess, coroutine: Coroutine[Any, Any, Any]
    ) -> asyncio.Task[Any]:
        """Begin a task in a process."""
        return process.context.run(self.create_task, coroutine)

    def kill(self, process: SimulatedProcess) -> None:
        """End a process at once: none of its code runs any more, not even to clean up."""
        for task in process.tasks:
            # The task that was about to look at its result, or at that of what it waits for, is
            # gone.
            waited_for = task._fut_waiter  # type: ignore[attr-defined]  # asyncio's own
            for ended in (task, waited_for):
                if ended is not None and ended.done() and not ended.cancelled():
                    ended.exception()
        self.end(process)

    def end(self, process: SimulatedProcess) -> None:
        """End a process with the run: an error that no code has looked at is reported."""
        process.alive = False
        for future in (*process.tasks, *process.futures):
            self._report_unseen(future)
        running = asyncio._get_running_loop()
        asyncio._set_running_loop(self)  # For what cleans up: from 3.12 on there is no other.
        try:
            for task in process.tasks:
                if not task.done():
                    # Or Python would run their `finally` blocks whenever it collects the garbage.
                    task._log_destroy_pending = False  # type: ignore[attr-defined]  # asyncio's own, and the only way
                    process.context.run(_close, task)
        finally:
            asyncio._set_running_loop(running)
        process.tasks.clear()
        process.futures.clear()

    def _report_unseen(self, future: asyncio.Future[Any]) -> None:
        """Report an error that no code has looked at. asyncio does so too, but only when the future
        is collected: when that is, if ever, depends on the version of Python."""
        if future._log_traceback:  # asyncio's own, and the only way
            kind = type(future).__name__
            self.on_error(f"{kind} exception was never retrieved", future.exception())

    def freeze(self, process: SimulatedProcess, seconds: float) -> None:
        """Let a process make no progress for some time."""
        process.frozen_until = max(process.frozen_until, self._now + seconds)

    def _run(self, until: float, steps_max: float) -> None:
        """Run one callback after the other, or go to the next timer."""
        # Most of what is done here is done some thousand times in a run: no call can be spared.
        ready, timers, chance, pop = self._ready_handles, self._timers, self._random, heapq.heappop
        while not self._stopped and self.steps < steps_max:
            now = self._now
            while timers and timers[0][0] <= now:
                ready.append(pop(timers)[2])
            if not ready:
                while timers and timers[0][2]._cancelled:
                    pop(timers)
                if not timers or timers[0][0] > until:
                    self._now = max(now, until)
                    return
                self._now = timers[0][0]
                continue
            if now > until:
                return
            index = int(chance() * len(ready))
            handle, ready[index] = ready[index], ready[-1]
            ready.pop()
            process = handle.process
            if handle._cancelled or not process.alive:
                continue
            if process.frozen_until > now:
                self._add_timer(process.frozen_until, handle)
                continue
            self.before_step(process)
            if process.alive:
                self.steps += 1
                self._now += STEP_SECONDS
                if self._seen is not None:
                    self._seen[f"{process.name}: {handle.what}"] += 1
                handle._run()

    def _add_timer(self, when: float, handle: _Handle) -> None:
        self._timer_count += 1
        heapq.heappush(self._timers, (when, self._timer_count, handle))

    # What asyncio asks of a loop.

    def time(self) -> float:
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Handle:
        handle = _Handle(self._now, callback, args, self, context)
        self._ready_handles.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Handle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Handle:
        handle = _Handle(when, callback, args, self, context)
        self._add_timer(when, handle)
        return handle

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = super().create_task(coro, **options)
        _process.get().tasks.append(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        future = super().create_future()
        _process.get().futures.append(future)
        return future

    def run_in_executor(
        self, executor: Any, func: Callable[[Unpack[Ts]], Any], *args: *Ts
    ) -> asyncio.Future[Any]:
        """Call what blocks, in the one thread of an executor, or in one of its own. Where it blocks
        it waits by `sqlalchemy.util.await_only`, and all else goes on meanwhile. A thread goes on
        when who waits for it is cancelled."""
        before = None if executor is None else self._threads.get(executor)

        async def called() -> Any:
            if before is not None:
                await asyncio.wait((before,))
            return await greenlet_spawn(func, *args)

        task = self.create_task(called())
        if executor is not None:
            self._threads[executor] = task
        waiting = self.create_future()
        task.add_done_callback(partial(_hand_on, waiting))
        return waiting

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        error = context.get("exception")
        # The task that waited for what was cancelled may be killed before it learns of it.
        if not isinstance(error, asyncio.CancelledError):
            self.on_error(context["message"], error)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """asyncio counts them to know when to tidy up."""


def _innermost(coroutine: Any) -> str:
    """The function of ours that a task is in, as deep as one can see."""
    name = "nothing"
    while hasattr(coroutine, "cr_code"):
        if coroutine.cr_code.co_filename != asyncio.tasks.__file__:
            name = coroutine.__qualname__
        coroutine = coroutine.cr_await
    return name


def settle(future: asyncio.Future[Any], result: Any) -> None:
    """End a future with a result or an error, if a task still waits for it."""
    if future.done():
        return
    if isinstance(result, BaseException):
        future.set_exception(result)
        future.exception()  # The task that waits may be killed before it learns of it.
    else:
        future.set_result(result)


def _hand_on(future: asyncio.Future[Any], task: asyncio.Task[Any]) -> None:
    """End a future as the task has ended."""
    if task.cancelled():
        future.cancel()
    else:
        settle(future, task.exception() or task.result())


def _close(task: asyncio.Task[Any]) -> None:
    """End a task's coroutine where it is."""
    coroutine = task.get_coro()
    for _ in range(CLOSE_MAX):
        try:
            if coroutine is not None:
                coroutine.close()
        except RuntimeError:  # It waits for something while it cleans up.
            continue
        return
