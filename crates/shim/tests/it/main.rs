//! The real binary, driven as a daemon drives it, with real runc and a busybox root filesystem.
//!
//! Everything here needs root, runc and busybox, says so in its name (`root_`) and fails without.
//! Each test has its own directory for bundle, sockets and runc's records, and its own ids, since
//! cgroups are the machine's.

mod bootstrap;
mod exec;
mod harness;
mod io;
mod life;
mod options;
mod restart;
mod sandbox;
mod stress;
mod upgrade;

/// A file that is not listed above would never run.
#[test]
fn every_file_is_part_of_the_suite() {
    let listed = include_str!("main.rs");
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it")).expect("lists");
    for file in files {
        let name = file.expect("an entry").file_name().into_string().expect("text");
        let module = name.trim_end_matches(".rs");
        assert!(module == "main" || listed.contains(&format!("mod {module};")), "{name}");
    }
}
