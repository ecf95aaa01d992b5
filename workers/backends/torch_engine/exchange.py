"""What ranks tell each other while they compute one step."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Exchange(Protocol):
    """Every rank calls the same methods in the same order."""

    def add(self, rows: Tensor) -> Tensor:
        """The sum over all ranks."""

    def join(self, columns: Tensor) -> Tensor:
        """All ranks' columns side by side, in order of rank."""


class NoExchange:
    """One rank is all there is."""

    def add(self, rows: Tensor) -> Tensor:
        return rows

    def join(self, columns: Tensor) -> Tensor:
        return columns
