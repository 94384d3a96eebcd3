"""Knows who keeps tasks."""
