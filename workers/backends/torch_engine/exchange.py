"""What ranks tell each other while they compute one step."""

from __future__ import annotations

from typing import Protocol, TypeVar

import msgspec
from torch import Tensor

Agreed = TypeVar("Agreed", bound=msgspec.Struct)


class Exchange(Protocol):
    """Every rank calls the same methods in the same order."""

    def add(self, rows: Tensor) -> Tensor:
        """The sum over all ranks."""

    def join(self, columns: Tensor) -> Tensor:
        """All ranks' columns side by side, in order of rank."""

    def agree(self, value: Agreed) -> Agreed:
        """Rank 0's value, on every rank."""


class NoExchange:
    """One rank is all there is."""

    def add(self, rows: Tensor) -> Tensor:
        return rows

    def join(self, columns: Tensor) -> Tensor:
        return columns

    def agree(self, value: Agreed) -> Agreed:
        return value
