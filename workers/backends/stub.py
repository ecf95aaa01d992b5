"""The stub backend: no model, text that says so, and latencies of one's choice. For development and load tests."""

from __future__ import annotations

import math
import random
import re
import time
import zlib
from array import array
from collections.abc import Sequence

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import RuntimeSettings

from .backend import Capacity, Chunk, Logprob, Sample

MARKER = "[stub] "
WORDS = tuple(
    """
    and around beneath bright calm cold day deep far field first free garden gentle green harbour high hill house
    island kind lamp light long low morning narrow near new night north of old open over paper path plain quiet rain
    river road salt sea season silver slow small soft song south spring stone summer table the thread tide to tree
    turn under valley warm water white wide wind winter with wood year yellow
    """.split()  # noqa: SIM905 - a list of eighty quoted words reads worse
)
EOS, TURN, FIRST_WORD = 256, 257, 258
VOCAB_SIZE = FIRST_WORD + 1 + len(WORDS)
EMBEDDING_SIZE = 64
MIN_ANSWER, ANSWER_SPREAD = 64, 64
_SPECIAL = re.compile(r"(<\|im_start\|>|<\|im_end\|>)")


class StubTokenizer:
    """One token a byte on the way in; the marker and one token a word on the way out."""

    eos_ids = frozenset((EOS,))
    chat_template = None
    bos_token = "<|im_start|>"  # noqa: S105
    eos_token = "<|im_end|>"  # noqa: S105

    def __init__(self) -> None:
        words = (MARKER, *(f"{word} " for word in WORDS))
        self._pieces = [bytes((byte,)) for byte in range(256)] + [b"", b""] + [word.encode() for word in words]

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        if not special or "<|" not in text:
            return list(text.encode())
        tokens: list[int] = []
        for part in _SPECIAL.split(text):
            if part == self.eos_token:
                tokens.append(EOS)
            elif part == self.bos_token:
                tokens.append(TURN)
            else:
                tokens += part.encode()
        return tokens

    def piece(self, token: int) -> bytes:
        return self._pieces[token]


class StubBackend:
    """Token `k` of an answer is a function of the prompt's tokens and `k`: the marker, then words, then the end.

    It computes nothing and holds nothing but counts, so any slot can read any page.
    """

    name = "stub"
    progress = 0.0
    lost = False

    def __init__(self, settings: RuntimeSettings) -> None:
        self._settings = settings
        self._tokenizer = StubTokenizer()
        self._num_computed = [0] * settings.scheduler.max_batch_size
        self._prompt_digests: list[int | None] = [None] * settings.scheduler.max_batch_size

    @property
    def tokenizer(self) -> StubTokenizer:
        return self._tokenizer

    def start(self) -> Capacity:
        scheduler, paged_kv, stub = self._settings.scheduler, self._settings.paged_kv, self._settings.stub
        num_pages = paged_kv.cpu_pages or scheduler.max_batch_size * -(-stub.context_length // paged_kv.page_size)
        if scheduler.max_batch_tokens < scheduler.max_batch_size:
            raise ConfigError(
                "runtime.scheduler.max_batch_tokens must be at least max_batch_size: every sequence of a batch "
                "computes a token in each step"
            )
        return Capacity(
            num_pages=num_pages,
            page_size=paged_kv.page_size,
            max_sequences=scheduler.max_batch_size,
            max_batch_tokens=scheduler.max_batch_tokens,
            context_length=stub.context_length,
            vocab_size=VOCAB_SIZE,
            embedding_size=EMBEDDING_SIZE,
            fingerprint="stub",
            pages_shared=True,
        )

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        num_prefill = 0
        samples = []
        for chunk in batch:
            num_tokens = len(chunk.tokens)
            if num_tokens > 1:
                num_prefill += num_tokens
            self._num_computed[chunk.slot] = chunk.start + num_tokens
            samples.append(self._sample(chunk))
        delay_s = self._settings.stub.step_s + num_prefill * self._settings.stub.prefill_token_s
        if delay_s:
            time.sleep(delay_s)
        return samples

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        assert num_tokens <= self._num_computed[source]
        self.trim(target, 0)
        self._num_computed[target] = num_tokens

    def trim(self, slot: int, num_tokens: int) -> None:
        # More than the slot computed itself is no error: the pages of a cached prefix can be read from any slot.
        self._num_computed[slot] = num_tokens
        self._prompt_digests[slot] = None

    def save(self, slot: int, num_tokens: int) -> bytes:
        return b"stub%d" % num_tokens

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        fits = data == b"stub%d" % num_tokens
        self.trim(slot, num_tokens if fits else 0)
        return fits

    def num_computed(self, slot: int) -> int:
        return self._num_computed[slot]

    def close(self) -> None:
        """Nothing to unload."""

    def _sample(self, chunk: Chunk) -> Sample:
        if chunk.embed:
            return Sample(embedding=_embed(chunk.tokens))
        if chunk.sampling is None:
            return Sample()
        digest = self._prompt_digests[chunk.slot]
        if digest is None:
            digest = _digest(chunk.history[: chunk.num_prompt_tokens])
            self._prompt_digests[chunk.slot] = digest
        token = _token(digest, len(chunk.history) - chunk.num_prompt_tokens)
        if chunk.sampling.num_logprobs is None:
            return Sample(token)
        return Sample(token, *_logprobs(token, chunk.sampling.num_logprobs))


def _digest(tokens: Sequence[int]) -> int:
    return zlib.crc32(array("I", tokens).tobytes())


def _token(digest: int, index: int) -> int:
    if index == 0:
        return FIRST_WORD
    if index == MIN_ANSWER + digest % ANSWER_SPREAD:
        return EOS
    return FIRST_WORD + 1 + (digest + index * 2654435761 >> 7) % len(WORDS)


def _logprobs(token: int, count: int) -> tuple[Logprob, tuple[Logprob, ...]]:
    """All probability is on the token that is drawn; the alternatives share what rounding leaves."""
    others = [Logprob((token + offset) % VOCAB_SIZE, -20.0 - offset) for offset in range(1, count)]
    chosen = Logprob(token, 0.0)
    return chosen, (chosen, *others) if count else ()


def _embed(tokens: Sequence[int]) -> tuple[float, ...]:
    draw = random.Random(_digest(tokens))  # noqa: S311 - reproducible, not secret
    vector = [draw.gauss(0.0, 1.0) for _ in range(EMBEDDING_SIZE)]
    norm = math.sqrt(sum(value * value for value in vector))
    return tuple(value / norm for value in vector)
