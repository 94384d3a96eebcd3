"""Errors that the simulation causes: they explain what code under test may not do without one."""

from __future__ import annotations

from typing import Final, TypeVar

_NOTE: Final = "caused by the simulation"

E = TypeVar("E", bound=BaseException)


def fault(error: E) -> E:
    """Mark an error as caused by the simulation."""
    if not is_fault(error):
        error.add_note(_NOTE)
    return error


def is_fault(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised `from`, was caused by the simulation. What is raised
    while a fault is handled, and names no cause, is a mistake of its own."""
    while error is not None:
        if _NOTE in getattr(error, "__notes__", ()):
            return True
        error = error.__cause__
    return False
