"""Reserves rooms at the hotel."""
