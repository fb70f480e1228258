//! The directory of blobs.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use gantry_core::{Algorithm, Digest};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::durable;
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::Info;

const ALGORITHMS: [Algorithm; 3] = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];

/// Name of the list of blobs that are not ours.
const FOREIGN: &str = "foreign";

/// Name of a blob that is being restored.
const FRESH: &str = "restored";

/// Files held open to be synced together.
const SYNCED_TOGETHER_MAX: usize = 128;

/// `blobs/<algorithm>/<hex>`.
#[derive(Debug)]
pub(super) struct Blobs {
    dir: PathBuf,
    /// Blobs that were here before us. They can be read, but are neither walked nor deleted.
    foreign: HashSet<Digest>,
    /// Renames whose directory is not synced yet.
    unsynced: AtomicU64,
    /// Blobs whose making durable was left to those who committed them.
    deferred: Mutex<HashMap<Digest, u64>>,
    /// Numbers the entries of `deferred`: a blob that was deleted and committed again is another.
    committed: AtomicU64,
}

impl Blobs {
    pub(super) fn open(root: &Path) -> Result<Self> {
        let dir = root.join("blobs");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .context(|| root.display().to_string())?;
        for algorithm in ALGORITHMS {
            let path = dir.join(algorithm.as_str());
            fs::create_dir_all(&path).context(|| path.display().to_string())?;
        }
        // Names of directories have to be durable before blobs in them are.
        durable::sync_dir(&dir).context(|| dir.display().to_string())?;
        durable::sync_dir(root).context(|| root.display().to_string())?;
        let mut blobs = Self {
            dir,
            foreign: HashSet::new(),
            unsynced: AtomicU64::new(0),
            deferred: Mutex::default(),
            committed: AtomicU64::new(0),
        };
        blobs.foreign = blobs.load_foreign(&root.join(FOREIGN))?;
        Ok(blobs)
    }

    /// The list of blobs that are not ours, made at the first start.
    fn load_foreign(&self, path: &Path) -> Result<HashSet<Digest>> {
        let what = || path.display().to_string();
        if let Some(text) = durable::read_optional(path).context(what)? {
            let text = String::from_utf8_lossy(&text).into_owned();
            return text.lines().map(|line| line.parse::<Digest>().context(what)).collect();
        }
        let found: Vec<Digest> = self.list()?.into_iter().map(|info| info.digest).collect();
        if !found.is_empty() {
            tracing::warn!(count = found.len(), "blobs of another daemon are left alone");
        }
        let text: String = found.iter().map(|digest| format!("{digest}\n")).collect();
        durable::write_atomic(path, text.as_bytes(), 0o600).context(what)?;
        Ok(found.into_iter().collect())
    }

    pub(super) fn info(&self, digest: &Digest) -> Result<Info> {
        let meta = fs::metadata(self.path(digest)).map_err(|e| blob_error(digest, e))?;
        info(digest.clone(), &meta)
    }

    pub(super) fn open_blob(&self, digest: &Digest) -> Result<File> {
        File::open(self.path(digest)).map_err(|e| blob_error(digest, e))
    }

    /// The removal is not synced: a blob that a power cut brings back is garbage like any other,
    /// and goes with the next collection.
    pub(super) fn delete(&self, digest: &Digest) -> Result<()> {
        if self.foreign.contains(digest) {
            return self.info(digest).map(drop);
        }
        gantry_failpoint::hit("content.blob.delete").map_err(|e| blob_error(digest, e))?;
        fs::remove_file(self.path(digest)).map_err(|e| blob_error(digest, e))?;
        self.deferred().remove(digest);
        Ok(())
    }

    pub(super) fn list(&self) -> Result<Vec<Info>> {
        let mut all = Vec::new();
        for algorithm in ALGORITHMS {
            let dir = self.dir.join(algorithm.as_str());
            for entry in fs::read_dir(&dir).context(|| dir.display().to_string())? {
                let entry = entry.context(|| dir.display().to_string())?;
                let name = entry.file_name();
                let text = format!("{}:{}", algorithm.as_str(), name.to_string_lossy());
                let Ok(digest) = text.parse::<Digest>() else {
                    tracing::warn!(path = %entry.path().display(), "not a blob, ignored");
                    continue;
                };
                if self.foreign.contains(&digest) {
                    continue;
                }
                match entry.metadata() {
                    Ok(meta) => all.push(info(digest, &meta)?),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(blob_error(&digest, e)),
                }
            }
        }
        Ok(all)
    }

    /// Whether the blob is there, durably: a commit that has renamed it and not yet synced the
    /// directory is helped along first.
    pub(super) fn exists(&self, digest: &Digest) -> Result<bool> {
        let path = self.path(digest);
        if !path.try_exists().map_err(|e| blob_error(digest, e))? {
            return Ok(false);
        }
        if self.is_deferred(digest) {
            self.settle(std::slice::from_ref(digest))?;
        } else if self.unsynced.load(Ordering::Acquire) > 0 {
            self.sync(digest)?;
        }
        Ok(true)
    }

    /// Gives the synced file `data` the name of blob `digest` and makes the name durable. False
    /// when the blob exists already; `data` is then untouched.
    pub(super) fn publish(&self, data: &Path, digest: &Digest) -> Result<bool> {
        gantry_failpoint::hit("content.blob.rename").map_err(|e| blob_error(digest, e))?;
        self.unsynced.fetch_add(1, Ordering::AcqRel);
        let result = match renameat_with(CWD, data, CWD, self.path(digest), RenameFlags::NOREPLACE)
        {
            Ok(()) => self.sync(digest).map(|()| true),
            Err(rustix::io::Errno::EXIST) => self.sync(digest).map(|()| false),
            Err(e) => Err(Error::io(format!("blob {digest}: rename"), e.into())),
        };
        self.unsynced.fetch_sub(1, Ordering::AcqRel);
        result
    }

    /// As [`Blobs::publish`], for a file that is not synced; neither is its name.
    pub(super) fn publish_deferred(&self, data: &Path, digest: &Digest) -> Result<bool> {
        // Noted before the name is seen.
        let number = self.committed.fetch_add(1, Ordering::Relaxed);
        self.deferred().insert(digest.clone(), number);
        match renameat_with(CWD, data, CWD, self.path(digest), RenameFlags::NOREPLACE) {
            Ok(()) => Ok(true),
            // Whose it is, is not known here: it stays noted and is synced like the others.
            Err(rustix::io::Errno::EXIST) => {
                self.settle(std::slice::from_ref(digest))?;
                Ok(false)
            }
            Err(e) => {
                self.deferred().remove(digest);
                Err(Error::io(format!("blob {digest}: rename"), e.into()))
            }
        }
    }

    /// Makes deferred blobs durable; others are so already.
    pub(super) fn settle(&self, digests: &[Digest]) -> Result<()> {
        let due: Vec<(&Digest, u64)> = {
            let deferred = self.deferred();
            digests.iter().filter_map(|d| Some((d, *deferred.get(d)?))).collect()
        };
        self.sync_files(due.iter().map(|(digest, _)| *digest))?;
        let mut deferred = self.deferred();
        for (digest, number) in due {
            if deferred.get(digest) == Some(&number) {
                deferred.remove(digest);
            }
        }
        Ok(())
    }

    /// Syncs blobs and their directories; those that are gone are left out. Each file is handed to
    /// the disk before the first is waited for, so that the filesystem commits them together.
    fn sync_files<'a>(&self, digests: impl Iterator<Item = &'a Digest>) -> Result<()> {
        let digests: Vec<&Digest> = digests.collect();
        for some in digests.chunks(SYNCED_TOGETHER_MAX) {
            let mut files = Vec::new();
            for digest in some {
                match File::open(self.path(digest)) {
                    Ok(file) => files.push((digest, file)),
                    Err(e) if e.kind() == io::ErrorKind::NotFound => {}
                    Err(e) => return Err(blob_error(digest, e)),
                }
            }
            for (_, file) in &files {
                durable::start_writeback(file, 0, 0);
            }
            for (digest, file) in files {
                file.sync_all().map_err(|e| blob_error(digest, e))?;
            }
        }
        for algorithm in ALGORITHMS {
            if let Some(digest) = digests.iter().find(|d| d.algorithm() == algorithm) {
                self.sync(digest)?;
            }
        }
        Ok(())
    }

    /// Makes the blobs be there with these bytes, durably. One caller at a time.
    pub(super) fn restore(&self, blobs: &[(Digest, Bytes)]) -> Result<()> {
        let fresh = self.dir.join(FRESH);
        for (digest, bytes) in blobs {
            let path = self.path(digest);
            let what = || format!("blob {digest}: restore");
            let found = durable::read_optional(&path).context(what)?;
            if found.is_some_and(|found| found == *bytes) {
                continue;
            }
            tracing::warn!(%digest, "a power cut took this blob, it is made anew");
            gantry_failpoint::hit("content.blob.restore").context(what)?;
            fs::write(&fresh, bytes).context(what)?;
            fs::set_permissions(&fresh, fs::Permissions::from_mode(0o444)).context(what)?;
            fs::rename(&fresh, &path).context(what)?;
        }
        self.sync_files(blobs.iter().map(|(digest, _)| digest))
    }

    fn is_deferred(&self, digest: &Digest) -> bool {
        self.deferred().contains_key(digest)
    }

    fn deferred(&self) -> MutexGuard<'_, HashMap<Digest, u64>> {
        // Single map operations only.
        self.deferred.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sync(&self, digest: &Digest) -> Result<()> {
        let dir = self.dir.join(digest.algorithm().as_str());
        gantry_failpoint::hit("content.blob.sync-dir")
            .and_then(|()| durable::sync_dir(&dir))
            .context(|| format!("blob {digest}: sync {}", dir.display()))
    }

    fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.algorithm().as_str()).join(digest.hex())
    }
}

fn info(digest: Digest, meta: &fs::Metadata) -> Result<Info> {
    let modified = meta.modified().context(|| format!("blob {digest}"))?;
    Ok(Info { digest, size: meta.len(), created_at: modified, updated_at: modified })
}

fn blob_error(digest: &Digest, err: io::Error) -> Error {
    if err.kind() == io::ErrorKind::NotFound {
        return Error::not_found(format!("content {digest}"));
    }
    Error::io(format!("content {digest}"), err)
}
