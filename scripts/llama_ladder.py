"""Which builds of llama.cpp to try on a processor, from the fastest to the most careful."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# ggml's option: the processor flags it needs, and what the compiler calls them.
X86_OPTIONS = {
    "SSE42": (("sse4_2",), ("-msse4.2",)),
    "AVX": (("avx",), ("-mavx",)),
    "F16C": (("f16c",), ("-mf16c",)),
    "FMA": (("fma",), ("-mfma",)),
    "BMI2": (("bmi2",), ("-mbmi2",)),
    "AVX2": (("avx2",), ("-mavx2",)),
    "AVX_VNNI": (("avx_vnni",), ("-mavxvnni",)),
    "AVX512": (
        ("avx512f", "avx512cd", "avx512vl", "avx512dq", "avx512bw"),
        ("-mavx512f", "-mavx512cd", "-mavx512vl", "-mavx512dq", "-mavx512bw"),
    ),
    "AVX512_VBMI": (("avx512vbmi",), ("-mavx512vbmi",)),
    "AVX512_VNNI": (("avx512_vnni",), ("-mavx512vnni",)),
    "AVX512_BF16": (("avx512_bf16",), ("-mavx512bf16",)),
}
AVX2_OPTIONS = frozenset({"SSE42", "AVX", "F16C", "FMA", "BMI2", "AVX2"})
BASELINE_OPTIONS = frozenset({"SSE42"})


class Processor(NamedTuple):
    """What decides the flags: system and machine as `platform` names them, and the feature flags that are usable."""

    system: str
    machine: str
    features: frozenset[str]

    @property
    def x86(self) -> bool:
        return self.system == "Linux" and self.machine in ("x86_64", "i686")


class Rung(NamedTuple):
    """One step of the ladder from the fastest build to the most careful one."""

    name: str
    cmake_args: tuple[str, ...]


def find_processor() -> Processor:
    features: frozenset[str] = frozenset()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo.read_text(), re.MULTILINE)
        features = frozenset(match[1].split()) if match else features
    return Processor(platform.system(), platform.machine(), features)


def ladder(processor: Processor, accepts: Callable[[tuple[str, ...]], bool]) -> list[Rung]:
    """Rungs from fast to careful, no two alike. `accepts` tells whether the compiler knows some flags.

    x86 never gets -march=native: with AMX it makes GCC 12 emit a library that dies at its first decode, so every
    option is spelled out, and those left out are switched off.
    """
    if not processor.x86:
        careful = Rung("portable", ("-DGGML_NATIVE=OFF",))
        return [Rung("native", ("-DGGML_NATIVE=ON",)), careful]
    usable = {
        option
        for option, (features, flags) in X86_OPTIONS.items()
        if processor.features.issuperset(features) and accepts(flags)
    }
    rungs: list[Rung] = []
    for name, options in (("full", usable), ("avx2", usable & AVX2_OPTIONS), ("baseline", usable & BASELINE_OPTIONS)):
        switches = tuple(f"-DGGML_{option}={'ON' if option in options else 'OFF'}" for option in X86_OPTIONS)
        rung = Rung(name, ("-DGGML_NATIVE=OFF", *switches))
        if not rungs or rungs[-1].cmake_args != rung.cmake_args:
            rungs.append(rung)
    return rungs


def cache_key(version: str, rung: Rung, processor: Processor, compiler: str, extra_args: str) -> str:
    """Names a build by all that goes into it. A native build depends on the processor, not on its flags alone."""
    native = sorted(processor.features) if "-DGGML_NATIVE=ON" in rung.cmake_args else []
    parts = [version, sysconfig.get_platform(), compiler, extra_args, *rung.cmake_args, *native]
    return f"{version}-{rung.name}-{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]}"
