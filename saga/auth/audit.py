"""The record of who was let in and who was not: one JSON line a decision.

An `AuditTrail` belongs to what asks callers who they are, so that two participants in one
application have two. Its files are of bounded size. `entries` reads what all processes wrote.
Without a file, and besides where it has handlers of its own, lines go to the logger `saga.audit`.
No line has a token or a key in it.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import heapq
import logging
import os
import re
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import to_json

from saga.auth.caller import Caller
from saga.errors import Explained

log = logging.getLogger("saga.audit")
own_log = logging.getLogger(__name__)

FILE_MAX_BYTES: Final = 20_000_000
"""How long a file gets before the next one is begun."""
STRANGERS_KEEP_BYTES: Final = 100_000_000
"""How much is kept of unknown callers, at most."""
TEXT_MAX_CHARACTERS: Final = 255
"""Of each thing in a line that a caller may have chosen."""
LINE_MAX_BYTES: Final = 16_384
FLUSH_SECONDS: Final = 0.05
"""For so long an ordinary line may wait for others: each write lets go of the interpreter, which
the thread of the database then has."""
OUT_OF_ORDER_SECONDS: Final = 2.0
"""How much later than a line after it in a file a line may be. Processes with one file write at
different times; this is `FLUSH_SECONDS` for each, and what an event loop that is busy adds."""
_WAITING_MAX: Final = 256
_REMEMBERED_MAX: Final = 1_024
"""Lines' constant parts that a process remembers."""
_READS: Final = ":read"
_TELL_SECONDS: Final = 60.0
_LOOK_AFTER_LINES: Final = 500
"""Another process with the same file may have begun the next one: so often it is looked at."""


Unread = Callable[[Path], None]
"""Is told of each line that cannot be read, by its file."""


class AuditError(Explained):
    """A trail that cannot be kept or read. Names the folder."""


class Audited(BaseModel):
    """One line of the trail. `who` is None for a caller who is not known."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: datetime
    process: str
    allowed: bool
    who: str | None
    name: str = ""
    how: str | None
    action: str
    scope: str = ""
    subject: str | None = None
    reason: str = ""
    personal: bool = False
    address: str = ""


class CallerKind(Enum):
    """For whom callers act, by what is added to the name of their file."""

    ALL = ""
    OWNERS = "-owners"
    STRANGERS = "-strangers"


class AuditTrail:
    """One process's record of its decisions, or that of one participant of several in a process.

    There are three files: for callers who act for all, for those who act for one owner, and for
    strangers. In a common one, those of whom there are most could ask until what is written of the
    others is pushed out. Without files, lines go to the logger alone.

    The operating system has a line before `decided` returns, or before the answer goes out, so that
    ending the process does not lose it: of a refusal, of a look at data of people, and of all that
    a caller who acts for all does but reading. Other lines wait for `FLUSH_SECONDS`.
    """

    def __init__(self, process: str, trails: Mapping[CallerKind, Trail]) -> None:
        """Use `kept`."""
        self._process = process
        self._trails = trails

    @classmethod
    def kept(cls, folder: Path, process: str, keep_bytes: int, *, asked_for: bool) -> AuditTrail:
        """Keep decisions in files in `folder`; where that takes none and no setting `asked_for`
        it, print them to stderr. Raises `AuditError` where one did."""
        log.setLevel(logging.INFO)
        log.propagate = False
        trails: dict[CallerKind, Trail] = {}
        try:
            for kind in CallerKind:
                at_most = STRANGERS_KEEP_BYTES if kind is CallerKind.STRANGERS else keep_bytes
                trails[kind] = Trail(folder, f"{process}{kind.value}", min(keep_bytes, at_most))
        except OSError as error:
            for trail in trails.values():
                trail.close()
            if asked_for:
                raise AuditError(
                    f"cannot keep the audit trail in {folder} (AUDIT_DIR): {error.strerror}"
                ) from None
            own_log.info(
                "the audit trail is printed: %s takes no files (%s)", folder, error.strerror
            )
            if not log.handlers:
                log.addHandler(logging.StreamHandler())  # Bare: each line is its own document.
            return cls(process, {})
        return cls(process, trails)

    def decided(
        self,
        caller: Caller | None,
        *,
        action: str,
        scope: str,
        subject: str | None = None,
        allowed: bool,
        reason: str = "",
        personal: bool = False,
        address: str = "",
        before_answer: bool = False,
    ) -> None:
        """Record a decision. `subject` is what it is about, `personal` whether that shows data of
        people, `address` the network address it was asked from. With `before_answer`, a line that
        must not be lost waits for `keep`, so that those of requests which one commit answers are
        written at once."""
        decision = _Decision(
            time.time(),
            self._process,
            caller,
            action[:TEXT_MAX_CHARACTERS],
            scope,
            None if subject is None else subject[:TEXT_MAX_CHARACTERS],
            allowed,
            reason[:TEXT_MAX_CHARACTERS],
            personal,
            address[:TEXT_MAX_CHARACTERS],
        )
        trail = self._trails.get(_kind_of(caller))
        if trail is not None:  # A record of a logger takes as long as all else here.
            trail.write(decision, before_answer=before_answer)
        if (trail is None or log.handlers) and (line := _line_of(decision)):
            log.info("%s", line.decode().rstrip("\n"))

    def keep(self) -> None:
        """Write what must not be lost. To be called before an answer goes out."""
        for trail in self._trails.values():
            if trail.matters:
                trail.flush()

    def close(self) -> None:
        """Write what waits, and keep no more in files."""
        for trail in self._trails.values():
            trail.close()
        self._trails = {}


def _kind_of(caller: Caller | None) -> CallerKind:
    if caller is None:
        return CallerKind.STRANGERS
    return CallerKind.ALL if caller.owner is None else CallerKind.OWNERS


class _Decision(NamedTuple):
    """A line of the trail, until it is written: making its text of it takes longer than all else
    that is done about a request's caller, so that is left for many at once."""

    at: float
    """In seconds since 1970."""
    process: str
    caller: Caller | None
    action: str
    scope: str
    subject: str | None
    allowed: bool
    reason: str
    personal: bool
    address: str

    @property
    def may_wait(self) -> bool:
        """Whether its line may be written with others. See `AuditTrail`."""
        if not self.allowed or self.personal:
            return False
        if self.caller is not None and self.caller.owner is not None:
            return True
        return _only_reads(self.scope)

    def line(self) -> bytes:
        caller = self.caller
        who, name, how = (
            (None, "", None) if caller is None else (caller.subject, caller.name, caller.how.value)
        )
        before, after = _around_subject(
            self.process, who, name, how, self.action, self.scope,
            self.allowed, self.reason, self.personal, self.address,
        )  # fmt: skip
        at = datetime.fromtimestamp(self.at, UTC).isoformat(timespec="microseconds")
        subject = b"null" if self.subject is None else to_json(_recorded(self.subject))
        return b'{"at":"%b",%b%b%b' % (at.encode(), before, subject, after)


@lru_cache(_REMEMBERED_MAX)
def _only_reads(scopes: str) -> bool:
    each = scopes.split()
    return bool(each) and all(scope.endswith(_READS) for scope in each)


@lru_cache(_REMEMBERED_MAX)
def _around_subject(
    process: str,
    who: str | None,
    name: str,
    how: str | None,
    action: str,
    scope: str,
    allowed: bool,
    reason: str,
    personal: bool,
    address: str,
) -> tuple[bytes, bytes]:
    """What stands in a line between its time and its subject, and behind that: the same for a
    caller who asks for one thing again and again."""
    before = {
        "process": process,
        "allowed": allowed,
        "who": None if who is None else _recorded(who),
        "name": _recorded(name),
        "how": how,
        "action": _recorded(action),
        "scope": scope,
    }
    after = {"reason": _recorded(reason), "personal": personal, "address": _recorded(address)}
    return b'%b,"subject":' % to_json(before)[1:-1], b",%b" % to_json(after)[1:]


def _line_of(decision: _Decision) -> bytes:
    """A decision's line. Empty where none can be made of it, which is logged: that costs no other
    line, and no answer."""
    try:
        return decision.line() + b"\n"
    except Exception as error:
        own_log.error(
            "the audit trail lacks a line of %s: %s (%s, %s): %s",
            decision.process,
            "allowed" if decision.allowed else "refused",
            decision.action,
            decision.scope or "no scope",
            type(error).__name__,  # Its text may quote what the caller sent.
        )
        return b""


def _recorded(text: str) -> str:
    """A text as it fits into a line; half a surrogate pair, which no JSON can hold, as its
    escape."""
    if not text.isascii():
        text = text.encode("utf-8", "backslashreplace").decode()
    return text[:TEXT_MAX_CHARACTERS]


_open: Final[weakref.WeakSet[Trail]] = weakref.WeakSet()
"""Those of this process: what waits is written before the files are read, and at the end."""


@atexit.register
def _flush_all() -> None:
    for trail in [*_open]:
        trail.flush()


class Trail:
    """Appends lines to `<process>.jsonl`. A full file gets the time as part of its name, so that
    processes which share it lose nothing; the oldest go when all have `keep_bytes`."""

    def __init__(self, folder: Path, process: str, keep_bytes: int) -> None:
        """Raises `OSError`."""
        self._folder, self._process, self._keep_bytes = folder, process, keep_bytes
        self._file = folder / f"{process}.jsonl"
        self._told_at = -_TELL_SECONDS
        self._written = 0
        self._lock = threading.Lock()
        """The console reads its own trail in another thread, and writes before that what waits."""
        self._waiting: deque[_Decision] = deque()
        self.matters = False
        """Whether a line waits that must be written before the next answer."""
        self._before = b""
        """What ends a line of which the disk took a part only."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._flushing: asyncio.TimerHandle | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self._descriptor = self._open()
        _open.add(self)

    def __del__(self) -> None:
        if getattr(self, "_descriptor", -1) >= 0:
            self.close()

    def write(self, decision: _Decision, *, before_answer: bool) -> None:
        """Append its line: at once; where it may wait until an answer, with the next `flush`; or
        within `FLUSH_SECONDS` where it may wait longer and an event loop runs."""
        self._waiting.append(decision)
        if not decision.may_wait:
            if before_answer and len(self._waiting) < _WAITING_MAX:
                self.matters = True
            else:
                self.flush()
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            self.flush()
            return
        if len(self._waiting) >= _WAITING_MAX:
            self.flush()
        elif (
            self._flushing is None
            or self._flushing.when() < loop.time() - 1
            or (self._loop is not loop)
        ):
            self._loop = loop
            self._flushing = loop.call_later(FLUSH_SECONDS, self.flush)

    def flush(self) -> None:
        """Write what waits. What the disk does not take is lost, and that is logged."""
        with self._lock:
            self._flush()

    def _flush(self) -> None:
        self._flushing = None
        self.matters = False
        waiting: list[_Decision] = []
        with contextlib.suppress(IndexError):  # Another thread may add one meanwhile.
            while True:
                waiting.append(self._waiting.popleft())
        lines = b"".join(map(_line_of, waiting))
        if not lines:
            return
        lines = self._before + lines
        self._before = b"\n"
        try:
            while lines:  # A full disk takes a part of them before it says that it is full.
                lines = lines[os.write(self._descriptor, lines) :]
            self._before = b""
            self._written += len(waiting)
            if self._written >= _LOOK_AFTER_LINES:
                self._written = 0
                self._turn_over()
        except OSError as error:
            now = time.monotonic()
            if now - self._told_at >= _TELL_SECONDS:
                self._told_at = now
                own_log.error("the audit trail lacks lines: %s: %s", self._file, error.strerror)

    def _open(self) -> int:
        options = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self._file, options, 0o600)

    def _turn_over(self) -> None:
        ours = os.fstat(self._descriptor)
        try:
            there = self._file.stat()
        except FileNotFoundError:
            there = None
        if there is not None and there.st_ino == ours.st_ino:
            if ours.st_size < FILE_MAX_BYTES:
                return
            self._file.rename(self._folder / f"{self._process}.{time.time_ns()}.jsonl")
        fresh = self._open()
        os.close(self._descriptor)
        self._descriptor = fresh
        self._forget()

    def _forget(self) -> None:
        ours = re.compile(rf"{re.escape(self._process)}\.[0-9]+\.jsonl")
        full = sorted(
            (file for file in self._folder.iterdir() if ours.fullmatch(file.name)), reverse=True
        )
        kept = FILE_MAX_BYTES  # of the one that is being written
        for file in full:
            with contextlib.suppress(FileNotFoundError):
                kept += file.stat().st_size
                if kept > self._keep_bytes:
                    file.unlink()

    def close(self) -> None:
        """Write what waits, and take no more. To close it again does nothing."""
        _open.discard(self)
        with self._lock:
            self._flush()
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def entries(
    folder: Path, until: datetime | None = None, unread: Unread = lambda _: None
) -> Iterator[Audited]:
    """The decisions that all processes recorded in `folder`, of up to a moment, the latest first.
    Lines of one file may be out of order by `OUT_OF_ORDER_SECONDS`. Lines that cannot be read are
    left out, and `unread` is told their file. A folder that is not there has none. Raises
    `AuditError`."""
    _flush_all()
    try:
        # Of each process, that which is being written first: for what is of the same time.
        files = sorted(
            (file for file in folder.iterdir() if file.suffix == ".jsonl" and file.is_file()),
            reverse=True,
        )
    except FileNotFoundError:
        return
    except OSError as error:
        raise AuditError(f"cannot read {folder}: {error.strerror}") from None
    yield from heapq.merge(
        *(_latest_first(_backwards(file, until, unread), until) for file in files),
        key=lambda found: found.at,
        reverse=True,
    )


def _latest_first(lines: Iterator[Audited], until: datetime | None) -> Iterator[Audited]:
    """Lines in the order of their time, without those after a moment. Given as a file has them,
    the last first; of one time, that order stays."""
    waiting: list[tuple[float, int, Audited]] = []
    for number, line in enumerate(lines):
        at = line.at.timestamp()
        # What comes is at most so much later than this one.
        while waiting and -waiting[0][0] > at + OUT_OF_ORDER_SECONDS:
            yield heapq.heappop(waiting)[2]
        if until is None or line.at <= until:
            heapq.heappush(waiting, (-at, number, line))
    while waiting:
        yield heapq.heappop(waiting)[2]


def _backwards(file: Path, until: datetime | None, unread: Unread) -> Iterator[Audited]:
    """The lines of a file, the last first: all those of up to a moment, and few after it."""
    try:
        stream = file.open("rb")
    except OSError as error:
        raise AuditError(f"cannot read {file}: {error.strerror}") from None
    with stream:
        end = stream.seek(0, os.SEEK_END)
        if until is not None:
            end = _end_of(stream, end, until)
        rest = b""
        while end > 0:
            begin = max(end - LINE_MAX_BYTES, 0)
            stream.seek(begin)
            first, *lines = (stream.read(end - begin) + rest).split(b"\n")
            rest, end = first, begin
            for line in reversed(lines):
                yield from _read(line, file, unread)
            if len(rest) > LINE_MAX_BYTES:
                rest = rest[-LINE_MAX_BYTES - 1 :]  # No line of ours.
        yield from _read(rest, file, unread)


def _end_of(stream: BinaryIO, size: int, until: datetime) -> int:
    """A place behind which each line is of after a moment, found by halves. Lines are in order of
    time but for `OUT_OF_ORDER_SECONDS`, so behind one that is so much later, none is of before."""
    until += timedelta(seconds=OUT_OF_ORDER_SECONDS)
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        stream.seek(max(middle - 1, 0))
        if middle:
            stream.readline(LINE_MAX_BYTES)  # The rest of a line.
        if stream.tell() >= high:
            high = middle
            continue
        found = next(_read(stream.readline(LINE_MAX_BYTES)), None)
        if found is not None and found.at > until:
            high = middle
        else:
            low = stream.tell()
    return low


def _read(line: bytes, file: Path = Path(), unread: Unread = lambda _: None) -> Iterator[Audited]:
    if line:
        try:
            found = Audited.model_validate_json(line)
        except ValidationError:
            unread(file)
        else:
            yield found
