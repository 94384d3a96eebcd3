"""The stamper, as a service."""
