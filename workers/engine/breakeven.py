"""When reading a saved prefix is faster than computing it, by what both have taken lately. Pure: no clock, no disk."""

from __future__ import annotations

DECAY = 0.9
OPTIMISM = 1.1
MIN_WAIT_S = 0.05


class Rate:
    """Amount per second, recent observations weighing most. None before the first one."""

    def __init__(self) -> None:
        self._amount = 0.0
        self._took_s = 0.0

    @property
    def per_s(self) -> float | None:
        return self._amount / self._took_s if self._took_s else None

    def observe(self, amount: float, took_s: float) -> None:
        self._amount = self._amount * DECAY + amount
        self._took_s = self._took_s * DECAY + max(took_s, 1e-9)

    def hope(self) -> None:
        """Believe in a little more than was seen."""
        self._amount *= OPTIMISM


class BreakEven:
    """Bytes against the observed rate of reading, tokens against the observed rate of prefill.

    What was never observed is taken to favour reading, and every refusal raises the hoped-for rate of reading a
    little: a disk that was slow once is tried again.
    """

    def __init__(self) -> None:
        self._read = Rate()
        self._prefill = Rate()

    def observe_read(self, num_bytes: int, took_s: float) -> None:
        self._read.observe(num_bytes, took_s)

    def observe_prefill(self, num_tokens: int, took_s: float) -> None:
        self._prefill.observe(num_tokens, took_s)

    def prefers_reading(self, num_bytes: int, num_tokens: int) -> bool:
        """Whether to read that many bytes rather than compute that many tokens."""
        bytes_per_s, tokens_per_s = self._read.per_s, self._prefill.per_s
        if bytes_per_s is None or tokens_per_s is None or num_bytes / bytes_per_s < num_tokens / tokens_per_s:
            return True
        self._read.hope()
        return False

    def patience_s(self, num_tokens: int) -> float:
        """How long a read may take before computing these tokens would have been done; a second when unknown."""
        tokens_per_s = self._prefill.per_s
        return 1.0 if tokens_per_s is None else max(MIN_WAIT_S, num_tokens / tokens_per_s)
