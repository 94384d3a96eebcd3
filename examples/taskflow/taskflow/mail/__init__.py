"""Writes to users."""
