"""How many prompt tokens a step may take along while others wait for their next token. Pure: no clock, no backend."""

from __future__ import annotations

from .breakeven import Rate

SHORT_TOKENS = 128
STRETCH = 1.8
MIN_TOKENS = 16


class Pace:
    """Steps and prompt tokens are expected to take what they took lately.

    Each prompt that waits may stretch a step by `STRETCH` times what its decodes take alone: one long prompt hardly
    slows the streams beside it, many prompts get their turn soon. On a CPU the tokens of such chunks cost little more
    than those of large ones, because a pass over the weights pays off from a few dozen tokens on. A prompt of up to
    `SHORT_TOKENS` is not divided: it would make the streams wait once, and is over.
    """

    def __init__(self) -> None:
        self._decodes: dict[int, Rate] = {}
        self._prefill = Rate()

    def observe(self, num_decodes: int, num_prompt_tokens: int, took_s: float) -> None:
        """A step with so many decodes and prompt tokens took `took_s` seconds."""
        if num_prompt_tokens == 0:
            self._decodes.setdefault(num_decodes.bit_length(), Rate()).observe(1, took_s)
        elif num_prompt_tokens >= MIN_TOKENS:
            self._prefill.observe(num_prompt_tokens, took_s - (self._decode_s(num_decodes) or 0.0))

    def room(self, num_decodes: int, num_prompts: int) -> int | None:
        """Prompt tokens for a step with so many decodes when so many prompts are not computed yet; None: as many as
        there are."""
        decode_s, tokens_per_s = self._decode_s(num_decodes), self._prefill.per_s
        if decode_s is None or tokens_per_s is None:
            return None
        return max(MIN_TOKENS, int(STRETCH * num_prompts * decode_s * tokens_per_s))

    def _decode_s(self, num_decodes: int) -> float | None:
        """Seconds of a step of about so many decodes, or of the nearest number that was seen."""
        if not num_decodes or not self._decodes:
            return None
        nearest = min(self._decodes, key=lambda bits: abs(bits - num_decodes.bit_length()))
        steps_per_s = self._decodes[nearest].per_s
        return None if steps_per_s is None else 1 / steps_per_s
