"""Keeps what each user prefers."""
