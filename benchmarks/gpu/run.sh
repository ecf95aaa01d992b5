#!/usr/bin/env bash
# Everything that needs a GPU, in one command: correctness, then throughput. Wants a Python that has torch with CUDA.
# Usage: benchmarks/gpu/run.sh [--quick] [--shapes 0.6B,1.7B,8B]     PYTHON=python3 names the interpreter
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The packages are imported as inferflux.<folder>; a link shows the checkout under that name without an installation.
ln -s "$root" "$folder/inferflux"
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
    echo "error: this Python's torch finds no CUDA device" >&2
    exit 1
}
for package in msgspec psutil safetensors tokenizers numpy; do
    "$python" -c "import $package" 2>/dev/null || missing="${missing:-} $package"
done
if [ -n "${missing:-}" ]; then
    echo "==> installing$missing" >&2
    "$python" -m pip install --quiet --target "$folder" $missing
fi
PYTHONPATH="$folder" "$python" "$root/benchmarks/gpu/throughput.py" "$@"
