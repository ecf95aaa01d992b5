#!/usr/bin/env bash
# Builds the Dockerfile's targets where no container engine runs, and starts what was built as its user, with its
# environment, on a root that is mounted read-only: buildah runs each step in a chroot, on a Debian that debootstrap makes
# in place of the pinned base. A step that is missing fails here as it would in a build. Needs root, buildah and
# debootstrap; nothing outside its folder changes.
# Usage: scripts/check_images.sh [--work FOLDER] [--volume SOURCE:TARGET:ro]... [target...]
#   --work     keeps the base between runs (a new folder under /tmp unless given)
#   --volume   what the steps see of this machine: pip's and apt's configuration, certificates, folders of packages
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

# Runs a command in $container as `docker run --read-only --tmpfs /tmp -v ./models:/models:ro` with an empty volume would:
# as the image's user, in its environment and no other, with nothing else to write to.
start() {
    local folder environment
    folder=$(build mount "$container")
    readarray -t environment < <(build inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container" | sed '/^$/d')
    unshare --mount --propagation private sh -ec '
        root=$1 models=$2
        shift 2
        mount --bind "$root" "$root"
        [ ! -d "$models" ] || mount --bind -o ro "$models" "$root/models"
        mount -o remount,bind,ro "$root"
        mount --rbind /dev "$root/dev"
        mount --rbind /proc "$root/proc"
        mount -t tmpfs tmpfs "$root/tmp"
        mount -t tmpfs -o uid=10001,gid=10001,mode=0755 tmpfs "$root/var/lib/inferflux"
        exec chroot --userspec=10001:10001 "$root" "$@"
    ' sh "$folder" "$root/models" env -i -C /var/lib/inferflux "${environment[@]}" "$@"
}

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
    start sh -ec '
        [ "$(id -u)" = 10001 ]
        if touch /usr/written 2>/dev/null || touch /config/written 2>/dev/null; then echo "the root can be written to"; exit 1; fi
        touch /var/lib/inferflux/written /tmp/written
        inferctl config --check /config/server.yaml
        python -c "import json; parts = json.load(open(\"/usr/share/inferflux/sbom.cdx.json\"))[\"components\"]; print(len(parts), \"parts in the SBOM\")"
    ' >&2
    if [ "$target" = worker-cpu ] || [ "$target" = all-in-one ]; then
        start python -c 'import llama_cpp; print(llama_cpp.llama_print_system_info().decode())' >&2
    fi
    if [ "$target" = all-in-one ]; then
        # Serves one completion with the embedded broker; without a model in the checkout the stub answers.
        start sh -ec '
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
