"""The tally: which lines of a batch are answered, how many failed, and what they cost."""

from __future__ import annotations

from inferflux.broker.wire.batches import BatchEntry, LineCounts
from inferflux.broker.wire.requests import Usage


class Tally:
    """A bit for each line of the file."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.num_done = 0
        self.num_failed = 0
        self._done = bytearray()
        self._prompt_tokens = 0
        self._completion_tokens = 0
        self._cached_tokens = 0

    @property
    def complete(self) -> bool:
        return self.num_done >= self.total

    @property
    def counts(self) -> LineCounts:
        return LineCounts(total=self.total, completed=self.num_done - self.num_failed, failed=self.num_failed)

    @property
    def usage(self) -> Usage:
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            cached_tokens=self._cached_tokens,
        )

    def has(self, line: int) -> bool:
        byte, bit = divmod(line, 8)
        return byte < len(self._done) and bool(self._done[byte] >> bit & 1)

    def add(self, entry: BatchEntry) -> None:
        """Count an entry of the journal."""
        byte, bit = divmod(entry.line, 8)
        if byte >= len(self._done):
            self._done.extend(bytes(byte + 1 - len(self._done)))
        self._done[byte] |= 1 << bit
        self.num_done += 1
        self.num_failed += entry.failed
        self._prompt_tokens += entry.usage.prompt_tokens
        self._completion_tokens += entry.usage.completion_tokens
        self._cached_tokens += entry.usage.cached_tokens
