"""The shop, as a service."""
