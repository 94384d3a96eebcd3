"""Charges users for their tasks."""
