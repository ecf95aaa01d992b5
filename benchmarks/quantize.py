"""Make GGUF files of other types from one, through llama.cpp's own quantizer.

    python benchmarks/quantize.py models/smollm2.gguf q4_0 q8_0 [--folder DIR]

Writes `<name>-<type>.gguf` beside the source, or into DIR. A source that is quantized already is dequantized first:
good enough to compare speed, not to judge answers.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from pathlib import Path

import llama_cpp.llama_cpp as lib

FILE_TYPES = {
    "q4_0": lib.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": lib.LLAMA_FTYPE_MOSTLY_Q4_1,
    "q8_0": lib.LLAMA_FTYPE_MOSTLY_Q8_0,
    "f16": lib.LLAMA_FTYPE_MOSTLY_F16,
}


def quantize(source: Path, kind: str, target: Path) -> None:
    """Raises RuntimeError when the library refuses; its own messages are on stderr."""
    params = lib.llama_model_quantize_default_params()
    params.ftype = FILE_TYPES[kind]
    params.allow_requantize = True
    status = lib.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    if status:
        raise RuntimeError(f"{source} could not be quantized to {kind}: status {status}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("source", type=Path)
    parser.add_argument("types", nargs="+", choices=sorted(FILE_TYPES))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    lib.llama_backend_init()
    for kind in arguments.types:
        target = (arguments.folder or arguments.source.parent) / f"{arguments.source.stem}-{kind}.gguf"
        quantize(arguments.source, kind, target)
        sys.stdout.write(f"{target}\n")


if __name__ == "__main__":
    main()
