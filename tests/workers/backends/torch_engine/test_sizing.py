"""How many pages there are, and what a batch does that memory is too small for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from harness.torch_model import random_model

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine.drawn import Part
from inferflux.workers.backends.torch_engine.sizing import KVSize, size_kv
from inferflux.workers.backends.torch_engine.torch_backend import TorchBackend

MIB = 1 << 20


@pytest.mark.parametrize(
    ("pages", "wanted", "available", "expected"),
    [
        (0, 0, 1 << 40, KVSize(4 * 128, 8192)),
        (0, 512, 1 << 40, KVSize(4 * 32, 512)),
        (0, 0, 64 * MIB, KVSize(16, 256)),
        (10, 0, 64 * MIB, KVSize(10, 160)),
    ],
)
def test_pages_follow_from_what_is_set_and_what_is_free(
    pages: int, wanted: int, available: int, expected: KVSize
) -> None:
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=4),
        paged_kv=PagedKVSettings(cpu_pages=pages),
        torch=TorchSettings(context_length=wanted),
    )
    assert size_kv(settings, 16, 32768, MIB, available, has_own_memory=False) == expected


def test_a_context_that_does_not_fit_is_an_error() -> None:
    settings = RuntimeSettings(paged_kv=PagedKVSettings(cpu_pages=4), torch=TorchSettings(context_length=100))
    with pytest.raises(ConfigError, match="100 tokens do not fit into 4 pages of 16"):
        size_kv(settings, 16, 32768, MIB, MIB, has_own_memory=True)


def test_a_batch_that_memory_is_too_small_for_is_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model("llama", tmp_path)
    settings = RuntimeSettings(
        scheduler=SchedulerSettings(max_batch_size=4, max_batch_tokens=64), torch=TorchSettings(device="cpu")
    )
    backend = TorchBackend(str(tmp_path), settings)
    backend.start()
    chunks = [
        Chunk(
            slot=slot,
            start=0,
            tokens=[slot + 5, 7, 9],
            block_table=(slot,),
            sampling=SamplingParams(temperature=0.0) if slot != 2 else None,
            history=[slot + 5, 7, 9],
        )
        for slot in range(4)
    ]
    expected = backend.run(chunks)
    compute, sizes = backend._generate_at_once, []

    def too_much(batch: Sequence[Chunk], indices: Sequence[int]) -> list[Part]:
        sizes.append(len(indices))
        if len(indices) > 1:
            raise torch.OutOfMemoryError("no memory")
        return compute(batch, indices)

    monkeypatch.setattr(backend, "_generate_at_once", too_much)
    assert backend.run(chunks) == expected
    assert sizes == [4, 2, 1, 1, 2, 1, 1]
    backend.close()
