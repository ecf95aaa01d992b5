#!/usr/bin/env bash
# Everything that needs a GPU, in one command: correctness, throughput, and a whole worker over the broker in memory.
# Wants a Python that has torch with CUDA.
# Usage: benchmarks/gpu/run.sh [--quick] [--shapes 0.6B,1.7B,8B]     PYTHON=python3 names the interpreter
#        benchmarks/gpu/run.sh --rehearse                             the end-to-end part alone, tiny, on the CPU
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd -P)
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# The packages are imported as inferflux.<folder>; a link shows the checkout under that name without an installation.
ln -s "$root" "$folder/inferflux"
for package in msgspec psutil safetensors tokenizers numpy jinja2 cryptography prometheus_client nats:nats-py; do
    "$python" -c "import ${package%:*}" 2>/dev/null || missing="${missing:-} ${package#*:}"
done
if [ -n "${missing:-}" ]; then
    echo "==> installing$missing" >&2
    "$python" -m pip install --quiet --target "$folder" $missing
fi
export PYTHONPATH="$folder"
if [ "${1:-}" = --rehearse ]; then
    exec "$python" "$root/benchmarks/gpu/end_to_end.py" --device cpu --shapes tiny --clients 1,4 --prompt 40 --answer 8
fi
"$python" -c 'import torch; raise SystemExit(not torch.cuda.is_available())' || {
    echo "error: this Python's torch finds no CUDA device" >&2
    exit 1
}
"$python" "$root/benchmarks/gpu/throughput.py" "$@"
"$python" "$root/benchmarks/gpu/end_to_end.py" "$@"
