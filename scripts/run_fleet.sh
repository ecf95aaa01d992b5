#!/usr/bin/env bash
# Starts what compose.yaml starts, without containers: three NATS nodes with TLS and generated accounts, two API replicas
# behind a real nginx, two workers. Ctrl-C stops all of it.
# Usage: scripts/run_fleet.sh [--folder FOLDER] [--chaos] [--set section.key=value]...
#   --folder   where secrets, stores and logs go (a new folder under /tmp unless given)
#   --chaos    do not stay: run the short form of the chaos tests of a fleet on it, and stop
#   --set      settings of every process; without any the model is the stub
# Needs nginx; Debian: apt-get install nginx-light.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
if [ -n "${VIRTUAL_ENV:-}" ]; then python=$VIRTUAL_ENV/bin/python; else
    "$root/scripts/setup.sh" dev
    python=$root/.venv/bin/python
fi
exec "$python" "$root/scripts/fleet.py" "$@"
