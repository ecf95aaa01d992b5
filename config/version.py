"""The version that is installed."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def package_version() -> str:
    """Empty where the code runs without having been installed."""
    try:
        return version("inferflux")
    except PackageNotFoundError:
        return ""
