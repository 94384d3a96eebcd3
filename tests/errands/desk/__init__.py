"""The desk, as a service."""
