"""Fixtures that every room's tests may use."""

import os

from hypothesis import HealthCheck, settings

pytest_plugins = ("harness.nats",)

# Tests share their cores with each other and with servers: threads of a model that spin for long would stop the rest.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# How long an example takes says more about the machine than about us.
settings.register_profile("inferflux", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("inferflux")
