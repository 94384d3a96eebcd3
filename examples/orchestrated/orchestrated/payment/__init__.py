"""Asks the payment provider, when it is told to."""
