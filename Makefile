# The two commands are `make demo` and `make test`; both install what they need (as root, Debian).

CARGO ?= cargo

# The machine's own target, for which the C library can be linked in.
TARGET := $(shell rustc -vV | sed -n 's/^host: //p')
SHIM := containerd-shim-runc-v2

.PHONY: build shim demo test power crash fuzz lint deps bench

# What users run, into target/release.
build: shim
	$(CARGO) build --release --bins -p gantry-daemon -p gantry-cli

# The shim alone: built for size, with the C library in it, so that its pages are shared by all
# shims and nothing of it is relocated.
shim:
	$(CARGO) build --profile small -p gantry-shim --target $(TARGET) \
		--config 'target.$(TARGET).rustflags=["-Ctarget-feature=+crt-static"]'
	mkdir -p target/release
	cp -f target/$(TARGET)/small/$(SHIM) target/release/.$(SHIM)
	mv -f target/release/.$(SHIM) target/release/$(SHIM)

# A real image end to end, without anything installed: see scripts/demo.sh.
demo: deps build
	scripts/demo.sh target/release

# Everything CI checks. Building all tests builds the programs too, which tests run as programs;
# a build of the programs alone would build most crates twice, with other features.
test: deps lint
	$(CARGO) test --workspace --no-run
	$(CARGO) test --workspace --no-fail-fast
	scripts/demo.sh target/debug

# The power-cut test at length; prints the seed that repeats its choices.
power: deps
	$(CARGO) build --bins -p gantry-daemon -p gantry-shim
	GANTRY_POWER_CUTS=200 $(CARGO) test -p gantry-blackbox --test it root_power -- --nocapture

# A thousand kills of the daemon at random moments, each failpoint in every way, and many damaged
# databases; prints the seeds.
crash: deps
	$(CARGO) build --bins -p gantry-daemon -p gantry-shim -p gantry-cli
	GANTRY_CRASH_KILLS=250 $(CARGO) test -p gantry-blackbox --test it crash:: -- --nocapture
	GANTRY_FAILPOINTS_ALL=1 $(CARGO) test -p gantry-blackbox --test it failpoints:: -- --nocapture
	GANTRY_STORE_DAMAGE_CASES=5000 $(CARGO) test -p gantry-store damage

# The fuzz targets, FUZZ_SECONDS each: see fuzz/README.md.
fuzz:
	scripts/fuzz.sh

lint:
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

deps:
	scripts/install-deps.sh
	scripts/install-vm.sh
	scripts/install-criu.sh
	scripts/install-ctr.sh

# Side by side with the installed containerd, as ratios of one run.
bench: deps build
	TMPDIR=/dev/shm $(CARGO) run --release -p gantry-bench
