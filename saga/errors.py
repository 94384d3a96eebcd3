"""What a user can fix."""

from __future__ import annotations


class Explained(Exception):
    """Says in one line what is wrong: the thing, its value, and the way out.

    Commands print that line in place of a traceback.
    """


class InputError(ValueError):
    """What was asked for makes no sense: names the argument and what it takes. Nothing changed."""
