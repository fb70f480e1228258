//! Finding the programs under test and those of the system.

use std::path::{Path, PathBuf};

/// The path of one of our own binaries, built before the tests (`make test` does).
///
/// Looked for in `GANTRY_BIN_DIR`, then in the target directory the test itself was built into.
///
/// # Panics
/// When it is not there, saying how to build it.
pub fn built_program(name: &str) -> PathBuf {
    let dir = match std::env::var_os("GANTRY_BIN_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => profile_dir(&std::env::current_exe().expect("a process has an executable")),
    };
    let path = dir.join(name);
    assert!(
        path.is_file(),
        "{} is missing: run `make build`, or set GANTRY_BIN_DIR to where the binaries are",
        path.display()
    );
    path
}

/// The path of a program of the system.
///
/// # Panics
/// When it is not installed, saying which script installs it.
pub fn system_program(name: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default();
    path.split(':')
        .chain(["/usr/sbin", "/usr/bin", "/sbin", "/bin"])
        .map(|dir| Path::new(dir).join(name))
        .find(|p| p.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed: run scripts/install-deps.sh"))
}

/// The directory with the criu that `scripts/install-criu.sh` unpacks, for a daemon's PATH.
///
/// # Panics
/// When it is not there, saying which script makes it.
pub fn criu_dir() -> PathBuf {
    let dir =
        std::env::var_os("GANTRY_CRIU").map_or("/var/cache/gantry-criu".into(), PathBuf::from);
    assert!(dir.join("criu").is_file(), "criu is missing: run scripts/install-criu.sh");
    dir
}

/// The path of a program of containerd 2, unpacked from Debian sid.
///
/// # Panics
/// When it is not there, saying which script unpacks it.
pub fn sid_program(name: &str) -> PathBuf {
    let dir = std::env::var_os("GANTRY_CTR2").unwrap_or_else(|| "/var/cache/gantry-ctr2".into());
    let path = Path::new(&dir).join(name);
    assert!(path.is_file(), "{} is missing: run scripts/install-ctr.sh", path.display());
    path
}

/// `target/<profile>` of a test at `target/<profile>/deps/<test>` or a binary beside it.
fn profile_dir(exe: &Path) -> PathBuf {
    let dir = exe.parent().unwrap_or(Path::new("."));
    if dir.ends_with("deps") { dir.parent().unwrap_or(dir).to_owned() } else { dir.to_owned() }
}
