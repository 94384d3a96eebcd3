"""Loads of sagas with predicted ends."""

from typing import Final

OWN_COMMANDS: Final = ("publish", "demo")
"""The commands that a saga may have in the place of the engine's."""
