//! The id of this installation: made once, kept below the root, told by introspection.

use std::fs::{DirBuilder, File};
use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

use gantry_errdefs::{Result, ResultExt as _};
use uuid::Uuid;

/// Where the id lives, below the root; containerd's own place.
const DIR: &str = "io.containerd.grpc.v1.introspection";

/// Reads the id, or makes it durably. A damaged file gets a new id.
///
/// # Errors
/// The I/O error.
pub(crate) fn load_or_create(root: &Path) -> Result<String> {
    let dir = root.join(DIR);
    let path = dir.join("uuid");
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            if let Ok(id) = Uuid::parse_str(text.trim()) {
                return Ok(id.to_string());
            }
            tracing::warn!(path = %path.display(), "not a uuid, making a new one");
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(e).context(|| path.display().to_string()),
    }
    let id = Uuid::new_v4().to_string();
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&dir)
        .context(|| dir.display().to_string())?;
    let staging = dir.join("uuid~");
    let write = || -> std::io::Result<()> {
        gantry_failpoint::hit("daemon.identity")?;
        let mut file = File::create(&staging)?;
        file.write_all(id.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&staging, &path)?;
        File::open(&dir)?.sync_all()
    };
    write().context(|| path.display().to_string())?;
    Ok(id)
}
