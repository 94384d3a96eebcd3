"""The rider, as a service."""
