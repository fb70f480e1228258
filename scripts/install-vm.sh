#!/bin/bash
# Fetches Debian's cloud kernel for the tests that boot a small machine (crates/testkit/src/vm.rs)
# and unpacks what they need of it: the kernel and a few modules. Nothing is installed as the
# machine's own kernel.
set -euo pipefail

dir=${GANTRY_VM_KERNEL:-/var/cache/gantry-vm}
# One that an earlier version of this made may lack what was added since.
complete() { compgen -G "$dir/modules/*/kernel/fs/quota" >/dev/null; }
[ -f "$dir/vmlinuz" ] && complete && exit 0

kernel_package() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null |
        awk '/Depends: linux-image-/ && !found { print $2; found = 1 }'
}
package=$(kernel_package)
if [ -z "$package" ]; then
    # A new machine has no package lists yet.
    apt-get update -qq
    package=$(kernel_package)
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
(cd "$work" && apt-get download -qq "$package" 2>/dev/null && dpkg -x ./*.deb root)

release=$(basename "$work"/root/lib/modules/*)
from=$work/root/lib/modules/$release
to=$work/modules/$release
mkdir -p "$to/kernel" "$dir"
cp "$from"/modules.{order,builtin,builtin.modinfo} "$to/"
# The file systems and block devices of the tests, with all they depend on.
for part in fs/overlayfs fs/erofs fs/xfs fs/btrfs fs/quota drivers/block/virtio_blk.ko drivers/block/loop.ko \
    drivers/virtio lib crypto arch/x86/crypto; do
    [ -e "$from/kernel/$part" ] || continue
    mkdir -p "$to/kernel/$(dirname "$part")"
    cp -a "$from/kernel/$part" "$to/kernel/$part"
done
mkdir -p "$work/lib" && ln -s "$work/modules" "$work/lib/modules"
busybox depmod -b "$work" "$release"
rm -rf "$dir/modules"
cp -a "$work/modules" "$dir/modules"
cp "$work/root/boot/vmlinuz-$release" "$dir/vmlinuz.new"
mv "$dir/vmlinuz.new" "$dir/vmlinuz"
