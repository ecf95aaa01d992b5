"""A sequence: the tokens of one choice, and how far they are computed."""

from __future__ import annotations

from inferflux.broker.subjects import ServiceClass

from .job import Job
from .pages import chain_hash

CLASS_RANKS = {service_class: rank for rank, service_class in enumerate(ServiceClass)}


class Sequence:
    """Prompt, resumed and generated tokens of one job. The scheduler closes the gap between `num_computed` and
    `len(tokens)`; a sequence without a slot waits.

    `page_hashes` name its full pages, those of the prompt from the start and later ones as they fill up; the first
    `num_sealed` of them are known to the pool. While `is_restoring`, a saved prefix of it is being read, and it is not
    placed; `was_sought` says that the disk was asked since it last began to wait.
    """

    __slots__ = (
        "block_table",
        "is_restoring",
        "job",
        "num_cached",
        "num_computed",
        "num_sealed",
        "page_hashes",
        "rank",
        "slot",
        "tokens",
        "was_admitted",
        "was_sought",
    )

    def __init__(self, job: Job, arrival: int) -> None:
        self.job = job
        self.rank = (CLASS_RANKS[job.service_class], arrival)
        self.tokens = [*job.prompt, *job.resumed]
        self.num_computed = 0
        self.num_cached = 0
        self.num_sealed = 0
        self.page_hashes: list[bytes] = []
        self.block_table: list[int] = []
        self.slot: int | None = None
        self.was_admitted = False
        self.was_sought = False
        self.is_restoring = False

    @property
    def num_remaining(self) -> int:
        """Tokens to compute until the next one can be drawn."""
        return len(self.tokens) - self.num_computed

    def extend_hashes(self, root: bytes, page_size: int) -> None:
        """Name every full page of the tokens so far."""
        hashes, tokens = self.page_hashes, self.tokens
        for index in range(len(hashes), len(tokens) // page_size):
            parent = hashes[-1] if hashes else root
            hashes.append(chain_hash(parent, tokens[index * page_size : (index + 1) * page_size]))

    def usable_hashes(self, page_size: int) -> list[bytes]:
        """The pages that it may start from once they are named: at least one token is left to compute."""
        return self.page_hashes[: (len(self.tokens) - 1) // page_size]
