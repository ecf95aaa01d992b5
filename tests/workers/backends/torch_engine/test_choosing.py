"""What computes on which device: every probe that fails leaves something that is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.attention.varlen
from harness.torch_model import CPU
from msgspec.structs import replace

from inferflux.broker.errors import ConfigError
from inferflux.config.settings import TorchSettings
from inferflux.workers.backends.torch_engine import choosing, device
from inferflux.workers.backends.torch_engine.architecture import Architecture, Rope
from inferflux.workers.backends.torch_engine.cuda_operations import CudaOperations, choose_cuda_operations
from inferflux.workers.backends.torch_engine.native_operations import NativeOperations
from inferflux.workers.backends.torch_engine.operations import PlainOperations, visible

MODEL = Architecture(
    family="llama",
    vocab_size=320,
    hidden_size=64,
    feed_forward_size=96,
    num_layers=1,
    num_heads=6,
    num_kv_heads=2,
    head_size=16,
    trained_length=4096,
    norm_epsilon=1e-5,
    rope=Rope(),
    windows=(None,),
)
Kernel = Callable[..., torch.Tensor]


def paged(refuse: Callable[[int, object], str | None] = lambda page_size, starts: None, shift: float = 0.0) -> Kernel:
    """A kernel with varlen_attn's signature; `refuse` tells of a page size and where keys begin what is wrong."""

    def varlen_attn(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cu_seq_q: torch.Tensor,
        cu_seq_k: torch.Tensor | None,
        max_q: int,
        max_k: int,
        *,
        window_size: tuple[int, int],
        enable_gqa: bool,
        seqused_k: torch.Tensor,
        block_table: torch.Tensor,
    ) -> torch.Tensor:
        problem = refuse(key.shape[1], cu_seq_k)
        if problem is not None:
            raise RuntimeError(problem)
        out = torch.empty_like(query)
        for index, length in enumerate(seqused_k.tolist()):
            begin, end = cu_seq_q[index : index + 2].tolist()
            keys, values = (pool[block_table[index]].flatten(0, 1)[:length] for pool in (key, value))
            window = None if window_size[0] < 0 else window_size[0] + 1
            mask = visible(torch.arange(length - end + begin, length), length, window)
            out[begin:end] = torch.nn.functional.scaled_dot_product_attention(
                query[begin:end].transpose(0, 1),
                keys.transpose(0, 1),
                values.transpose(0, 1),
                attn_mask=mask,
                enable_gqa=enable_gqa,
            ).transpose(0, 1)
        return out + shift

    return varlen_attn


def choose(monkeypatch: pytest.MonkeyPatch, kernel: Kernel) -> tuple[PlainOperations, int]:
    monkeypatch.setattr(torch.nn.attention.varlen, "varlen_attn", kernel)
    return choose_cuda_operations(CPU, torch.float32, MODEL, 16)


def test_a_kernel_that_takes_any_page_gets_those_that_were_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    operations, page_size = choose(monkeypatch, paged())
    assert (type(operations), page_size) == (CudaOperations, 16)


def test_a_kernel_that_wants_large_pages_gets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one inside torch 2.13 does, and reads where keys begin."""
    kernel = paged(lambda size, starts: "page size" if size % 256 else "no tensor" if starts is None else None)
    operations, page_size = choose(monkeypatch, kernel)
    assert (type(operations), page_size) == (CudaOperations, 256)


@pytest.mark.parametrize(
    "kernel",
    [
        paged(lambda size, starts: "an older GPU"),
        paged(shift=0.1),
        paged(shift=float("nan")),
        lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query,
    ],
    ids=["refuses", "wrong", "not a number", "no pages"],
)
def test_a_kernel_that_does_not_work_is_not_used(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    operations, page_size = choose(monkeypatch, kernel)
    assert (type(operations), page_size) == (PlainOperations, 16)


@pytest.mark.parametrize(
    ("there", "chosen", "dtype"),
    [
        ({"cuda", "mps", "cpu"}, "cuda", torch.bfloat16),
        ({"mps", "cpu"}, "mps", torch.float32),
        ({"cpu"}, "cpu", torch.bfloat16),
    ],
)
def test_the_best_device_that_is_there(
    there: set[str], chosen: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "PROBES", {kind: (lambda kind=kind: kind in there) for kind in device.PROBES})
    found = device.choose_device(TorchSettings())
    assert found.type == chosen
    assert device.choose_dtype(TorchSettings(), found) == dtype
    for kind in set(device.PROBES) - there:
        with pytest.raises(ConfigError, match=f"finds no {kind} device"):
            device.choose_device(TorchSettings(device=kind))  # type: ignore[arg-type]


def operations_for(where: torch.device, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> tuple[object, int]:
    return choosing.choose_operations(where, torch.float32, MODEL, 16, TorchSettings(**settings))


def test_mps_computes_by_plain_torch_and_asks_nothing_of_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: object) -> None:
        raise AssertionError("CUDA is not here")

    monkeypatch.setattr(choosing, "choose_cuda_operations", never)
    monkeypatch.setattr(choosing, "load_kernels", never)
    for name in ("empty_cache", "mem_get_info", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, never)
    operations, page_size = operations_for(torch.device("mps"), monkeypatch)
    assert (type(operations), page_size) == (PlainOperations, 16)
    assert device.available_bytes(torch.device("mps"), never) > 0


def test_a_cpu_without_a_compiler_computes_by_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(operations_for(CPU, monkeypatch)[0]) is NativeOperations
    monkeypatch.setattr(choosing, "load_kernels", lambda: None)
    assert type(operations_for(CPU, monkeypatch)[0]) is PlainOperations
    with pytest.raises(ConfigError, match=r"runtime.torch.quantization: int8 is computed on CPUs"):
        operations_for(CPU, monkeypatch, quantization="int8")


def test_eight_bits_are_for_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert type(operations_for(CPU, monkeypatch, quantization="int8")[0]) is NativeOperations
    with pytest.raises(ConfigError, match="use none here"):
        operations_for(torch.device("mps"), monkeypatch, quantization="int8")
    odd = replace(MODEL, head_size=24)
    with pytest.raises(ConfigError, match="multiples of 16"):
        choosing.choose_operations(CPU, torch.float32, odd, 16, TorchSettings(quantization="int8"))
