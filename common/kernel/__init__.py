"""Effectively-once: inbox, state and outbox in one transaction, shared by the messages in flight."""
