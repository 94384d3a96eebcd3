"""The rider: nothing of its own runs beside its kernel."""
