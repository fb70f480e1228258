//! Docker's certificate files: `*.crt` are authorities, `*.cert` with `*.key` client pairs.

use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};

use crate::client::TlsFiles;

/// The certificate files of a directory, in name order.
pub(super) fn find(dir: &Path) -> Result<TlsFiles> {
    let shown = || dir.display().to_string();
    let mut files = TlsFiles::default();
    let mut paths: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(dir).context(shown)? {
        paths.push(entry.context(shown)?.path());
    }
    paths.sort();
    for path in paths {
        match path.extension().and_then(|e| e.to_str()) {
            Some("crt") => files.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                if !key.is_file() {
                    return Err(Error::invalid_argument(format!(
                        "client certificate {}: its key {} is missing",
                        path.display(),
                        key.display()
                    )));
                }
                files.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    Ok(files)
}
