"""Backends that hold tokens where others hold their keys and values: one stream for each slot, or pages for all."""

from __future__ import annotations

import time
import zlib
from array import array
from collections.abc import Sequence

import msgspec

from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, StubSettings
from inferflux.workers.backends.backend import Capacity, Chunk, Sample
from inferflux.workers.backends.stub import FIRST_WORD, WORDS, StubBackend

TWO_SLOTS = SchedulerSettings(max_batch_size=2)


def next_token(stream: Sequence[int]) -> int:
    """What follows is a function of everything that the slot holds, so a wrong or missing token shows."""
    return FIRST_WORD + 1 + zlib.crc32(array("I", stream).tobytes()) % len(WORDS)


def answer(prompt: Sequence[int], count: int) -> list[int]:
    """The tokens that must follow a prompt, however it is computed."""
    stream = list(prompt)
    for _ in range(count):
        stream.append(next_token(stream))
    return stream[len(prompt) :]


class StreamsBackend(StubBackend):
    """Reads nothing but a slot's own stream. `num_computed_tokens` counts what was computed, `num_loads` restores.

    A prompt's token takes `prefill_token_s`.
    """

    def __init__(
        self,
        scheduler: SchedulerSettings = TWO_SLOTS,
        *,
        context_length: int = 512,
        fingerprint: str = "streams",
        prefill_token_s: float = 0.0,
        num_pages: int = 0,
    ) -> None:
        stub = StubSettings(step_s=0.0, context_length=context_length)
        paged_kv = PagedKVSettings(page_size=16, cpu_pages=num_pages)
        super().__init__(RuntimeSettings(scheduler=scheduler, paged_kv=paged_kv, stub=stub))
        self.fingerprint = fingerprint
        self.prefill_token_s = prefill_token_s
        self.streams: list[list[int]] = [[] for _ in range(scheduler.max_batch_size)]
        self.num_computed_tokens = 0
        self.num_loads = 0

    def start(self) -> Capacity:
        return msgspec.structs.replace(super().start(), pages_shared=False, fingerprint=self.fingerprint)

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        samples = []
        time.sleep(self.prefill_token_s * sum(len(chunk.tokens) for chunk in batch if len(chunk.tokens) > 1))
        for chunk in batch:
            stream = self.streams[chunk.slot]
            assert len(stream) == chunk.start, "a chunk does not begin where its slot ends"
            stream += chunk.tokens
            self.num_computed_tokens += len(chunk.tokens)
            if chunk.embed:
                samples.append(Sample(embedding=(1.0,)))
            else:
                samples.append(Sample(None if chunk.sampling is None else next_token(stream)))
        return samples

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        assert num_tokens <= len(self.streams[source])
        self.streams[target] = self.streams[source][:num_tokens]

    def trim(self, slot: int, num_tokens: int) -> None:
        assert num_tokens <= len(self.streams[slot]), "a slot is cut to more than it holds"
        del self.streams[slot][num_tokens:]

    def save(self, slot: int, num_tokens: int) -> bytes:
        assert num_tokens <= len(self.streams[slot])
        return array("I", self.streams[slot]).tobytes()

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        self.num_loads += 1
        self.streams[slot] = array("I", data).tolist()[:num_tokens] if len(data) % 4 == 0 else []
        if len(self.streams[slot]) < num_tokens:
            self.streams[slot] = []
            return False
        return True

    def num_computed(self, slot: int) -> int:
        return len(self.streams[slot])


class PagesBackend(StreamsBackend):
    """Reads nothing but the pages of a sequence's block table, which any slot can read."""

    def start(self) -> Capacity:
        capacity = msgspec.structs.replace(super().start(), pages_shared=True)
        self.page_size = capacity.page_size
        self.pages = [[0] * self.page_size for _ in range(capacity.num_pages)]
        return capacity

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        for chunk in batch:
            if not chunk.embed:
                self.streams[chunk.slot] = self.content(chunk.block_table)[: chunk.start]
        samples = super().run(batch)
        for chunk in batch:
            for index, token in enumerate(() if chunk.embed else chunk.tokens, chunk.start):
                self.pages[chunk.block_table[index // self.page_size]][index % self.page_size] = token
        return samples

    def trim(self, slot: int, num_tokens: int) -> None:
        """A sequence's tokens are in its pages."""
        del self.streams[slot][num_tokens:]
        self.streams[slot] += [0] * (num_tokens - len(self.streams[slot]))

    def content(self, pages: Sequence[int]) -> list[int]:
        return [token for page in pages for token in self.pages[page]]

    def read_pages(self, pages: Sequence[int]) -> bytes:
        return array("I", self.content(pages)).tobytes()

    def write_pages(self, pages: Sequence[int], data: bytes, first: int) -> bool:
        self.num_loads += 1
        tokens = array("I", data).tolist() if len(data) % 4 == 0 else []
        wanted = tokens[first * self.page_size : (first + len(pages)) * self.page_size]
        if len(wanted) < len(pages) * self.page_size:
            return False
        for index, page in enumerate(pages):
            self.pages[page] = wanted[index * self.page_size : (index + 1) * self.page_size]
        return True
