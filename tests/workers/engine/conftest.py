"""Fixtures of the tests that ask a real model."""

from harness.asked import asked, integrity

__all__ = ["asked", "integrity"]
