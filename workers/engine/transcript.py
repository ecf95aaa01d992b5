"""A transcript: what one choice has said so far, and whether that ends it."""

from __future__ import annotations

from inferflux.broker.wire.requests import FinishReason, TokenLogprob

from ..backends.backend import Logprob, Sample, Tokenizer
from .decoder import TextDecoder
from .job import Job, Update


class Transcript:
    """Turns drawn tokens into updates. `max_length` bounds prompt and output together.

    Resumed tokens are replayed without being reported. What was held back after them then was held back in the
    first attempt too, so it leaves with the tokens that come.
    """

    __slots__ = (
        "_decoder",
        "_eos_ids",
        "_job",
        "_max_tokens",
        "_tokenizer",
        "finish_reason",
        "num_cached",
        "num_tokens",
    )

    def __init__(self, job: Job, tokenizer: Tokenizer, max_length: int) -> None:
        self._job = job
        self._tokenizer = tokenizer
        self._eos_ids = frozenset() if job.ignore_eos else tokenizer.eos_ids
        self._max_tokens = min(job.max_tokens, max_length - len(job.prompt))
        self._decoder = TextDecoder(job.stop)
        self.num_tokens = 0
        self.finish_reason: FinishReason | None = None if self._max_tokens > 0 or job.embed else "length"
        for token in job.resumed:
            self._advance(token)

    def push(self, sample: Sample, num_cached: int) -> Update:
        """Report what one step drew for this choice, whose prompt began with `num_cached` tokens from the cache."""
        job = self._job
        if sample.embedding is not None:
            self.finish_reason = "stop"
            return Update(
                request=job.request,
                choice=job.choice,
                index=0,
                embedding=sample.embedding,
                finish_reason="stop",
                num_cached=num_cached,
            )
        assert sample.token is not None
        index = self.num_tokens
        text = self._advance(sample.token)
        return Update(
            request=job.request,
            choice=job.choice,
            index=index,
            tokens=(sample.token,),
            text=text,
            logprobs=None if sample.logprob is None else (self._describe(sample.logprob, sample.top),),
            finish_reason=self.finish_reason,
            num_cached=num_cached,
        )

    def conclude(self) -> Update:
        """Report the end of a choice that had ended before this attempt drew anything."""
        return Update(
            request=self._job.request,
            choice=self._job.choice,
            index=self.num_tokens,
            finish_reason=self.finish_reason,
        )

    def _advance(self, token: int) -> str:
        self.num_tokens += 1
        if token in self._eos_ids:
            self.finish_reason = "stop"
            return self._decoder.finish()
        text = self._decoder.push(self._tokenizer.piece(token))
        if self._decoder.stopped:
            self.finish_reason = "stop"
        elif self.num_tokens >= self._max_tokens:
            self.finish_reason = "length"
            text += self._decoder.finish()
        return text

    def _describe(self, logprob: Logprob, top: tuple[Logprob, ...]) -> TokenLogprob:
        piece = self._tokenizer.piece(logprob.token)
        return TokenLogprob(
            token=piece.decode(errors="replace"),
            logprob=logprob.logprob,
            bytes=tuple(piece),
            top=tuple(self._describe(alternative, ()) for alternative in top),
        )
