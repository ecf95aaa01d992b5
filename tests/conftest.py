"""Fixtures that every room's tests may use."""

import os

pytest_plugins = ("harness.nats",)

# Tests share their cores with each other and with servers: threads of a model that spin for long would stop the rest.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
