"""What the standard library reads of a process's surroundings: the clock, chance, the environment,
files, the network and the machine. `saga.purity` notices it when a reaction calls one of these.

What is noticed are calls that Python code makes. Reading a value, such as `time.timezone` or
`os.sep`, is no call, and what C code calls by itself, as in `map(time.time, ...)`, is not seen.
"""

from __future__ import annotations

import dis
import os
import posix
import random
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import date, datetime
from socket import SocketType
from types import CodeType, FrameType, FunctionType
from typing import Any, Final

UNDECIDING: Final = {"logging", "warnings", "importlib", "_strptime"}
"""Modules of the standard library that call these by themselves, where nothing is decided by it:
they write a log, load a module, or look whether the names of weekdays are still those they know."""

_GLOBAL_DICE: Final = getattr(random.random, "__self__", None)
"""What the functions of `random` draw from. Other dice are made from a seed, or memory."""
_CHANCE: Final = {"urandom", "getrandom", "generate_time_safe"}
_CLOCK_UNLESS_GIVEN: Final = {"gmtime": 1, "asctime": 1, "strftime": 2}
"""Functions of `time` that read the clock when they are called with fewer arguments."""
_IO: Final = getattr(open, "__self__", None)
"""The module of `open`."""
_FILES: Final = {"open", "open_code"}
"""Functions of `io` that read or write files."""
_ZONE: Final = {"localtime", "ctime", "mktime"}
"""Functions of `time` that go by the machine's time zone, whatever they are given."""
PURE_TIME: Final = {
    "get_clock_info": "says what a clock is like, which does not change",
    "clock_getres": "says what a clock is like, which does not change",
    "pthread_getcpuclockid": "names a clock, and does not read it",
    "sleep": "waits, and answers nothing",
    "strptime": "parses a text",
}
"""Functions of `time` that are not noticed, with the reason."""
PURE_OS: Final = {
    "fspath": "gives the path that it is given as a text",
    "strerror": "gives the text of an error",
    "major": "computes with a number",
    "minor": "computes with a number",
    "makedev": "computes with numbers",
    "unshare": "answers nothing",
    "_exit": "ends the process",
    "abort": "ends the process",
    **dict.fromkeys(
        (
            "WCOREDUMP",
            "WEXITSTATUS",
            "WIFCONTINUED",
            "WIFEXITED",
            "WIFSIGNALED",
            "WIFSTOPPED",
            "WSTOPSIG",
            "WTERMSIG",
            "waitstatus_to_exitcode",
        ),
        "takes a process's status apart, which it is given",
    ),
    **dict.fromkeys(
        ("_path_normpath", "_path_splitroot", "_path_splitroot_ex"), "takes a path apart"
    ),
}
"""Functions of `os` in C that are not noticed, with the reason."""


def used_by_builtin(function: Any, frame: FrameType) -> str:
    """What a function in C, called from a frame, uses besides its arguments, in words; empty if
    nothing."""
    of, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if name in _CHANCE or (of is _GLOBAL_DICE and of is not None):
        return _drawn(name)
    if of is time:
        return _used_of_time(name, frame)
    if isinstance(of, date) or (isinstance(of, type) and issubclass(of, date)):
        return _used_of_dates(of, name, frame)
    if of is posix and name not in PURE_OS:
        return _asks(f"os.{name}")
    if of is _IO and name in _FILES:
        return _asks(name)
    if isinstance(of, SocketType):
        return _asks(f"socket.{name}")
    return ""


def _used_of_time(name: str, frame: FrameType) -> str:
    if name in _ZONE:
        return _reads_zone(f"time.{name}", "compute with times in UTC")
    if name in PURE_TIME or _arguments(frame) >= _CLOCK_UNLESS_GIVEN.get(name, _MANY + 1):
        return ""
    return _reads_clock(f"time.{name}")


def _used_of_dates(of: date | type[date], name: str, frame: FrameType) -> str:
    if isinstance(of, type):
        if name in {"now", "utcnow", "today"}:
            return _reads_clock(f"{of.__name__}.{name}")
        if name == "fromtimestamp" and (not issubclass(of, datetime) or _arguments(frame) < _ZONED):
            return _reads_zone(f"{of.__name__}.{name}", "give a `tz` to `datetime.fromtimestamp`")
        return ""
    if isinstance(of, datetime) and (
        (name == "timestamp" and of.tzinfo is None)
        or (name == "astimezone" and (of.tzinfo is None or not _arguments(frame)))
    ):
        return _reads_zone(
            f"datetime.{name}", "let each time have a zone, and name the one it gets"
        )
    return ""


_ZONED: Final = 2
"""Arguments of `datetime.fromtimestamp` with a time zone."""
_MANY: Final = 255
"""Arguments of a call that does not say how many: `f(*them)`."""


def _arguments(frame: FrameType) -> int:
    """How many arguments the call has that a frame is at."""
    code, at = frame.f_code.co_code, frame.f_lasti
    if dis.opname[code[at]] in {"CALL", "CALL_KW", "PRECALL"}:
        return code[at + 1]
    return _MANY


def _drawn(name: str) -> str:
    return (
        f"draws at random ({name}); let it derive what it needs from its arguments, as "
        f"`uuid.uuid5` does"
    )


def _reads_clock(name: str) -> str:
    return f"reads the clock ({name}); let the reaction take `now: datetime`"


def _reads_zone(name: str, way_out: str) -> str:
    return f"goes by the machine's time zone ({name}); {way_out}"


def _asks(name: str) -> str:
    return f"asks the operating system ({name}); let the message or the state say what it needs"


def _made_dice(frame: FrameType) -> str:
    """What a `random.Random` is made from: a seed, if it has one."""
    seed = frame.f_locals.get("a")
    return _drawn("random.Random without a seed") if seed is None else ""


def _gauss(frame: FrameType) -> str:
    """It draws two numbers at a time, and keeps one for the next call."""
    return _drawn("gauss") if frame.f_locals.get("self") is _GLOBAL_DICE else ""


def _environment(_: FrameType) -> str:
    return "reads the environment (os.environ); let the message or the state say what it needs"


def _node(_: FrameType) -> str:
    return _asks("uuid.getnode")


WATCHED_CODE: Final[Mapping[CodeType, Callable[[FrameType], str]]] = {
    **{
        each.__code__: _environment
        for each in vars(type(os.environ)).values()
        if isinstance(each, FunctionType) and each.__name__ not in {"__init__", "__repr__"}
    },
    random.Random.seed.__code__: _made_dice,
    random.Random.gauss.__code__: _gauss,
    uuid.getnode.__code__: _node,
}
"""Functions of the standard library in Python that read what no call of theirs shows, each with
what says what it is."""
