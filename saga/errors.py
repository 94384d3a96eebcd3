"""What a user can fix."""

from __future__ import annotations


class Explained(Exception):
    """Says in one line what is wrong: the thing, its value, and the way out.

    Commands print that line in place of a traceback.
    """


class InputError(ValueError):
    """What was asked for makes no sense: names the argument and what it takes. Nothing changed."""


class NotFound(InputError, Explained):
    """What was asked for makes sense, and is not there, or not any more: names it, and where it was
    looked for. Nothing changed. For commands that is no wrong usage, but a failure."""
