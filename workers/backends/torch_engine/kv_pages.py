"""All layers' pages of keys and values, and what of them belongs to a slot that has not run yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .operations import Pages

MakePages = Callable[[int, int], list[Pages]]


class KVPages:
    """Reads pages of a sequence out as one tensor and puts them back, whatever layout the operations gave them."""

    def __init__(self, make: MakePages, num_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.layers = make(num_pages, page_size)
        self._tensors = [tensor for layer in self.layers for tensor in layer]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def page_bytes(self) -> int:
        """Of one page in all layers."""
        return sum(tensor[0].nbytes for tensor in self._tensors)

    def read(self, table: Sequence[int]) -> Tensor:
        """The pages' bytes, (tensors, pages, bytes), on the host."""
        index = torch.tensor(list(table), dtype=torch.int64, device=self._tensors[0].device)
        return torch.stack([tensor[index].flatten(1).cpu().view(torch.uint8) for tensor in self._tensors])

    def write(self, table: Sequence[int], content: Tensor) -> None:
        """Put what `read` gave into other pages, as many as `content` has."""
        index = torch.tensor(list(table), dtype=torch.int64, device=self._tensors[0].device)
        for tensor, part in zip(self._tensors, content, strict=True):
            part = part.contiguous().view(tensor.dtype).view(len(index), *tensor.shape[1:])
            tensor[index] = part.to(tensor.device)

    def parse(self, data: bytes) -> Tensor | None:
        """Bytes of `read` as a tensor; None when they are not a whole number of this model's pages."""
        num_pages, rest = divmod(len(data), self.page_bytes)
        if rest or not num_pages:
            return None
        content = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        return content.view(len(self._tensors), num_pages, -1)
