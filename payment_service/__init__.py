"""Charges customers through a payment provider, once, and refunds what was cancelled."""
