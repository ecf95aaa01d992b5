"""Transfers between host and device that neither waits for, and the fence behind which they are over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(values: Sequence[float] | NDArray[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on the device. A GPU takes them when it has done what it was given before."""
    tensor = torch.as_tensor(values, dtype=dtype)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def download(tensor: Tensor) -> Tensor:
    """The same on the host; to be looked at behind a fence only."""
    return tensor.to("cpu", non_blocking=tensor.device.type == "cuda")


class Fence:
    """Set up behind everything that the device was given so far."""

    def __init__(self, device: torch.device) -> None:
        self._event: Any = None
        if device.type == "cuda":
            event: Any = torch.cuda.Event  # untyped
            self._event = event()
            self._event.record()

    def wait(self) -> None:
        """Until the device has come here. Raises what it failed with."""
        if self._event is not None:
            self._event.synchronize()
