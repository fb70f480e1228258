#!/bin/sh
# Builds the fuzz targets with the stable compiler and runs each for FUZZ_SECONDS. libFuzzer needs
# coverage instrumentation only, which LLVM's pass gives without a nightly compiler; address
# sanitizer does without, for there is no unsafe code outside crates/sys.
set -eu
cd "$(dirname "$0")/../fuzz"
seconds=${FUZZ_SECONDS:-60}
targets=${FUZZ_TARGETS:-$(cd fuzz_targets && ls *.rs | sed 's/\.rs$//')}
host=$(rustc -vV | sed -n 's/^host: //p')
export RUSTC_WRAPPER="$PWD/rustc.sh"
# With --target, by which the wrapper tells what runs in the compiler from what is fuzzed.
set -- build --release --target "$host"
for target in $targets; do
    set -- "$@" --bin "$target"
done
cargo "$@"
for target in $targets; do
    echo "== $target, $seconds seconds"
    mkdir -p "corpus/$target" "target/found/$target"
    "target/$host/release/$target" -max_total_time="$seconds" -rss_limit_mb=4096 -timeout=30 \
        -artifact_prefix="corpus/$target/" -print_final_stats=1 "target/found/$target" \
        "corpus/$target"
done
