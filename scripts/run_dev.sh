#!/usr/bin/env bash
# Sets the checkout up and serves: broker, API and worker in one command. Ctrl-C drains and stops.
# Usage: scripts/run_dev.sh [--config FILE] [flags of `inferctl serve`]
set -euo pipefail

start=$PWD
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
config=$root/config/server.yaml
flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --config) config=${2:?--config needs a file}; shift ;;
        --config=*) config=${1#--config=} ;;
        *) flags+=("$1") ;;
    esac
    shift
done

# Paths inside the settings and in flags are relative to the checkout; the file itself may be named from anywhere.
case $config in
    /*) ;;
    *) [ ! -e "$start/$config" ] || config=$start/$config ;;
esac

# A folder holds safetensors, which only torch reads; everybody else is spared its download.
extras=()
if [ -d "${INFERFLUX_MODEL_PATH:-}" ] || [ "${INFERFLUX_MODEL_BACKEND:-}" = torch ]; then
    extras=(torch)
fi
"$root/scripts/setup.sh" ${extras[@]+"${extras[@]}"}
cd "$root"
model=()
if [ ${#extras[@]} -eq 0 ] && ! .venv/bin/python -c 'import importlib.util; raise SystemExit(not importlib.util.find_spec("llama_cpp"))'; then
    model=(--set registry.path=/dev/null --set model.backend=stub)
    [ -n "${INFERFLUX_MODEL_PATH:-}" ] || model+=(--set model.id=smollm2)
fi
exec .venv/bin/inferctl serve --config "$config" ${model[@]+"${model[@]}"} ${flags[@]+"${flags[@]}"}
