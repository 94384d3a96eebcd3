"""The desk: nothing of its own runs beside its kernel."""
