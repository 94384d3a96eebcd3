"""Takes orders, and says how each one ended."""
