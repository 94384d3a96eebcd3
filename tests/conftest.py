"""What costs CPU is done once: no garbage is collected while thousands of tests are, and one of the
workers has the console's browser and systems."""

from __future__ import annotations

import gc
from collections.abc import Generator
from importlib import import_module
from typing import Any, Final

import pytest

CONSOLE: Final = "tests/console/"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file's tests stay with one worker, and the console's, which share a browser and two running
    systems, are as one file."""
    if config.getoption("dist") != "loadfile":
        return None
    scheduler = import_module("xdist.scheduler").LoadFileScheduling(config, log)
    scope_of = scheduler._split_scope
    scheduler._split_scope = lambda test: CONSOLE if test.startswith(CONSOLE) else scope_of(test)
    return scheduler


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()  # What is garbage by now would be kept for ever.
        gc.freeze()
