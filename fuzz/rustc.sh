#!/bin/sh
# rustc for the fuzz targets: cargo calls it for every crate (RUSTC_WRAPPER), and only what a
# finding can be in is instrumented for libFuzzer: our own crates and the parsers below them. The
# counters of an HTTP client would cost most of the build and lead the search nowhere.
set -eu
name=
target=
previous=
for argument in "$@"; do
    case $previous in
    --crate-name) name=$argument ;;
    --target) target=$argument ;;
    esac
    previous=$argument
done
case $name in
gantry_* | redb | toml | toml_parser | toml_edit | serde_json | tar_core)
    # Macros and build scripts, which cargo makes without a target, have no libFuzzer below them.
    [ -n "$target" ] || exec "$@"
    exec "$@" -Ccodegen-units=1 -Cpasses=sancov-module \
        -Cllvm-args=-sanitizer-coverage-level=4 \
        -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
        -Cllvm-args=-sanitizer-coverage-pc-table \
        -Cllvm-args=-sanitizer-coverage-trace-compares
    ;;
*) exec "$@" ;;
esac
