"""The seam between the engine and what computes: stub, llama.cpp or torch.

The engine thread alone calls a backend, except for `tokenizer`, which any thread may use. Pages and slots are owned
by the engine: it says which slot a sequence sits in and how far it is computed; a backend only computes, copies,
saves, loads and forgets. Logits never cross the seam.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, runtime_checkable

import msgspec


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to draw a token. `temperature` 0 is greedy. `seed` and the token's position determine the draw."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    num_logprobs: int | None = None


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """What a started backend can hold. `context_length` bounds one sequence, prompt and output together.

    `pages_shared` says that a page can be read from any slot; otherwise each slot has its KV to itself, and a cached
    prefix is copied from the slot that holds it.
    """

    num_pages: int
    page_size: int
    max_sequences: int
    max_batch_tokens: int
    context_length: int
    vocab_size: int
    embedding_size: int
    fingerprint: str
    pages_shared: bool = False
    hardware: Literal["cpu", "gpu"] = "cpu"
    model_bytes: int = 0
    kv_bytes: int = 0


class Chunk(msgspec.Struct, frozen=True, kw_only=True):
    """One sequence's share of a batch: compute `tokens` at positions `start`, `start + 1`, ...

    `sampling` is set when the chunk reaches the sequence's end, so a token is wanted; `history` then is every token
    before the drawn one (for penalties), `num_prompt_tokens` of which are the prompt. `embed` asks for the pooled
    embedding instead, of a prompt that is one chunk.
    """

    slot: int
    start: int
    tokens: Sequence[int]
    block_table: Sequence[int]
    sampling: SamplingParams | None = None
    history: Sequence[int] = ()
    num_prompt_tokens: int = 0
    embed: bool = False


class Logprob(msgspec.Struct, frozen=True):
    """Natural-log probability of a token under the model's unmodified distribution."""

    token: int
    logprob: float


class Sample(msgspec.Struct, frozen=True):
    """What one chunk gave: a token (with log probabilities when asked), or an embedding, or neither."""

    token: int | None = None
    logprob: Logprob | None = None
    top: tuple[Logprob, ...] = ()
    embedding: tuple[float, ...] | None = None


class Tokenizer(Protocol):
    """Thread-safe. Bytes, not text, come out of tokens: one character may span several."""

    @property
    def eos_ids(self) -> frozenset[int]:
        """Tokens that end a generation."""

    @property
    def chat_template(self) -> str | None:
        """The model's own Jinja2 template, where it has one."""

    @property
    def bos_token(self) -> str: ...

    @property
    def eos_token(self) -> str: ...

    def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Token ids. `special` parses special-token text such as `<|im_start|>`; `bos` adds the model's
        beginning-of-sequence token where the model wants one."""

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; empty for control tokens."""


class Backend(Protocol):
    """Start once, run many, close once. `progress` is the share of the model that `start` has loaded; `lost` says that
    nothing can be computed any more and the process has to end. Both from any thread."""

    name: str

    @property
    def progress(self) -> float: ...

    @property
    def lost(self) -> bool: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    def start(self) -> Capacity:
        """Load the model. Raises ConfigError with the reason when it cannot."""

    def run(self, batch: Sequence[Chunk]) -> list[Sample]:
        """Compute a batch; one sample for each chunk, in order."""

    def fork(self, source: int, target: int, num_tokens: int) -> None:
        """Make slot `target` hold the first `num_tokens` of slot `source`."""

    def trim(self, slot: int, num_tokens: int) -> None:
        """Forget what the slot holds beyond its first `num_tokens`; 0 empties it."""

    def save(self, slot: int, num_tokens: int) -> bytes:
        """The slot's first `num_tokens` as bytes that `load` of the same fingerprint takes back."""

    def load(self, slot: int, data: bytes, num_tokens: int) -> bool:
        """False when the bytes do not fit this model; the slot is then empty."""

    def num_computed(self, slot: int) -> int:
        """How many tokens the backend itself believes the slot holds; for integrity checks."""

    def close(self) -> None: ...


class Launched(Protocol):
    """A batch that is being computed."""

    def result(self) -> list[Sample]:
        """Wait for it: one sample for each chunk, in order. Raises what the device failed with."""


@runtime_checkable
class Launcher(Protocol):
    """What a backend offers besides, when a device of its own may compute while the host does something else."""

    @property
    def defers(self) -> bool:
        """Whether `launch` returns before the batch is computed; known once the backend has started."""

    def launch(self, batch: Sequence[Chunk]) -> Launched:
        """Queue a batch. Until `result` has returned or raised, nothing else is asked of the backend, and what the
        chunks refer to stays as it is."""


@runtime_checkable
class PageStore(Protocol):
    """What a backend with shared pages offers besides, when their content can be kept outside of it."""

    def read_pages(self, pages: Sequence[int]) -> bytes:
        """The content of full pages, as bytes that `write_pages` of the same fingerprint takes back."""

    def write_pages(self, pages: Sequence[int], data: bytes, first: int) -> bool:
        """Fill pages with those of `data` from number `first` on. False when the bytes do not fit this model."""
