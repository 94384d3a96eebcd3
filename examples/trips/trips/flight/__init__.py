"""Holds seats at the airline, and has tickets issued for them."""
