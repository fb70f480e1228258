//! `containerd-shim-runc-v2`: see the library for what it does.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    gantry_shim::main()
}
