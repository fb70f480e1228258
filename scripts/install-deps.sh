#!/bin/bash
# Installs the Debian packages that the demo and the tests need, and only those that are missing.
# containerd's and docker's own services are never started by us.
set -euo pipefail

packages=(
    busybox-static          # the root file system of the images
    containerd              # ctr, and the daemon and shim we are compared with
    runc                    # what makes the containers
    docker-registry         # a real registry
    docker.io               # dockerd, run on gantryd
    skopeo umoci            # other people's view of our images
    gcc libc6-dev make      # crates that build C
    binutils cpio      # the small machine's file system
    zstd                    # layers unpacked apart from our own code
    iproute2 procps util-linux
    qemu-system-x86         # the small machine itself
    e2fsprogs hyperfine
    btrfs-progs erofs-utils xfsprogs # filesystems of snapshots and of tests
)

missing=()
for package in "${packages[@]}"; do
    dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' ||
        missing+=("$package")
done
[ ${#missing[@]} -eq 0 ] && exit 0

echo "installing ${missing[*]}"
# Packages must not start their daemons: on a machine that has no policy yet, one is set for now.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}"
