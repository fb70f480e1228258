#!/bin/bash
# Unpacks programs of a Debian package, of another release than this machine's, beside the libraries
# they need: unpack-program.sh DIRECTORY SUITE PACKAGE PROGRAM... Nothing is installed as the machine's
# own: who wants a program calls it by its path in the directory.
set -euo pipefail

dir=$1 suite=$2 package=$3
shift 3
for program; do
    [ -x "$dir/$(basename "$program")" ] || missing=1
done
[ -n "${missing-}" ] || exit 0

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
    -o "Dir::Cache=$work/cache" -o Acquire::Languages=none)
"${apt[@]}" update
"${apt[@]}" install -y --download-only --no-install-recommends "$package"
for archive in "$work"/cache/archives/*.deb; do
    dpkg -x "$archive" "$work/root"
done

libraries=$(dirname "$(find "$work/root/usr/lib" -name libc.so.6)")
loader=$(basename "$(find "$libraries" -name 'ld-linux*' | head -n 1)")
rm -rf "$dir.new"
mkdir -p "$dir.new/lib"
cp -aL "$libraries"/*.so* "$dir.new/lib/"
for program; do
    name=$(basename "$program")
    cp "$work/root/$program" "$dir.new/$name.bin"
    cat >"$dir.new/$name" <<END
#!/bin/sh
exec $dir/lib/$loader --library-path $dir/lib --argv0 $name $dir/$name.bin "\$@"
END
    chmod 755 "$dir.new/$name"
    "$dir.new/lib/$loader" --library-path "$dir.new/lib" "$dir.new/$name.bin" --version
done
rm -rf "$dir"
mv "$dir.new" "$dir"
