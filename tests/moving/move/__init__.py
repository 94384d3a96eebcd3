"""Arranges moves."""
