"""How properties are tested."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

# A busy machine is not a failure; a failure prints what reproduces it.
settings.register_profile(
    "unit", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("unit")
