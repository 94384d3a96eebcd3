"""Books cars at the rental."""
