#!/bin/bash
# Shows the main job on real parts, with no daemon installed: the command line runs the daemon in
# its own process, builds nothing into the system, and removes all it made.
#
#   scripts/demo.sh [directory of the built programs]
set -euo pipefail

bin=$(realpath "${1:-target/release}")
work=$(mktemp -d /tmp/gantry-demo.XXXXXX)
export GANTRY_EMBEDDED_ROOT=$work/gantry
registry=

clean_up() {
    [ -z "$registry" ] || kill "$registry" 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
gantry() { timeout -k 5 120 "$bin/gantry" --embedded "$@"; }

say "a small image from local files"
root=$work/rootfs
mkdir -p "$root"/{bin,etc,tmp,proc,dev,sys}
cp /bin/busybox "$root/bin/busybox"
for applet in sh echo cat ls sleep uname id; do ln -s busybox "$root/bin/$applet"; done
echo 'root:x:0:0:root:/:/bin/sh' >"$root/etc/passwd"
echo 'Hello from a layer.' >"$root/hello"
umoci init --layout "$work/layout"
umoci new --image "$work/layout:demo"
umoci insert --image "$work/layout:demo" "$root" /
umoci config --image "$work/layout:demo" --config.cmd cat --config.cmd /hello

say "a real registry on this machine"
port=$((20000 + RANDOM % 20000))
cat >"$work/registry.yml" <<YAML
version: 0.1
storage: { filesystem: { rootdirectory: $work/registry } }
http: { addr: 127.0.0.1:$port }
YAML
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
registry=$!
image=127.0.0.1:$port/demo:latest
for _ in $(seq 100); do
    skopeo copy -q --dest-tls-verify=false "oci:$work/layout:demo" "docker://$image" \
        2>"$work/push.log" && break
    sleep 0.1
done
echo "serving $image"

say "pull and unpack"
gantry images pull --plain-http "$image"
gantry images ls

say "run it: the image's own command, then one of ours"
gantry run --rm "$image" hello
gantry run --rm "$image" who sh -c 'echo "I am $(id -u) on $(uname -s), pid $$"'

say "a container in the background outlives the command that started it"
gantry run -d "$image" worker sleep 1000
gantry tasks ls

say "execute a command in it"
gantry tasks exec --exec-id e1 worker sh -c 'echo "inside, beside:"; cat /proc/1/cmdline; echo'

say "stop and remove"
gantry tasks kill --signal SIGKILL worker
gantry tasks delete --force worker
gantry containers delete worker
gantry images rm --sync "$image"

left=$(gantry containers ls -q; gantry images ls -q; gantry content ls -q)
[ -z "$left" ] || { echo "something is left: $left" >&2; exit 1; }
! grep -q "$work" /proc/self/mountinfo || { echo "a mount is left" >&2; exit 1; }
say "everything is removed again"
