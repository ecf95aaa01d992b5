"""Two ranks over gloo: the same text as one, and a worker that knows when one of them is gone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from harness.torch_model import random_model

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.leader import Leader, LeadingBackend
from inferflux.workers.backends.torch_engine.torch_backend import TorchBackend
from inferflux.workers.ranks import Ranks, read_ranks

GREEDY = SamplingParams(temperature=0.0)
PROMPT = list(range(40, 75))
SETTINGS = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=2, max_batch_tokens=64),
    torch=TorchSettings(device="cpu", dtype="float32", threads=1),
)


def chunk(slot: int, tokens: list[int], start: int) -> Chunk:
    table = range(slot * 16, slot * 16 + 16)
    return Chunk(
        slot=slot,
        start=start,
        tokens=tokens[start:],
        block_table=table,
        sampling=GREEDY,
        history=tokens,
        num_prompt_tokens=len(PROMPT),
    )


def generate(backend: TorchBackend | LeadingBackend, slot: int, count: int) -> list[int]:
    backend.trim(slot, 0)
    tokens, start = list(PROMPT), 0
    for _ in range(count):
        (sample,) = backend.run([chunk(slot, tokens, start)])
        assert sample.token is not None
        start = len(tokens)
        tokens.append(sample.token)
    return tokens[len(PROMPT) :]


@pytest.fixture
def leader() -> Iterator[Leader]:
    leader = Leader(Ranks(world_size=2))
    yield leader
    for child in psutil.Process().children():
        if "inferflux.workers.follow" in child.cmdline():
            child.kill()
            child.wait()


def test_two_ranks_say_what_one_says_until_one_is_killed(tmp_path: Path, leader: Leader) -> None:
    random_model("qwen2", tmp_path)
    alone = TorchBackend(str(tmp_path), SETTINGS)
    alone.start()
    expected = generate(alone, 0, 24)
    together = LeadingBackend(str(tmp_path), SETTINGS, leader)
    assert together.start().num_pages == alone.start().num_pages
    assert generate(together, 0, 24) == expected
    assert generate(together, 1, 24) == expected
    assert not together.lost

    killed = threading.Event()

    def compute() -> None:
        while not killed.is_set():
            generate(together, 0, 20)
        generate(together, 0, 1)

    waits = threading.Thread(target=compute, daemon=True)
    waits.start()
    (follower,) = (each for each in psutil.Process().children() if "inferflux.workers.follow" in each.cmdline())
    follower.kill()
    for thread in threading.enumerate():
        if thread.name == "rank-1":
            thread.join(60)
    assert together.lost
    killed.set()
    waits.join(1)
    assert waits.is_alive(), "what a lost group computed must not be taken for an answer"


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"INFERFLUX_DIST_WORLD_SIZE": "two"}, "'two' is not a whole number"),
        ({"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_BACKEND": "mpi"}, "'mpi' is not known"),
        ({"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_RANK": "2"}, "ranks count from 0"),
        ({"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_RANK": "1"}, "needs rank 0's address"),
        (
            {"INFERFLUX_DIST_WORLD_SIZE": "2", "INFERFLUX_DIST_RANK": "1", "INFERFLUX_DIST_BACKEND": "stub"},
            "rank 0 computes alone",
        ),
    ],
)
def test_variables_that_make_no_sense_are_named(environ: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_ranks(environ)


def test_one_rank_is_no_group() -> None:
    assert read_ranks({}) is None
    assert read_ranks({"INFERFLUX_DIST_WORLD_SIZE": "1"}) is None
    ranks = read_ranks({"INFERFLUX_DIST_WORLD_SIZE": "3"})
    assert ranks == Ranks(world_size=3)
    assert not ranks.follows


def test_more_ranks_than_heads_of_keys_are_refused(tmp_path: Path) -> None:
    from inferflux.workers.backends.torch_engine.checkpoint import open_checkpoint
    from inferflux.workers.backends.torch_engine.shard import Shard

    random_model("llama", tmp_path)
    with pytest.raises(ConfigError, match="3 ranks cannot share 2 key heads"):
        Shard(rank=0, world_size=3).local(open_checkpoint(tmp_path).architecture)


def test_shares_cover_everything_once() -> None:
    from inferflux.workers.backends.torch_engine.shard import Shard

    for size in (3, 9, 1536, 49152):
        parts = [Shard(rank=rank, world_size=2).span(size) for rank in range(2)]
        assert [index for part in parts for index in range(size)[part]] == list(range(size))
    assert os.environ.get("INFERFLUX_DIST_RANK") is None
