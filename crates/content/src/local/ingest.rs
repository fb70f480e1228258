//! The directory of ingests.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use gantry_core::Digest;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::durable::read_optional;

use crate::Status;

/// `ingest/<sha256 of the reference>`.
#[derive(Debug)]
pub(super) struct Ingests {
    dir: PathBuf,
    /// Numbers the names of ingests being removed and of fresh files.
    numbers: AtomicU64,
}

/// One ingest on disk.
#[derive(Clone, Debug)]
pub(super) struct Ingest(PathBuf);

impl Ingests {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let dir = root.join("ingest");
        fs::create_dir_all(&dir).context(|| dir.display().to_string())?;
        let ingests = Self { dir, numbers: AtomicU64::new(0) };
        ingests.clean()?;
        Ok(ingests)
    }

    /// A file for bytes that become a blob without having been an ingest on disk. Its name begins
    /// with a dot, so that it is no ingest and the next start removes it.
    pub(super) fn fresh_file(&self) -> PathBuf {
        self.dir.join(format!(".new-{}", self.numbers.fetch_add(1, Ordering::Relaxed)))
    }

    /// Where the ingest of `reference` is, whether it exists or not.
    pub(super) fn at(&self, reference: &str) -> Ingest {
        Ingest(self.dir.join(Digest::of(reference.as_bytes()).hex()))
    }

    pub(super) fn status(&self, reference: &str) -> Result<Status> {
        self.at(reference)
            .status()?
            .ok_or_else(|| Error::not_found(format!("ingest ref {reference:?}")))
    }

    pub(super) fn list(&self) -> Result<Vec<Status>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).context(|| self.dir.display().to_string())? {
            let entry = entry.context(|| self.dir.display().to_string())?;
            if entry.file_name().as_encoded_bytes().starts_with(b".") {
                continue;
            }
            all.extend(Ingest(entry.path()).status()?);
        }
        Ok(all)
    }

    /// Removes an ingest: out of sight by one rename, then from disk.
    pub(super) fn remove(&self, reference: &str) -> Result<()> {
        let ingest = self.at(reference);
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let gone = self.dir.join(format!(".removed-{number}"));
        gantry_failpoint::hit("content.ingest.remove").context(|| gone.display().to_string())?;
        match fs::rename(&ingest.0, &gone) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("ingest ref {reference:?}")));
            }
            Err(e) => return Err(Error::io(format!("ingest ref {reference:?}: abort"), e)),
        }
        fs::remove_dir_all(&gone).context(|| gone.display().to_string())
    }

    /// Removes what is no whole ingest.
    fn clean(&self) -> Result<()> {
        for entry in fs::read_dir(&self.dir).context(|| self.dir.display().to_string())? {
            let path = entry.context(|| self.dir.display().to_string())?.path();
            let hidden = path.file_name().is_some_and(|n| n.as_encoded_bytes().starts_with(b"."));
            if hidden || !path.join("data").exists() || !path.join("ref").exists() {
                tracing::info!(path = %path.display(), "removing an incomplete ingest");
                let removed =
                    if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.context(|| path.display().to_string())?;
            }
        }
        Ok(())
    }
}

impl Ingest {
    /// The file of bytes.
    pub(super) fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Opens the bytes for reading and writing; None when there is no such ingest on disk.
    pub(super) fn open(&self, reference: &str) -> Result<Option<File>> {
        match OpenOptions::new().read(true).write(true).open(self.data()) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io(format!("ingest ref {reference:?}: {}", self.0.display()), e)),
        }
    }

    /// Makes the ingest, begun at `started_at`, and opens its bytes for reading and writing.
    pub(super) fn make(&self, reference: &str, total: u64, started_at: SystemTime) -> Result<File> {
        let what = || format!("ingest ref {reference:?}: {}", self.0.display());
        gantry_failpoint::hit("content.ingest.create").context(what)?;
        match fs::create_dir(&self.0) {
            Err(e) if e.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io(what(), e));
            }
            _ => {}
        }
        self.put("ref", reference).context(what)?;
        if total > 0 {
            self.put("total", &total.to_string()).context(what)?;
        }
        let started_at = jiff::Timestamp::try_from(started_at).unwrap_or_default();
        self.put("startedat", &started_at.to_string()).context(what)?;
        self.put("updatedat", &now()).context(what)?;
        OpenOptions::new().read(true).write(true).create_new(true).open(self.data()).context(what)
    }

    /// The state on disk; `None` when there is none, or it comes or goes right now.
    pub(super) fn status(&self) -> Result<Option<Status>> {
        let what = || self.0.display().to_string();
        let data = match fs::metadata(self.data()) {
            Ok(data) => data,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io(what(), e)),
        };
        let Some(reference) = self.get("ref").context(what)? else { return Ok(None) };
        let written_at = data.modified().context(what)?;
        let started_at = self
            .get("startedat")
            .context(what)?
            .and_then(|t| t.trim().parse::<jiff::Timestamp>().ok())
            .map_or(written_at, SystemTime::from);
        // File times come from a coarser clock and may lag behind.
        let updated_at = written_at.max(started_at);
        let total = self.get("total").context(what)?.and_then(|t| t.trim().parse().ok());
        Ok(Some(Status {
            reference,
            offset: data.len(),
            total: total.unwrap_or(0),
            expected: None,
            started_at,
            updated_at,
        }))
    }

    /// Notes the time of the last write, for those who read the file.
    pub(super) fn touch(&self) {
        if let Err(err) = self.put("updatedat", &now()) {
            tracing::debug!(path = %self.0.display(), %err, "updatedat not written");
        }
    }

    /// Removes the directory; what cannot be removed is left to the next start.
    pub(super) fn discard(&self) {
        if let Err(err) = fs::remove_dir_all(&self.0)
            && err.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = %self.0.display(), %err, "ingest not removed");
        }
    }

    fn put(&self, name: &str, text: &str) -> io::Result<()> {
        fs::write(self.0.join(name), text)
    }

    fn get(&self, name: &str) -> io::Result<Option<String>> {
        Ok(read_optional(&self.0.join(name))?.map(|b| String::from_utf8_lossy(&b).into_owned()))
    }
}

fn now() -> String {
    jiff::Timestamp::now().to_string()
}
