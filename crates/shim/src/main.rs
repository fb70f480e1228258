//! `containerd-shim-runc-v2`: see the library for what it does.

fn main() -> std::process::ExitCode {
    gantry_shim::main()
}
