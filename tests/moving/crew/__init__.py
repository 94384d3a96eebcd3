"""Hires crews."""
