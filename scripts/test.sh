#!/usr/bin/env bash
# Sets the checkout up and runs lint, format, types and the tests, all of them, then says how each went.
# Usage: scripts/test.sh [--fast] [--again] [pytest arguments]
#   --fast   leaves lint, format and types out
#   --again  on a machine that others share: runs up to 5 failed tests a second time, alone, and names what passed only then
set -uo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
"$root/scripts/setup.sh" dev || exit 1
cd "$root"
python=$root/.venv/bin/python
summary=()
status=0

step() {
    local name=$1 begin=$SECONDS outcome=passed
    shift
    printf '==> %s\n' "$name" >&2
    "$@" || { outcome=FAILED; status=1; }
    summary+=("$(printf '%-8s %-7s %4d s' "$name" "$outcome" $((SECONDS - begin)))")
}

# mypy cannot see the package mapping of pyproject.toml: a folder with a link named inferflux shows it the same tree.
types() {
    local rooms
    rooms=$("$python" -c 'import pathlib, tomllib
packages = tomllib.loads(pathlib.Path("pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
print(*("-p " + name for name in packages if name.count(".") == 1))')
    mkdir -p .typing && ln -sfn .. .typing/inferflux
    # shellcheck disable=SC2086  # rooms are words
    MYPYPATH=.typing "$python" -m mypy $rooms \
        && MYPYPATH=.typing:scripts:benchmarks:benchmarks/gpu:tests:deploy/nats "$python" -m mypy scripts benchmarks deploy
}

tests() {
    # Names from an earlier run must not pass for this one's.
    if $again; then rm -f .pytest_cache/v/cache/lastfailed; fi
    # Most tests wait for servers more than they compute; a file's tests stay together, because they share servers.
    "$python" -m pytest -n 3 --dist loadfile --no-loadscope-reorder "$@" && return
    [ $? -eq 1 ] && $again || return 1
    local failed name
    failed=$("$python" -c 'import json, pathlib
print(*json.loads(pathlib.Path(".pytest_cache/v/cache/lastfailed").read_text()), sep="\n")')
    [ "$(wc -l <<< "$failed")" -le 5 ] || return 1
    printf '==> once more, alone\n' >&2
    "$python" -m pytest --last-failed --last-failed-no-failures none "$@" || return 1
    while read -r name; do
        summary+=("passed only when run again, which is a fault of the test or of what it tests: $name")
    done <<< "$failed"
}

fast=false again=false
while true; do
    case "${1:-}" in
        --fast) fast=true ;;
        --again) again=true ;;
        *) break ;;
    esac
    shift
done

if ! $fast; then
    step lint "$python" -m ruff check .
    step format "$python" -m ruff format --check .
    step types types
fi
step tests tests "$@"

printf '\n==> summary\n' >&2
printf '    %s\n' "${summary[@]}" >&2
exit $status
