//! From the name of a runtime to the program of its shim.

use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result};

/// The runtime that seeds of 2018 ask for by default. Ours serves it.
pub(crate) const LINUX_V1: &str = "io.containerd.runtime.v1.linux";
/// Our shim's own name.
pub(crate) const RUNC_V2: &str = "io.containerd.runc.v2";
/// The shim of one container per process; the same contract as v2.
const RUNC_V1: &str = "io.containerd.runc.v1";

/// The file name of the shim of a runtime: `a.b.NAME.VERSION` => `containerd-shim-NAME-VERSION`.
fn binary_name(runtime: &str) -> Option<String> {
    let serving = match runtime {
        LINUX_V1 | RUNC_V1 => RUNC_V2,
        other => other,
    };
    let mut parts = serving.rsplit('.');
    let (version, name) = (parts.next()?, parts.next()?);
    let fine = !version.is_empty() && !name.is_empty() && !serving.contains('/');
    fine.then(|| format!("containerd-shim-{name}-{version}"))
}

/// Finds the shim program of `runtime`: an absolute path is taken as it is, a name is looked for
/// in `shim_dir` and then in the directories of `path`. Blocks for a few `stat` calls.
///
/// # Errors
/// InvalidArgument for a name of the wrong form, Unknown when there is no such program; both are
/// what containerd answers.
pub(crate) fn resolve(runtime: &str, shim_dir: Option<&Path>, path: &str) -> Result<PathBuf> {
    if runtime.is_empty() {
        return Err(Error::invalid_argument("runtime name: empty"));
    }
    if runtime.starts_with('/') {
        let program = PathBuf::from(runtime);
        if is_program(&program) {
            return Ok(program);
        }
        return Err(Error::unknown(format!(
            "failed to start shim: failed to resolve runtime path: invalid custom binary path: \
             stat {runtime}: no such file or directory"
        )));
    }
    let name = binary_name(runtime).ok_or_else(|| {
        Error::invalid_argument(format!(
            "failed to start shim: failed to resolve runtime path: invalid runtime name \
             {runtime}, correct runtime name should be either format like `{RUNC_V2}` or a full \
             path to the binary"
        ))
    })?;
    shim_dir
        .into_iter()
        .map(Path::to_owned)
        .chain(std::env::split_paths(path).filter(|dir| dir.is_absolute()))
        .map(|dir| dir.join(&name))
        .find(|program| is_program(program))
        .ok_or_else(|| {
            Error::unknown(format!(
                "failed to start shim: failed to resolve runtime path: runtime {runtime:?} \
                 binary not installed {name:?}: file does not exist"
            ))
        })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_give_programs() {
        for (runtime, program) in [
            ("io.containerd.runc.v2", Some("containerd-shim-runc-v2")),
            ("io.containerd.runc.v1", Some("containerd-shim-runc-v2")),
            ("io.containerd.runtime.v1.linux", Some("containerd-shim-runc-v2")),
            ("io.containerd.kata.v2", Some("containerd-shim-kata-v2")),
            ("kata.v2", Some("containerd-shim-kata-v2")),
            ("runc", None),
            ("io.containerd.", None),
            ("./a.b", None),
        ] {
            assert_eq!(binary_name(runtime).as_deref(), program, "{runtime}");
        }
    }

    #[test]
    fn our_directory_is_looked_into_first() {
        let dirs = [tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir")];
        for dir in &dirs {
            std::fs::write(dir.path().join("containerd-shim-runc-v2"), "").expect("written");
        }
        let path = dirs[1].path().display().to_string();
        let found = resolve(RUNC_V2, Some(dirs[0].path()), &path).expect("found");
        assert!(found.starts_with(dirs[0].path()));
        let found = resolve(RUNC_V2, None, &path).expect("found");
        assert!(found.starts_with(dirs[1].path()));
    }

    #[test]
    fn what_cannot_be_found_is_named() {
        let err = resolve("io.containerd.none.v9", None, "/nowhere").expect_err("missing");
        assert!(err.is_unknown());
        assert!(err.text().contains("binary not installed \"containerd-shim-none-v9\""), "{err}");
        assert!(resolve("/no/such/shim", None, "").expect_err("missing").is_unknown());
        assert!(resolve("a/b.c", None, "").expect_err("bad form").is_invalid_argument());
    }
}
