//! Output of containers, in a file each.

use std::path::{Path, PathBuf};

use gantry_client::{Error, Result};
use gantry_libcontainerd::DirectIo;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

/// The file of a container.
pub(crate) fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join("logs").join(name)
}

/// Appends what a container writes to its file, until it ends.
pub(crate) fn keep(path: PathBuf, io: DirectIo) {
    tokio::spawn(async move {
        let (out, err) = (copy(&path, io.stdout), copy(&path, io.stderr));
        if let (Err(e), _) | (_, Err(e)) = tokio::join!(out, err) {
            eprintln!("engine: {}: {e}", path.display());
        }
    });
}

async fn copy(path: &Path, from: Option<impl AsyncRead + Unpin>) -> Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let io = |e| Error::io(path.display(), e);
    let mut file: File =
        OpenOptions::new().create(true).append(true).open(path).await.map_err(io)?;
    let mut buffer = vec![0; 32 << 10];
    loop {
        let count = from.read(&mut buffer).await.map_err(io)?;
        if count == 0 {
            return Ok(());
        }
        file.write_all(&buffer[..count]).await.map_err(io)?;
        file.flush().await.map_err(io)?;
    }
}
