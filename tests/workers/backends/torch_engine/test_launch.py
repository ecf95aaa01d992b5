"""A batch is launched without a look at what the device computes, on devices that a CPU plays: one that has no data at
all, and one whose copies come late."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from harness.engine import Recorder
from harness.torch_model import random_model
from torch import Tensor

from inferflux.config.settings import PagedKVSettings, RuntimeSettings, SchedulerSettings, TorchSettings
from inferflux.workers.backends.backend import Chunk, SamplingParams
from inferflux.workers.backends.torch_engine import drawn, sampler, torch_backend
from inferflux.workers.backends.torch_engine.operations import Layer, Pages, PlainOperations
from inferflux.workers.backends.torch_engine.step import Step
from inferflux.workers.backends.torch_engine.torch_backend import TorchBackend
from inferflux.workers.engine.engine import Engine
from inferflux.workers.engine.job import Job

META = torch.device("meta")
SETTINGS = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=8, max_batch_tokens=64),
    paged_kv=PagedKVSettings(page_size=16, cpu_pages=64),
    torch=TorchSettings(device="cpu", dtype="float32", threads=1),
)
DRAWS = (
    None,
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.8, seed=3),
    SamplingParams(temperature=0.8, top_k=5, seed=4),
    SamplingParams(temperature=0.8, top_p=0.9, min_p=0.01, seed=5, num_logprobs=2),
    SamplingParams(temperature=0.0, repetition_penalty=1.3, logit_bias=((7, 2.0),), num_logprobs=0),
    SamplingParams(temperature=0.7, presence_penalty=0.5, frequency_penalty=0.2, seed=6),
)


class Shapes(PlainOperations):
    """Attention that gives the right shape, as a kernel does on a device without data."""

    def see(self, queries: Tensor, step: Step, pages: Pages, layer: Layer) -> Tensor:
        return torch.empty_like(queries).flatten(1)


class LateDevice:
    """Copies to the host when a fence is waited for, and not before."""

    def __init__(self) -> None:
        self.num_waits = 0
        self._copies: list[tuple[Tensor, Tensor]] = []

    def download(self, tensor: Tensor) -> Tensor:
        host = torch.full_like(tensor, -1)
        self._copies.append((host, tensor))
        return host

    def fence(self, device: torch.device) -> LateDevice:
        return self

    @torch.inference_mode()
    def wait(self) -> None:
        self.num_waits += 1
        for host, tensor in self._copies:
            host.copy_(tensor)
        self._copies.clear()


def batch() -> list[Chunk]:
    """Every way to draw, a prompt that wants no token yet, and an embedding."""
    chunks = []
    for slot, sampling in enumerate(DRAWS):
        tokens = [(7 * slot + 5 * position) % 300 for position in range(3 + slot)]
        chunks.append(
            Chunk(
                slot=slot,
                start=0,
                tokens=tokens,
                block_table=(slot,),
                sampling=sampling,
                history=tokens,
                num_prompt_tokens=2,
            )
        )
    return [*chunks, Chunk(slot=len(DRAWS), start=0, tokens=[1, 2, 3], block_table=(), embed=True)]


def test_a_launch_looks_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def choose(device: torch.device, dtype: torch.dtype, *arguments: object) -> tuple[PlainOperations, int]:
        return Shapes(device, dtype), 16

    random_model("qwen3", tmp_path)
    monkeypatch.setattr(torch_backend, "choose_device", lambda settings: META)
    monkeypatch.setattr(torch_backend, "choose_operations", choose)
    for module in (sampler, torch_backend):
        monkeypatch.setattr(module, "download", lambda tensor: tensor)
    blind = TorchBackend(str(tmp_path), SETTINGS)
    blind.start()
    for _ in range(2):
        launched = blind.launch(batch())
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        launched.result()
    blind.close()


@pytest.fixture
def late() -> LateDevice:
    return LateDevice()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    random_model("llama", tmp_path)
    return tmp_path


def defer(monkeypatch: pytest.MonkeyPatch, late: LateDevice) -> None:
    """From now on copies come late."""
    monkeypatch.setattr(drawn, "Fence", late.fence)
    for module in (sampler, torch_backend):
        monkeypatch.setattr(module, "download", late.download)
    monkeypatch.setattr(TorchBackend, "defers", True)


def test_a_result_is_read_behind_one_fence(model: Path, late: LateDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = TorchBackend(str(model), SETTINGS)
    backend.start()
    assert not backend.defers, "on a CPU a batch is computed before its launch returns"
    expected = backend.run(batch())
    defer(monkeypatch, late)
    launched = backend.launch(batch())
    assert late.num_waits == 0
    assert launched.result() == expected
    assert late.num_waits == 1
    backend.close()


def test_a_batch_that_was_split_is_waited_for_once(
    model: Path, late: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = TorchBackend(str(model), SETTINGS)
    backend.start()
    expected = backend.run(batch())
    compute = backend._generate_at_once

    def too_much(chunks: Sequence[Chunk], indices: Sequence[int]) -> list[drawn.Part]:
        if len(indices) > 2:
            raise torch.OutOfMemoryError("no memory")
        return compute(chunks, indices)

    monkeypatch.setattr(backend, "_generate_at_once", too_much)
    defer(monkeypatch, late)
    samples = backend.run(batch())
    assert [sample.token for sample in samples] == [sample.token for sample in expected]
    assert late.num_waits == 1
    backend.close()


def answers(model: Path) -> tuple[list[list[int]], int]:
    """An engine's answers to more prompts than run at once, drawn in every way, and how many steps it took."""
    recorder = Recorder()
    engine = Engine(TorchBackend(str(model), SETTINGS), SETTINGS.scheduler, SETTINGS.paged_kv, recorder)
    engine.start()
    try:
        jobs = [
            Job(
                request=f"r{number}",
                choice=0,
                prompt=tuple((3 * position + number * (position > 20)) % 300 for position in range(30)),
                max_tokens=12,
                sampling=DRAWS[1 + number % (len(DRAWS) - 1)] or SamplingParams(),
                ignore_eos=True,
            )
            for number in range(12)
        ]
        engine.submit(jobs)
        tokens = [recorder.wait(job.request).tokens for job in jobs]
        engine.check_integrity()
        return tokens, engine.stats().num_steps
    finally:
        engine.close()


def test_an_engine_waits_once_a_step_and_says_the_same(
    model: Path, late: LateDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = answers(model)
    defer(monkeypatch, late)
    tokens, num_steps = answers(model)
    assert tokens == expected
    assert late.num_waits == num_steps > 12
