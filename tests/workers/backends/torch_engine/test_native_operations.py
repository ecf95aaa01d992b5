"""Our kernels against plain torch, and what they promise beyond it: a token's result does not depend on its batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from harness.torch_model import CPU, VARIANTS, Forward, random_model
from msgspec.structs import replace

from inferflux.workers.backends.torch_engine.checkpoint import open_checkpoint
from inferflux.workers.backends.torch_engine.decoder import Decoder
from inferflux.workers.backends.torch_engine.native_build import load_kernels
from inferflux.workers.backends.torch_engine.native_decoder import NativeDecoder
from inferflux.workers.backends.torch_engine.native_operations import NativeOperations
from inferflux.workers.backends.torch_engine.operations import PlainOperations
from inferflux.workers.backends.torch_engine.packed_linear import PackedLinear

TOKENS = [(7 * position * position + 11) % 320 for position in range(100)]


@pytest.fixture(autouse=True)
def _own_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where oneDNN would be used."""
    monkeypatch.setattr("inferflux.workers.backends.torch_engine.native_operations.has_amx", lambda: False)


def native(dtype: torch.dtype, *, int8: bool = False) -> NativeOperations:
    library = load_kernels()
    assert library is not None, "these tests need a C++ compiler"
    return NativeOperations(library, 2, dtype, int8=int8)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_family_computes_what_plain_torch_does(variant: str, tmp_path: Path) -> None:
    random_model(variant, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    expected = Forward(checkpoint).logits(TOKENS)
    logits = Forward(checkpoint, native(torch.float32)).logits(TOKENS)
    torch.testing.assert_close(logits, expected, atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("variant", ["mistral, window", "qwen3", "llama, biased and tied", "llama, groups of 7"])
def test_one_call_computes_what_many_do(variant: str, dtype: torch.dtype, int8: bool, tmp_path: Path) -> None:
    random_model(variant, tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    apart = Forward(checkpoint, native(dtype, int8=int8), apart=True)
    together = Forward(checkpoint, native(dtype, int8=int8))
    assert type(apart.decoder) is Decoder
    assert type(together.decoder) is NativeDecoder
    assert torch.equal(together.logits(TOKENS), apart.logits(TOKENS))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_no_bit(dtype: torch.dtype, int8: bool, tmp_path: Path) -> None:
    random_model("mistral, window", tmp_path)
    forward = Forward(open_checkpoint(tmp_path), native(dtype, int8=int8))
    whole = forward.logits(TOKENS)
    for chunk in (1, 5, 33):
        assert torch.equal(forward.logits(TOKENS, chunk), whole)


def test_bfloat16_is_near(tmp_path: Path) -> None:
    random_model("qwen3", tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    expected = Forward(checkpoint, PlainOperations(CPU, torch.bfloat16)).logits(TOKENS)
    exact = Forward(checkpoint).logits(TOKENS)
    ours = Forward(checkpoint, native(torch.bfloat16)).logits(TOKENS)
    assert (ours - exact).abs().mean() < (expected - exact).abs().mean()


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 48, 40), (13, 64, 33), (200, 16, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_of_any_shape(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    weight, bias = torch.randn(outputs, inputs).to(dtype), torch.randn(outputs)
    values = torch.randn(rows, inputs)
    expected = torch.nn.functional.linear(values, weight.float(), bias)
    torch.testing.assert_close(native(dtype).linear(weight, bias)(values), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 64, 40), (13, 144, 33), (200, 16, 96)])
def test_products_in_eight_bits(rows: int, inputs: int, outputs: int) -> None:
    """Exactly those of what was rounded: groups of 32 inputs, 127 steps each way, for weights and for rows."""
    torch.manual_seed(rows)
    weight, bias, values = torch.randn(outputs, inputs), torch.randn(outputs), torch.randn(rows, inputs)
    values[0] = 0.0
    expected = torch.nn.functional.linear(rounded(values), rounded(weight), bias)
    result = native(torch.bfloat16, int8=True).linear(weight, bias)(values)
    torch.testing.assert_close(result, expected, atol=1e-3, rtol=1e-3)


def rounded(matrix: torch.Tensor) -> torch.Tensor:
    groups = [
        (group / scale).round() * scale
        for group in matrix.split(32, dim=1)
        for scale in [group.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127]
    ]
    return torch.cat(groups, dim=1)


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="oneDNN has no bfloat16 here")
@pytest.mark.parametrize("rows", [1, 32, 50])
def test_onednn_multiplies_packed_weights(rows: int) -> None:
    torch.manual_seed(rows)
    weight, bias, values = torch.randn(96, 64).to(torch.bfloat16), torch.randn(96), torch.randn(rows, 64)
    expected = torch.nn.functional.linear(values, weight.float(), bias)
    torch.testing.assert_close(PackedLinear(weight, bias)(values), expected, atol=0.3, rtol=0.03)


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({}, True), ({"head_size": 24}, False), ({"feed_forward_size": 100}, False), ({"hidden_size": 72}, False)],
)
def test_models_of_odd_sizes_are_left_to_plain_torch(changes: dict[str, int], fits: bool, tmp_path: Path) -> None:
    random_model("llama", tmp_path)
    architecture = replace(open_checkpoint(tmp_path).architecture, **changes)
    assert NativeOperations.fits(architecture, 16, torch.bfloat16) is fits
    assert not NativeOperations.fits(architecture, 8, torch.bfloat16)
