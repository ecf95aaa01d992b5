"""What the engine may expect of any backend: one suite over the stub, llama.cpp and torch."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
from harness.model import model_path

from inferflux.config.settings import LlamaCppSettings, RuntimeSettings, SchedulerSettings, StubSettings, TorchSettings
from inferflux.workers.backends.backend import Backend, Capacity, Chunk, Sample, SamplingParams
from inferflux.workers.backends.opening import open_backend

GREEDY = SamplingParams(temperature=0.0)
SETTINGS = RuntimeSettings(
    scheduler=SchedulerSettings(max_batch_size=4, max_batch_tokens=128),
    llamacpp=LlamaCppSettings(context_length=512),
    torch=TorchSettings(context_length=512, dtype="float32"),
    stub=StubSettings(step_s=0.0, context_length=512),
)
TEXT = "The harbour lay quiet under the morning light, and the first boats"


class Device:
    """A started backend, with pages dealt out by slot."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.capacity: Capacity = backend.start()

    def chunk(
        self,
        slot: int,
        tokens: list[int],
        start: int = 0,
        sampling: SamplingParams | None = GREEDY,
        num_prompt: int = 0,
    ) -> Chunk:
        pages = self.capacity.num_pages // self.capacity.max_sequences
        return Chunk(
            slot=slot,
            start=start,
            tokens=tokens[start:],
            block_table=range(slot * pages, (slot + 1) * pages),
            sampling=sampling,
            history=tokens,
            num_prompt_tokens=num_prompt or len(tokens),
        )

    def run(self, *chunks: Chunk) -> list[Sample]:
        return self.backend.run(chunks)

    def generate(self, slot: int, prompt: list[int], count: int, sampling: SamplingParams = GREEDY) -> list[int]:
        """Tokens after a prompt, the slot holding nothing to begin with."""
        self.backend.trim(slot, 0)
        tokens, start = list(prompt), 0
        for _ in range(count):
            (sample,) = self.run(self.chunk(slot, tokens, start, sampling, len(prompt)))
            assert sample.token is not None
            start = len(tokens)
            tokens.append(sample.token)
        return tokens[len(prompt) :]


REAL = [pytest.param(kind, marks=pytest.mark.model) for kind in ("llamacpp", "torch")]


@pytest.fixture(scope="module", params=["stub", *REAL])
def device(request: pytest.FixtureRequest) -> Iterator[Device]:
    path = None if request.param == "stub" else model_path()
    backend = open_backend(request.param, path, SETTINGS)
    yield Device(backend)
    backend.close()


@pytest.fixture(scope="module")
def prompt(device: Device) -> list[int]:
    return device.backend.tokenizer.encode(TEXT, special=False, bos=True)


def test_the_capacity_is_consistent(device: Device) -> None:
    limits = device.capacity
    assert limits.max_sequences == 4
    assert limits.context_length == 512
    assert limits.num_pages * limits.page_size >= limits.context_length
    assert limits.max_batch_tokens >= limits.max_sequences
    assert limits.fingerprint


def test_text_survives_the_tokenizer(device: Device) -> None:
    tokenizer = device.backend.tokenizer
    for text in (TEXT, "", "naïve 😀 \x00\n\t日本語", "<|im_end|>"):
        tokens = tokenizer.encode(text, special=False, bos=False)
        assert b"".join(map(tokenizer.piece, tokens)).decode() == text
        assert all(0 <= token < device.capacity.vocab_size for token in tokens)


def test_special_tokens_are_read_only_when_asked_and_say_nothing(device: Device) -> None:
    tokenizer = device.backend.tokenizer
    (eos,) = tokenizer.encode(tokenizer.eos_token, special=True, bos=False)
    assert eos in tokenizer.eos_ids
    assert tokenizer.piece(eos) == b""
    assert eos not in tokenizer.encode(tokenizer.eos_token, special=False, bos=False)


def test_only_a_chunk_that_asks_gets_a_token(device: Device, prompt: list[int]) -> None:
    device.backend.trim(0, 0)
    (nothing,) = device.run(device.chunk(0, prompt[:6], sampling=None))
    assert nothing == Sample()
    (sample,) = device.run(device.chunk(0, prompt, start=6))
    assert sample.token is not None
    assert device.backend.num_computed(0) == len(prompt)


def test_a_prompt_in_chunks_gives_what_it_gives_at_once(device: Device, prompt: list[int]) -> None:
    expected = device.generate(0, prompt, 1)
    device.backend.trim(1, 0)
    device.run(device.chunk(1, prompt[:3], sampling=None))
    device.run(device.chunk(1, prompt[:9], start=3, sampling=None))
    (sample,) = device.run(device.chunk(1, prompt, start=9))
    assert [sample.token] == expected


def test_samples_come_in_the_order_of_the_chunks(device: Device, prompt: list[int]) -> None:
    lengths = {3: 5, 0: 9, 2: 3}
    alone = {slot: device.generate(slot, prompt[:length], 1)[0] for slot, length in lengths.items()}
    for slot in lengths:
        device.backend.trim(slot, 0)
    samples = device.run(*(device.chunk(slot, prompt[:length]) for slot, length in lengths.items()))
    assert [sample.token for sample in samples] == list(alone.values())


def test_slots_between_those_that_decode_keep_what_they_hold(device: Device, prompt: list[int]) -> None:
    expected = device.generate(1, prompt, 2)
    for slot in (0, 3):
        device.generate(slot, prompt, 1)
    device.backend.trim(1, len(prompt))
    device.backend.trim(2, 0)
    device.run(*(device.chunk(slot, [*prompt, expected[0]], len(prompt)) for slot in (0, 3)))
    assert device.backend.num_computed(1) == len(prompt)
    assert device.backend.num_computed(2) == 0
    (sample,) = device.run(device.chunk(1, [*prompt, expected[0]], len(prompt), GREEDY, len(prompt)))
    assert sample.token == expected[1]


def test_a_fork_goes_on_like_its_source_and_leaves_it_alone(device: Device, prompt: list[int]) -> None:
    expected = device.generate(0, prompt, 6)
    device.backend.fork(0, 2, len(prompt) - 1)
    assert device.backend.num_computed(2) == len(prompt) - 1
    assert device.backend.num_computed(0) == len(prompt) + 5
    (sample,) = device.run(device.chunk(2, prompt, start=len(prompt) - 1))
    assert [sample.token] == expected[:1]
    (sample,) = device.run(device.chunk(0, [*prompt, *expected[:6]], len(prompt) + 5, GREEDY, len(prompt)))
    assert sample.token is not None


def test_a_slot_can_be_cut_back_and_go_on(device: Device, prompt: list[int]) -> None:
    expected = device.generate(0, prompt, 4)
    device.backend.trim(0, len(prompt) - 2)
    assert device.backend.num_computed(0) == len(prompt) - 2
    (sample,) = device.run(device.chunk(0, prompt, start=len(prompt) - 2))
    assert [sample.token] == expected[:1]
    device.backend.trim(0, 0)
    assert device.backend.num_computed(0) == 0


def test_what_is_saved_can_be_loaded_elsewhere(device: Device, prompt: list[int]) -> None:
    expected = device.generate(0, prompt, 2)
    data = device.backend.save(0, len(prompt) - 1)
    assert device.backend.load(3, data, len(prompt) - 1)
    assert device.backend.num_computed(3) == len(prompt) - 1
    (sample,) = device.run(device.chunk(3, prompt, start=len(prompt) - 1))
    assert [sample.token] == expected[:1]


@pytest.mark.parametrize("data", [b"", b"no such thing", b"\x00" * 4096])
def test_bytes_that_do_not_fit_leave_the_slot_empty(device: Device, prompt: list[int], data: bytes) -> None:
    device.generate(0, prompt, 1)
    assert not device.backend.load(0, data, 4)
    assert device.backend.num_computed(0) == 0
    assert device.generate(0, prompt, 1)


def test_a_seed_and_a_position_fix_the_draw(device: Device, prompt: list[int]) -> None:
    params = SamplingParams(temperature=1.0, seed=11)
    first = device.generate(0, prompt, 12, params)
    assert device.generate(1, prompt, 12, params) == first
    resumed = [*prompt, *first[:5]]
    device.backend.trim(2, 0)
    (sample,) = device.run(device.chunk(2, resumed, 0, params, len(prompt)))
    assert sample.token == first[5]


def test_logprobs_are_probabilities(device: Device, prompt: list[int]) -> None:
    device.backend.trim(0, 0)
    params = SamplingParams(temperature=0.0, num_logprobs=5)
    (sample,) = device.run(device.chunk(0, prompt, sampling=params))
    assert sample.logprob is not None
    assert sample.logprob.token == sample.token == sample.top[0].token
    values = [entry.logprob for entry in sample.top]
    assert len(values) == 5
    assert values == sorted(values, reverse=True)
    assert sum(map(math.exp, values)) <= 1.0 + 1e-6


def test_embeddings_are_unit_vectors_of_what_they_embed(device: Device, prompt: list[int]) -> None:
    chunks = [
        Chunk(slot=slot, start=0, tokens=tokens, block_table=(), embed=True)
        for slot, tokens in ((0, prompt), (1, prompt[::-1]), (2, prompt))
    ]
    for chunk in chunks:
        device.backend.trim(chunk.slot, 0)
    vectors = [sample.embedding for sample in device.run(*chunks)]
    for vector in vectors:
        assert vector is not None
        assert len(vector) == device.capacity.embedding_size
        assert math.hypot(*vector) == pytest.approx(1.0)
    assert vectors[0] == pytest.approx(vectors[2], abs=1e-5)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-3)


def test_generating_goes_on_beside_embeddings(device: Device, prompt: list[int]) -> None:
    expected = device.generate(0, prompt, 2)
    device.backend.trim(0, 0)
    device.backend.trim(1, 0)
    first, embedded = device.run(
        device.chunk(0, prompt), Chunk(slot=1, start=0, tokens=prompt[:7], block_table=(), embed=True)
    )
    assert first.token == expected[0]
    assert embedded.embedding is not None
    (second,) = device.run(device.chunk(0, [*prompt, expected[0]], len(prompt), GREEDY, len(prompt)))
    assert second.token == expected[1]
