#!/bin/bash
# Unpacks criu 4 from Debian trixie beside the libraries it needs, for the tests that checkpoint and
# restore: the criu of this machine's own release does not know the vDSO of newer kernels. Nothing
# is installed as the machine's own: who wants it puts the directory first on PATH, or names its
# `criu` where a runtime can be told.
set -euo pipefail

dir=${GANTRY_CRIU:-/var/cache/gantry-criu}
suite=trixie
[ -x "$dir/criu" ] && exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Downloads are made by apt's own user.
chmod 755 "$work"
mkdir -p "$work"/{lists/partial,cache/archives/partial,root}
# As on a machine with nothing installed, so that every library comes along.
touch "$work/status"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [signed-by=$keyring] http://deb.debian.org/debian $suite main" >"$work/sources.list"
apt=(apt-get -qq -o "Dir::Etc::sourcelist=$work/sources.list" -o Dir::Etc::sourceparts=-
    -o "Dir::State::lists=$work/lists" -o "Dir::State::status=$work/status"
    -o "Dir::Cache=$work/cache")
"${apt[@]}" update
"${apt[@]}" install -y --download-only --no-install-recommends criu
for package in "$work"/cache/archives/*.deb; do
    dpkg -x "$package" "$work/root"
done

libraries=$(dirname "$(find "$work/root/usr/lib" -name libc.so.6)")
loader=$(find "$libraries" -name 'ld-linux*' | head -n 1)
rm -rf "$dir.new"
mkdir -p "$dir.new/lib"
cp -aL "$libraries"/*.so* "$dir.new/lib/"
cp "$work/root/usr/sbin/criu" "$dir.new/criu.bin"
cat >"$dir.new/criu" <<END
#!/bin/sh
exec $dir/lib/$(basename "$loader") --library-path $dir/lib $dir/criu.bin "\$@"
END
chmod 755 "$dir.new/criu"
"$dir.new/lib/$(basename "$loader")" --library-path "$dir.new/lib" "$dir.new/criu.bin" --version
rm -rf "$dir"
mv "$dir.new" "$dir"
