"""Fixtures that every room's tests may use."""

pytest_plugins = ("harness.nats",)
