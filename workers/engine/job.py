"""What goes into an engine and what comes out of it."""

from __future__ import annotations

import msgspec

from inferflux.broker.subjects import ServiceClass
from inferflux.broker.wire.requests import Failure, FinishReason, TokenLogprob

from ..backends.backend import SamplingParams
from .offload import OffloadStats


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One choice of one request. Jobs submitted together share a prompt and are forked from it.

    `resumed` are token ids that an earlier attempt generated: they are computed like a prompt, replayed through
    stop strings and text decoding, and counted against `max_tokens`, but not reported again. `salt` separates
    prefix caches: jobs share pages only under an equal salt. `embed` asks for one embedding and no tokens. A job that
    has not begun by `start_by` (Unix time) ends with `queue_timeout`; one that goes on after an earlier attempt has.
    """

    request: str
    choice: int
    prompt: tuple[int, ...]
    max_tokens: int
    sampling: SamplingParams = SamplingParams()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    resumed: tuple[int, ...] = ()
    salt: str = ""
    service_class: ServiceClass = ServiceClass.DEFAULT
    embed: bool = False
    start_by: float | None = None

    def may_not_start(self, now_s: float) -> bool:
        """Whether it is too late to begin."""
        return self.start_by is not None and now_s > self.start_by and not self.resumed


class Update(msgspec.Struct, frozen=True, kw_only=True):
    """What one step gave one choice. Text may lag behind tokens while it could still become a stop string or an
    incomplete character; by the update that carries `finish_reason` all of it is out.

    `index` is the position of the first of `tokens` in the choice, resumed tokens counted. `error` ends the choice.
    """

    request: str
    choice: int
    index: int
    tokens: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[TokenLogprob, ...] | None = None
    finish_reason: FinishReason | None = None
    embedding: tuple[float, ...] | None = None
    num_cached: int = 0
    error: Failure | None = None


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of an engine; `num_steps` grows while it makes progress, `busy` says whether it should.

    Prefix queries and hits are tokens. While `batch_is_owed`, no batch sequence makes room for a higher class.
    """

    num_steps: int = 0
    busy: bool = False
    num_running: int = 0
    num_waiting: int = 0
    num_free_slots: int = 0
    num_pages: int = 0
    num_pages_used: int = 0
    num_pages_cached: int = 0
    num_preemptions: int = 0
    prefix_queries: int = 0
    prefix_hits: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    batch_is_owed: bool = False
    offload: OffloadStats = OffloadStats()
