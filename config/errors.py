"""The root of the error tree, and the one error that settings raise; `broker/errors.py` draws the whole tree."""

from __future__ import annotations


class InferFluxError(Exception):
    """Root of every error that InferFlux raises on purpose."""


class ConfigError(InferFluxError):
    """A setting, file or credential is wrong. The message names the place and the fix."""
