"""What a decoder-only model consists of: the numbers and switches that its weights are read and computed by."""

from __future__ import annotations

from typing import Literal

import msgspec

RopeKind = Literal["default", "linear", "llama3", "yarn"]


class Rope(msgspec.Struct, frozen=True, kw_only=True):
    """Rotary positions: the base, and how far they are stretched.

    `factor` and `original_length` belong to every kind but the default, the frequency factors to llama3, the betas and
    `attention_factor` to yarn. `divisors` divide each frequency, where a file brings them ready-made.
    """

    theta: float = 10_000.0
    kind: RopeKind = "default"
    factor: float = 1.0
    original_length: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    truncate: bool = True
    divisors: tuple[float, ...] = ()


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """One decoder: `num_layers` blocks of grouped-query attention and a gated feed-forward network.

    `windows` gives each layer's sliding window in tokens, the token itself included; None sees everything.
    """

    family: str
    vocab_size: int
    hidden_size: int
    feed_forward_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    trained_length: int
    norm_epsilon: float
    rope: Rope
    windows: tuple[int | None, ...]
    ties_embeddings: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    feed_forward_bias: bool = False
    normalizes_heads: bool = False

    @property
    def qkv_size(self) -> int:
        """Width of the fused projection: all query heads, then all key heads, then all value heads."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_size

    @property
    def num_parameters(self) -> int:
        """Weights of the matrices; norms and biases do not count."""
        attention = self.hidden_size * (self.qkv_size + self.num_heads * self.head_size)
        block = attention + 3 * self.hidden_size * self.feed_forward_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.ties_embeddings else 2)
        return self.num_layers * block + embeddings
