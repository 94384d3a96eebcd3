"""Every function of the standard library that may read the clock, chance or the environment is
either noticed in a reaction, or has a reason why it is not."""

from __future__ import annotations

import contextlib
import datetime
import inspect
import io
import os
import pathlib
import posix
import random
import secrets
import socket
import sys
import time
import uuid
from collections.abc import Iterator
from types import ModuleType

import pytest

from saga.purity import watched
from saga.surroundings import PURE_OS, PURE_TIME, used_by_builtin

NOTICED = [
    "time.time()",
    "time.time_ns()",
    "time.monotonic()",
    "time.monotonic_ns()",
    "time.perf_counter()",
    "time.perf_counter_ns()",
    "time.process_time()",
    "time.process_time_ns()",
    "time.thread_time()",
    "time.thread_time_ns()",
    "time.clock_gettime(0)",
    "time.clock_gettime_ns(0)",
    "time.localtime()",
    "time.localtime(0)",
    "time.gmtime()",
    "time.ctime()",
    "time.ctime(0)",
    "time.asctime()",
    'time.strftime("%Y")',
    "time.mktime(MOMENT)",
    "time.tzset()",
    "time.clock_settime(-1,0)",
    "time.clock_settime_ns(-1,0)",
    "datetime.date.today()",
    "datetime.datetime.today()",
    "datetime.datetime.now()",
    "datetime.datetime.now(datetime.UTC)",
    "datetime.datetime.utcnow()",
    "datetime.date.fromtimestamp(0)",
    "datetime.datetime.fromtimestamp(0)",
    "NAIVE.timestamp()",
    "NAIVE.astimezone()",
    "AWARE.astimezone()",
    "NAIVE.astimezone(datetime.UTC)",
    "random.random()",
    "random.betavariate(1,1)",
    "random.choice([1])",
    "random.choices([1])",
    "random.expovariate(1)",
    "random.gammavariate(1,1)",
    "random.gauss(0,1)",
    "random.gauss(0,1)",
    "random.getrandbits(1)",
    "random.getstate()",
    "random.lognormvariate(0,1)",
    "random.normalvariate(0,1)",
    "random.paretovariate(1)",
    "random.randbytes(1)",
    "random.randint(1,2)",
    "random.randrange(2)",
    "random.sample([1],1)",
    "random.seed()",
    "random.seed(1)",
    "random.setstate(DICE)",
    "random.shuffle([1,2])",
    "random.triangular(0,1,0.5)",
    "random.uniform(0,1)",
    "random.vonmisesvariate(0,1)",
    "random.weibullvariate(1,1)",
    "random.binomialvariate(5,0.5)",
    "random.Random()",
    "random.Random(None)",
    "random.SystemRandom().random()",
    "uuid.uuid1()",
    "uuid.uuid4()",
    "uuid.uuid6()",
    "uuid.uuid7()",
    "uuid.uuid8()",
    "uuid.getnode()",
    "secrets.choice([1])",
    "secrets.randbelow(2)",
    "secrets.randbits(1)",
    "secrets.token_bytes()",
    "secrets.token_hex()",
    "secrets.token_urlsafe()",
    'os.getenv("HOME")',
    'os.environ["PATH"]',
    'os.environ.get("HOME")',
    'os.environb.get(b"HOME")',
    "[*os.environ]",
    "len(os.environ)",
    "os.environ.copy()",
    "{**os.environ}",
    '"HOME"in(os.environ)',
    'os.getenvb(b"HOME")',
    "os.get_exec_path()",
    "os.urandom(1)",
    "os.getrandom(1)",
    "os.getpid()",
    "os.getcwd()",
    "os.cpu_count()",
    'os.stat("/")',
    'os.path.exists("/")',
    'os.listdir("/")',
    "os.uname()",
    "os.times()",
    'os.path.abspath(".")',
    'os.path.getmtime("/")',
    "os.process_cpu_count()",
    "open(os.devnull).close()",
    "io.open(os.devnull).close()",
    "pathlib.Path(os.devnull).read_text()",
    'pathlib.Path(os.devnull).write_text("")',
    "socket.socket().close()",
]
"""Calls, none of which has a space in it."""

COMPUTES = "computes with what it is given"
NOT_NOTICED = {
    "time.gmtime(0)": COMPUTES,
    "time.gmtime(*())": "may well have arguments: the code does not say how many",
    "time.asctime(MOMENT)": COMPUTES,
    "time.strftime('%Y',MOMENT)": COMPUTES,
    "time.strptime('2030','%Y')": PURE_TIME["strptime"],
    "time.sleep(0)": PURE_TIME["sleep"],
    "time.get_clock_info('time')": PURE_TIME["get_clock_info"],
    "time.clock_getres(0)": PURE_TIME["clock_getres"],
    "time.pthread_getcpuclockid(THREAD)": PURE_TIME["pthread_getcpuclockid"],
    "datetime.datetime.fromtimestamp(0,datetime.UTC)": COMPUTES,
    "datetime.datetime.fromtimestamp(0,tz=datetime.UTC)": COMPUTES,
    "datetime.datetime.utcfromtimestamp(0)": COMPUTES,
    "datetime.datetime.strptime('2030','%Y')": "parses a text",
    "datetime.datetime.combine(AWARE.date(),AWARE.time())": COMPUTES,
    "datetime.date.fromisoformat('2030-01-01')": COMPUTES,
    "datetime.date.fromisocalendar(2030,1,1)": COMPUTES,
    "datetime.date.fromordinal(1)": COMPUTES,
    "AWARE.timestamp()": COMPUTES,
    "AWARE.astimezone(datetime.UTC)": COMPUTES,
    "random.Random(1).random()": "draws the same from the same seed",
    "random.Random('text').gauss(0,1)": "draws the same from the same seed",
    "uuid.uuid3(uuid.NAMESPACE_URL,'a')": COMPUTES,
    "uuid.uuid5(uuid.NAMESPACE_URL,'a')": COMPUTES,
    "secrets.compare_digest('a','b')": COMPUTES,
    "os.fspath('a')": PURE_OS["fspath"],
    "os.path.join('a','b')": COMPUTES,
}
"""Calls that may be made, with the reason."""
OF_A_MOMENT = [
    "ctime",
    "date",
    "day",
    "dst",
    "fold",
    "fromisocalendar",
    "fromisoformat",
    "fromordinal",
    "hour",
    "isocalendar",
    "isoformat",
    "isoweekday",
    "max",
    "microsecond",
    "min",
    "minute",
    "month",
    "replace",
    "resolution",
    "second",
    "strftime",
    "time",
    "timetuple",
    "timetz",
    "toordinal",
    "tzinfo",
    "tzname",
    "utcoffset",
    "utctimetuple",
    "weekday",
    "year",
]
"""Of `date` and `datetime`: what says something of the moment itself, and reads nothing."""
NOT_A_CALL = {
    "random.main": "the command `python -m random`",
    "uuid.main": "the command `python -m uuid`",
}
IN_PYTHON = [
    "add_dll_directory",
    "execl",
    "execle",
    "execlp",
    "execlpe",
    "execvp",
    "execvpe",
    "fdopen",
    "fsdecode",
    "fsencode",
    "fwalk",
    "get_exec_path",
    "getenv",
    "getenvb",
    "makedirs",
    "popen",
    "popen2",
    "removedirs",
    "renames",
    "spawnl",
    "spawnle",
    "spawnlp",
    "spawnlpe",
    "spawnv",
    "spawnve",
    "spawnvp",
    "spawnvpe",
    "walk",
    "process_cpu_count",
]
"""Of `os`: written in Python. They read what they read by functions in C, or by `os.environ`."""

GIVEN = {
    "__name__": "toy",
    **{
        each.__name__: each
        for each in (datetime, io, os, pathlib, random, secrets, socket, time, uuid)
    },
    "MOMENT": time.gmtime(0),
    "NAIVE": datetime.datetime(2030, 1, 1),  # noqa: DTZ001 - what is called on it is looked for
    "AWARE": datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
    "DICE": random.getstate(),
    "THREAD": __import__("threading").get_ident(),
}


def there(calls: Iterator[str] | list[str]) -> list[str]:
    """Those that this version of Python has."""
    found = []
    for call in calls:
        module, _, name = call.partition("(")[0].partition(".")
        of = GIVEN.get(module)
        if not isinstance(of, ModuleType) or hasattr(of, name.partition(".")[0].partition("[")[0]):
            found.append(call)
    return found


def uses(call: str) -> list[str]:
    """What is noticed of a call that a module which is not the standard library's makes."""
    code = compile(call, "toy.py", "eval")
    with watched() as found, contextlib.suppress(OSError):  # The clock is not ours to set.
        eval(code, dict(GIVEN))  # noqa: S307 - our own
    return found


@pytest.fixture(autouse=True)
def same_dice() -> Iterator[None]:
    """Other tests have the chance they would have had."""
    before = random.getstate()
    yield
    random.setstate(before)


@pytest.mark.parametrize("call", there(NOTICED))
def test_what_reads_the_surroundings_is_noticed(call: str) -> None:
    (first, *_) = uses(call)

    assert first.startswith("<module> ")


@pytest.mark.parametrize("call", there([*NOT_NOTICED]))
def test_what_only_computes_is_not(call: str) -> None:
    assert not uses(call)


def named() -> set[str]:
    return {call.partition("(")[0] for call in (*NOTICED, *NOT_NOTICED)} | {*NOT_A_CALL}


@pytest.mark.parametrize("module", [time, random, uuid, secrets], ids=lambda m: m.__name__)
def test_each_function_there_is_is_called_above(module: ModuleType) -> None:
    functions = {
        f"{module.__name__}.{name}"
        for name, value in vars(module).items()
        if not name.startswith("_") and callable(value) and not isinstance(value, type)
    }

    assert not functions - named()


def test_each_function_of_a_date_is_called_above_or_says_what_it_is_itself() -> None:
    of = ("datetime.date", "datetime.datetime", "AWARE", "NAIVE")
    for kind in (datetime.date, datetime.datetime):
        for name in dir(kind):
            if not name.startswith("_") and name not in OF_A_MOMENT:
                assert any(f"{each}.{name}" in named() for each in of), name


@pytest.mark.parametrize("name", OF_A_MOMENT)
def test_what_says_something_of_a_moment_reads_nothing(name: str) -> None:
    value = getattr(GIVEN["AWARE"], name)
    if callable(value):
        arguments = {
            "strftime": "'%Y'",
            "fromisocalendar": "2030,1,1",
            "fromisoformat": "'2030-01-01'",
            "fromordinal": "1",
        }
        assert not uses(f"AWARE.{name}({arguments.get(name, '')})")


def test_each_function_of_os_is_noticed_or_has_a_reason_not_to_be() -> None:
    here = sys._getframe()
    for name, value in vars(os).items():
        if not callable(value) or isinstance(value, type) or name.startswith("_"):
            continue
        if inspect.isbuiltin(value) and value.__self__ is posix:
            assert bool(used_by_builtin(value, here)) == (name not in PURE_OS), name
        else:
            assert name in (*IN_PYTHON, "fspath"), name
