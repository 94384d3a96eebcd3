"""The stamper: nothing of its own runs beside its kernel."""
