#!/usr/bin/env bash
# Builds the Dockerfile's targets where no container engine runs, and starts what was built as its user on a read-only
# root: buildah runs each step in a chroot, on a Debian that debootstrap makes in place of the pinned base. A step that
# is missing fails here as it would in a build. Needs root, buildah and debootstrap; nothing outside its folder changes.
# Usage: scripts/check_images.sh [--work FOLDER] [--volume SOURCE:TARGET:ro]... [target...]
#   --work     keeps the base between runs (a new folder under /tmp unless given)
#   --volume   what the steps see of this machine, such as pip's configuration
#   target     api, worker-cpu, all-in-one; all three unless given. worker-cuda needs its own base: its steps are not run.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
work=
volumes=()
targets=()
while [ $# -gt 0 ]; do
    case $1 in
        --work) work=${2:?--work needs a folder}; shift ;;
        --volume) volumes+=(--volume "${2:?--volume needs SOURCE:TARGET:ro}"); shift ;;
        *) targets+=("$1") ;;
    esac
    shift
done
[ ${#targets[@]} -gt 0 ] || targets=(api worker-cpu all-in-one)
[ -n "$work" ] || work=$(mktemp -d /tmp/inferflux-images.XXXXXX)
for tool in buildah debootstrap; do
    command -v "$tool" >/dev/null || { echo "error: $tool is not installed; Debian: apt-get install $tool" >&2; exit 1; }
done
mkdir -p "$work"
export STORAGE_DRIVER=vfs BUILDAH_ISOLATION=chroot
base=localhost/inferflux-python

say() { printf '==> %s\n' "$*" >&2; }
build() { buildah --root "$work/storage" --runroot "$work/run" "$@"; }

if ! build inspect --type image "$base" >/dev/null 2>&1; then
    say "making a base with debootstrap"
    rm -rf "$work/rootfs"
    debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,python3-dev,ca-certificates \
        bookworm "$work/rootfs" http://deb.debian.org/debian >"$work/debootstrap.log"
    # The pinned base is no Debian Python: its pip installs where it is told.
    ln -sf python3 "$work/rootfs/usr/bin/python"
    rm -f "$work"/rootfs/usr/lib/python3*/EXTERNALLY-MANAGED
    container=$(build from scratch)
    build add --quiet "$container" "$work/rootfs" / >/dev/null
    build config --env PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$container"
    build commit --quiet "$container" "$base" >/dev/null
    build rm "$container" >/dev/null
    rm -rf "$work/rootfs"
fi

for target in "${targets[@]}"; do
    say "building $target"
    build bud --layers --network host ${volumes[@]+"${volumes[@]}"} --build-arg "PYTHON_IMAGE=$base" \
        --target "$target" --tag "localhost/inferflux-$target" "$root" >"$work/$target.log" 2>&1 \
        || { tail -n 30 "$work/$target.log" >&2; say "$target: FAILED; all of it is in $work/$target.log"; exit 1; }
    container=$(build from "localhost/inferflux-$target")
    # As the image's user, from the image's own environment.
    build run "$container" -- sh -ec '
        [ "$(id -u)" = 10001 ]
        [ ! -w / ] && [ ! -w /usr ] && [ ! -w /config ] && [ -w /var/lib/inferflux ]
        inferctl config --check /config/server.yaml
        python -c "import json; parts = json.load(open(\"/usr/share/inferflux/sbom.cdx.json\"))[\"components\"]; print(len(parts), \"parts in the SBOM\")"
    ' >&2
    if [ "$target" = worker-cpu ] || [ "$target" = all-in-one ]; then
        build run "$container" -- python -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())' >&2
    fi
    if [ "$target" = all-in-one ]; then
        # Serves one completion with the embedded broker; the model is the stub, because none is mounted.
        build run --network host "$container" -- sh -ec '
            port=$(python -c "import socket; s = socket.socket(); s.bind((\"127.0.0.1\", 0)); print(s.getsockname()[1])")
            INFERFLUX_BROKER_PORT=0 INFERFLUX_WORKER_METRICS_PORT=0 inferctl serve --config /config/server.yaml \
                --host 127.0.0.1 --port "$port" &
            for _ in $(seq 120); do
                python /usr/local/lib/inferflux/alive.py "$port" 2>/dev/null && break
                sleep 0.5
            done
            inferctl completion --url "http://127.0.0.1:$port" --api-key dev-key-123 --max-tokens 8 --prompt Hello
            kill -TERM $!
            wait $!
        ' >&2
    fi
    build rm "$container" >/dev/null
    say "$target: built and checked"
done
