//! Blobs that are not what their record says.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant, SystemTime};

use gantry_core::{Context, Digest, Digester, Namespace};
use gantry_errdefs::Result;
use gantry_store::KvRead;

use super::Upkeep;
use crate::content::{self, blob_name};
use crate::gc::discard_held;
use crate::keys::{self, Kind};
use crate::records::{BlobRecord, decode, time};

/// Bytes hashed between two pauses.
const HASH_PIECE_BYTES: usize = 1 << 20;

/// Which blobs are read to compare their digest; the sizes of all are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlobScan {
    /// None.
    Sizes,
    /// Those that came at this time or later.
    Since(SystemTime),
    /// All.
    All,
}

/// A blob that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadBlob {
    /// Its digest.
    pub digest: Digest,
    /// The namespaces that hold it.
    pub namespaces: Vec<String>,
    /// What is wrong with it.
    pub reason: String,
    /// Whether only reading it tells.
    by_content: bool,
}

/// A blob by its records.
struct Recorded {
    size: u64,
    newest: SystemTime,
    namespaces: Vec<String>,
}

impl Upkeep {
    /// The blobs whose file is gone, or has another size or content than its record says. Reading
    /// takes at most half of the disk's time.
    ///
    /// # Errors
    /// DataLoss or Unavailable when the database can't be read.
    pub async fn bad_blobs(&self, scan: BlobScan) -> Result<Vec<BadBlob>> {
        let mut bad = Vec::new();
        for (digest, recorded) in self.recorded_blobs()? {
            let digest: Digest = digest.parse()?;
            let by_content = match scan {
                BlobScan::Sizes => false,
                BlobScan::Since(time) => recorded.newest >= time,
                BlobScan::All => true,
            };
            if let Some(reason) = self.problem(&digest, recorded.size, by_content).await {
                let namespaces = recorded.namespaces;
                bad.push(BadBlob { digest, namespaces, reason, by_content });
            }
        }
        Ok(bad)
    }

    /// Takes a bad blob out of every namespace and off the disk, so that the next pull fetches it
    /// again. False when it turns out to be good by now, or is in use.
    ///
    /// # Errors
    /// Those of the database and of the backend.
    pub async fn drop_blob(&self, bad: &BadBlob) -> Result<bool> {
        let name = blob_name(bad.digest.as_str());
        let Some(_guard) = self.db.shared.inflight.try_exclusive(&name) else { return Ok(false) };
        let Some(recorded) = self.recorded_blobs()?.remove(bad.digest.as_str()) else {
            return Ok(false);
        };
        if self.problem(&bad.digest, recorded.size, bad.by_content).await.is_none() {
            return Ok(false);
        }
        let digest = bad.digest.clone();
        self.db
            .write(move |tx| {
                for namespace in recorded.namespaces {
                    content::remove(tx, &Namespace::new(namespace)?, digest.as_str())?;
                }
                Ok(())
            })
            .await?;
        // The collector would do it; but whoever pulls next must not find the bad file first.
        discard_held(&self.db, &bad.digest).await?;
        Ok(true)
    }

    fn recorded_blobs(&self) -> Result<BTreeMap<String, Recorded>> {
        let mut all: BTreeMap<String, Recorded> = BTreeMap::new();
        self.db.view()?.scan(&keys::all(Kind::Blob), &mut |key, value| {
            let [namespace, digest] = keys::parts(key)?;
            let record: BlobRecord = decode(value, &format!("content {digest}"))?;
            let came = time(record.created_at);
            let entry = all.entry(digest).or_insert_with(|| Recorded {
                size: record.size,
                newest: came,
                namespaces: Vec::new(),
            });
            entry.newest = entry.newest.max(came);
            entry.namespaces.push(namespace);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(all)
    }

    /// What is wrong with a blob. An error that says nothing about the blob is nothing wrong.
    async fn problem(&self, digest: &Digest, size: u64, by_content: bool) -> Option<String> {
        let content = &self.db.shared.content;
        match content.info(digest).await {
            Ok(info) if info.size != size => {
                return Some(format!("its file has {} bytes, its record {size}", info.size));
            }
            Ok(_) => {}
            Err(err) if err.is_not_found() => return Some("its file is gone".to_owned()),
            Err(err) => {
                tracing::warn!(%digest, %err, "not verified");
                return None;
            }
        }
        if !by_content {
            return None;
        }
        match self.hash(digest).await {
            Ok(found) if found == *digest => None,
            Ok(found) => Some(format!("its content has the digest {found}")),
            Err(err) if err.is_data_loss() || is_disk_error(&err) => {
                Some(format!("its content cannot be read: {}", err.message()))
            }
            Err(err) => {
                tracing::warn!(%digest, %err, "not verified");
                None
            }
        }
    }

    async fn hash(&self, digest: &Digest) -> Result<Digest> {
        let reader = self.db.shared.content.reader(digest).await?;
        let size = reader.size();
        let mut digester = Digester::new(digest.algorithm());
        let mut offset = 0;
        while offset < size {
            let begun = Instant::now();
            let piece = reader.read_at(offset, HASH_PIECE_BYTES).await?;
            if piece.is_empty() {
                break;
            }
            offset += piece.len() as u64;
            digester.update(&piece);
            // Others want the disk too.
            tokio::time::sleep(begun.elapsed().min(PAUSE_MAX)).await;
        }
        Ok(digester.finish())
    }

    /// Whether any namespace holds the blob and its file is of its size.
    pub(super) async fn has_blob(&self, digest: &Digest) -> Result<bool> {
        let Some(recorded) = self.recorded_blobs()?.remove(digest.as_str()) else {
            return Ok(false);
        };
        Ok(self.problem(digest, recorded.size, false).await.is_none())
    }

    /// The blobs of a namespace with the digest of the tar in each, as far as labels tell.
    pub(super) async fn tars(&self, ctx: &Context) -> Result<Vec<(Digest, Digest)>> {
        let blobs = self.db.content().list(ctx, &[]).await?;
        Ok(blobs
            .into_iter()
            .map(|info| {
                let label = info.labels.get(LABEL_UNCOMPRESSED).and_then(|d| d.parse().ok());
                (label.unwrap_or_else(|| info.digest.clone()), info.digest)
            })
            .collect())
    }
}

/// The label on a compressed layer that tells the digest of its tar.
const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Longest pause between two pieces.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// Whether an error comes from the disk itself.
fn is_disk_error(err: &gantry_errdefs::Error) -> bool {
    const EIO: i32 = 5;
    let source = std::error::Error::source(err);
    let io = source.and_then(|e| e.downcast_ref::<std::io::Error>());
    io.is_some_and(|e| e.raw_os_error() == Some(EIO))
}
