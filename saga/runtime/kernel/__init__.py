"""Effectively-once: inbox, state and outbox in one transaction, for the messages in flight."""
