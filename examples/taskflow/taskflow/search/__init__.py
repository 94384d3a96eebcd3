"""Finds tasks by the words of their titles."""
