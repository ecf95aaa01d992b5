#!/usr/bin/env bash
# The long form of the proofs that nothing is lost and that shares are fair, with every mutant.
# Usage: scripts/chaos.sh [--rounds N] [--load-s S] [--soak] [--soak-s S] [--soak-rate R] [pytest arguments]
#   --rounds N   how often each fault happens (5)
#   --load-s S   seconds of load under rolling restarts (120)
#   --soak       an hour of mixed load as well; --soak-s S for another time, --soak-rate R for R requests a second (10)
# It takes about 30 minutes without the soak; fair times to first token need a machine that does nothing else.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
flags=()
while [ $# -gt 0 ]; do
    case $1 in
        --soak) flags+=(--soak-s 3600) ;;
        *) flags+=("$1") ;;
    esac
    shift
done
"$root/scripts/setup.sh" dev
cd "$root"
exec .venv/bin/python -m pytest tests/chaos tests/e2e/test_fairness.py tests/e2e/test_hot_reload.py --long -s --timeout 0 --durations 0 ${flags[@]+"${flags[@]}"}
