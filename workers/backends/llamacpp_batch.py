"""A llama_batch whose arrays are numpy's, so that filling it costs slices and not a loop over tokens."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import llama_cpp.llama_cpp as lib
import numpy as np


class Batch:
    """Up to `capacity` tokens, each of one slot."""

    def __init__(self, capacity: int) -> None:
        self._tokens = np.zeros(capacity, dtype=np.int32)
        self._positions = np.zeros(capacity, dtype=np.int32)
        self._slots = np.zeros(capacity, dtype=np.int32)
        self._outputs = np.zeros(capacity, dtype=np.int8)
        self._num_slots = np.ones(capacity, dtype=np.int32)
        # Token i's list of slots is the one element at index i of the slots.
        self._slot_lists = np.uint64(self._slots.ctypes.data) + np.arange(capacity, dtype=np.uint64) * np.uint64(4)
        self.native: Any = lib.llama_batch(
            n_tokens=0,
            token=_pointer(self._tokens, ctypes.c_int32),
            embd=None,
            pos=_pointer(self._positions, ctypes.c_int32),
            n_seq_id=_pointer(self._num_slots, ctypes.c_int32),
            seq_id=_pointer(self._slot_lists, ctypes.POINTER(ctypes.c_int32)),
            logits=_pointer(self._outputs, ctypes.c_int8),
        )

    def clear(self) -> None:
        self.native.n_tokens = 0

    def add(
        self, slot: int, start: int, tokens: Sequence[int], *, last_output: bool = False, all_outputs: bool = False
    ) -> None:
        """Append tokens of a slot at positions `start`, ...; outputs are wanted for the last, for all or for none."""
        begin = self.native.n_tokens
        end = begin + len(tokens)
        self._tokens[begin:end] = tokens
        self._positions[begin:end] = range(start, start + len(tokens))
        self._slots[begin:end] = slot
        self._outputs[begin:end] = all_outputs
        self._outputs[end - 1] = all_outputs or last_output
        self.native.n_tokens = end


def _pointer(array: np.ndarray[Any, Any], element: Any) -> Any:
    return ctypes.cast(array.ctypes.data, ctypes.POINTER(element))
