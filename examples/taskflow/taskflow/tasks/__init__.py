"""Keeps tasks: what is to be done, what is done, and what was withdrawn."""
