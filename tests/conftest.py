"""Thousands of tests are collected without collecting garbage, which takes a third of the CPU; what
they are made of is passed by when garbage is collected later."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection() -> Generator[None, object, object]:
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()  # What is garbage by now would be kept for ever.
        gc.freeze()
