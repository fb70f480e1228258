//! Applying layers onto mounts, and writing the difference of mounts as a layer.

mod chain;
mod erofs;
mod place;

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use gantry_archive::{
    Applied, ApplyOptions, Changes, Compression, DiffOptions, Diffed, Lowers, Target,
};
use gantry_content::WriterOptions;
use gantry_core::{Any, Context, Descriptor, Labels, media_types};
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_layout::ArchiveOut;
use gantry_metadata::{ContentWriter, Db};
use gantry_mount::{Mount, TempMount, TempRoot};
use gantry_snapshots::LayerOrigin;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;

pub use self::chain::Differs;
pub use self::erofs::ErofsDiffer;
pub(crate) use self::place::lower_dirs;
use self::place::{Place, overlay_changes, place};
use crate::lease;
use crate::processors::{self, Processors};
use crate::unfinished::Unfinished;
use crate::unpack::unique;

/// Label on a compressed layer: the digest of the tar within.
pub(crate) const LABEL_UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// Layers of the content store applied or written at once. Each keeps two threads and a disk busy;
/// more would only make them wait for each other.
const LOCAL_COUNT_MAX: usize = 8;

/// Layers applied at once while they come from elsewhere. They mostly wait, and must not keep
/// those at hand waiting; the bound is on threads and buffers (some 2 MiB each).
const STREAM_COUNT_MAX: usize = 64;

/// Pieces of a layer between the thread that writes it and the content store.
const PIECE_COUNT_MAX: usize = 8;

/// Bytes of one such piece.
const PIECE_BYTES: usize = 256 << 10;

/// Applies layers onto mounts and writes layers from them. Cheap to clone; clones share the
/// bound on work at once.
#[derive(Clone, Debug)]
pub struct Differ {
    db: Db,
    temp: TempRoot,
    processors: Processors,
    local: Arc<Semaphore>,
    ahead: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// Where the bytes of a layer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The content store.
    Store,
    /// The content store as well, for a layer whose turn has not come.
    Ahead,
    /// A registry or a client.
    Elsewhere,
}

/// How to write a layer.
#[derive(Clone, Debug, Default)]
pub struct DiffRequest {
    /// Media type of the layer: an OCI or Docker layer type; empty is OCI with gzip.
    pub media_type: String,
    /// Reference of the ingest; empty invents one.
    pub reference: String,
    /// Labels of the blob.
    pub labels: Labels,
    /// Latest time of modification, in seconds since 1970.
    pub source_date_epoch: Option<i64>,
}

/// How to apply a layer.
#[derive(Clone, Debug, Default)]
pub struct ApplyRequest {
    /// Have the files on disk when the call returns.
    pub sync: bool,
    /// What stream processors are told of this layer, by their names: keys to decrypt it, say.
    pub payloads: BTreeMap<String, Any>,
}

/// Applies layers and makes them: [`Differ`], or one in another process.
#[async_trait]
pub trait LayerDiffer: Send + Sync + 'static {
    /// Applies the layer `layer` of the content store onto `mounts` and describes the tar within
    /// (media type, diff ID, size).
    ///
    /// # Errors
    /// Unimplemented for a layer it cannot read: the next differ is tried then. NotFound for a missing
    /// blob; else what failed.
    async fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        request: ApplyRequest,
    ) -> Result<Descriptor>;

    /// Writes the layer that makes `left` into `right` into the content store and describes it.
    /// A compressed one is labelled with its diff ID.
    ///
    /// # Errors
    /// Unimplemented for a layer it cannot make: the next differ is tried then. Unavailable while the
    /// reference is locked; else what failed.
    async fn diff(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        request: DiffRequest,
    ) -> Result<Descriptor>;
}

#[async_trait]
impl LayerDiffer for Differ {
    async fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        request: ApplyRequest,
    ) -> Result<Descriptor> {
        let reader = self.open(ctx, layer, &request.payloads).await?;
        let stop = Stop::default();
        let _stopped = stop.clone().on_drop();
        let (mounts_of, sync) = (mounts.to_vec(), request.sync);
        let applied = self.apply_until(reader, Origin::Store, mounts_of, sync, stop).await?;
        let size = i64::try_from(applied.size).unwrap_or(i64::MAX);
        let blob = Some(layer.digest.clone());
        self.db.note_applied(mounts, LayerOrigin { diff_id: applied.diff_id.clone(), blob });
        Ok(Descriptor::new(media_types::OCI_LAYER, applied.diff_id, size))
    }

    async fn diff(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        request: DiffRequest,
    ) -> Result<Descriptor> {
        let mut media_type = request.media_type.clone();
        if media_type.is_empty() {
            media_types::OCI_LAYER_GZIP.clone_into(&mut media_type);
        }
        let compression = Compression::of_media_type(&media_type).ok_or_else(|| {
            Error::unimplemented(format!("unsupported diff media type {media_type:?}"))
        })?;
        let (ctx, own) = lease::ensure(&self.db, ctx).await?;
        let options = DiffOptions {
            compression,
            source_date_epoch: request.source_date_epoch,
            ..DiffOptions::default()
        };
        // Once it ends the blob is the caller's to keep, by a lease of theirs or a label.
        let diffed = own.end(self.diff_into(&ctx, left, right, options, &request).await).await?;
        let size = i64::try_from(diffed.size).unwrap_or(i64::MAX);
        Ok(Descriptor::new(media_type, diffed.digest, size))
    }
}

impl Differ {
    /// A differ that reads and writes content in `db` and mounts under `temp` where it must.
    pub fn new(db: Db, temp: TempRoot) -> Self {
        let local = Arc::new(Semaphore::new(LOCAL_COUNT_MAX));
        let streams = Arc::new(Semaphore::new(STREAM_COUNT_MAX));
        // One a core: each keeps two threads busy, and those whose turn it is come on top.
        let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
        let ahead = Arc::new(Semaphore::new(cores.min(LOCAL_COUNT_MAX)));
        Self { db, temp, processors: Processors::default(), local, ahead, streams }
    }

    /// The same differ, with programs for layers of other types.
    #[must_use]
    pub fn with_processors(mut self, processors: Processors) -> Self {
        self.processors = processors;
        self
    }

    /// Whether a layer of this type can be applied as its bytes come, by us alone.
    pub(crate) fn reads(&self, media_type: &str) -> bool {
        !self.processors.take(media_type) && Compression::of_media_type(media_type).is_some()
    }

    /// The bytes of a layer of the content store as a tar, compressed or not: through programs if
    /// its type wants them, each of which gets the payload of its name.
    pub(crate) async fn open(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        payloads: &BTreeMap<String, Any>,
    ) -> Result<Box<dyn Read + Send>> {
        let media_type = layer.media_type.clone();
        let chain =
            self.processors.chain(&media_type).context(|| format!("layer {}", layer.digest))?;
        let reader = self.db.content().reader(ctx, &layer.digest).await?.into_blocking();
        if chain.is_empty() {
            return Ok(reader);
        }
        let payloads = payloads.clone();
        let started = tokio::task::spawn_blocking(move || {
            processors::through(reader, &media_type, &chain, &payloads)
        });
        joined(started.await)
    }

    /// Applies a layer read from `reader` onto `mounts`. When the future is dropped the work ends
    /// at the next bytes read.
    ///
    /// # Errors
    /// As [`gantry_archive::apply`].
    pub async fn apply_stream(
        &self,
        reader: Box<dyn Read + Send>,
        mounts: Vec<Mount>,
        sync: bool,
    ) -> Result<Applied> {
        let stop = Stop::default();
        let _stopped = stop.clone().on_drop();
        self.apply_until(reader, Origin::Elsewhere, mounts, sync, stop).await
    }

    /// As [`Self::apply_stream`], ended by `stop` and not by dropping.
    pub(crate) async fn apply_until(
        &self,
        reader: Box<dyn Read + Send>,
        origin: Origin,
        mounts: Vec<Mount>,
        sync: bool,
        stop: Stop,
    ) -> Result<Applied> {
        let slot = self.slot(origin).await?;
        let temp = self.temp.clone();
        let reader = Stoppable { inner: reader, stop };
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            apply_to(reader, &mounts, &temp, sync)
        });
        joined(work.await)
    }

    /// Writes the layer that makes `left` into `right` to `out`.
    ///
    /// # Errors
    /// As [`gantry_archive::diff()`]; the errors of `out`.
    pub(crate) async fn diff_to(
        &self,
        left: &[Mount],
        right: &[Mount],
        compression: Compression,
        source_date_epoch: Option<i64>,
        mut out: impl ArchiveOut,
    ) -> Result<Diffed> {
        let options = DiffOptions { compression, source_date_epoch, ..DiffOptions::default() };
        let (work, mut arriving) = self.start_diff(left, right, options).await?;
        let written = async {
            while let Some(piece) = arriving.recv().await {
                out.put(piece).await?;
            }
            out.flush().await
        };
        let written = written.await;
        drop(arriving);
        let diffed = joined(work.await);
        written?;
        diffed
    }

    /// Begins to compare on a thread of its own; the layer comes in pieces. The channel ends when
    /// the thread does, and dropping the receiving end ends the thread.
    async fn start_diff(
        &self,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
    ) -> Result<(JoinHandle<Result<Diffed>>, mpsc::Receiver<Bytes>)> {
        let slot = self.slot(Origin::Store).await?;
        let (mut out, arriving) = Pieces::new();
        let temp = self.temp.clone();
        let (left, right) = (left.to_vec(), right.to_vec());
        let work = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            diff_mounts(&left, &right, &temp, &mut out, &options)
        });
        Ok((work, arriving))
    }

    async fn diff_into(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        options: DiffOptions,
        request: &DiffRequest,
    ) -> Result<Diffed> {
        let named = !request.reference.is_empty();
        let reference = if named { request.reference.clone() } else { unique("diff") };
        let content = self.db.content();
        let open = WriterOptions { reference, ..WriterOptions::default() };
        // What the client has named is the client's to go on with or to drop.
        let (unfinished, mut writer) = if named {
            (None, content.writer(ctx, open).await?)
        } else {
            let (unfinished, writer) = Unfinished::open(&self.db, ctx, open).await?;
            (Some(unfinished), writer)
        };
        writer.truncate(0).await?;
        let compression = options.compression;
        let (work, mut arriving) = self.start_diff(left, right, options).await?;
        let stored = store_pieces(&mut writer, &mut arriving).await;
        drop(arriving);
        let diffed = joined(work.await);
        stored?;
        let diffed = diffed?;
        let mut labels = request.labels.clone();
        if compression != Compression::None {
            labels.insert(LABEL_UNCOMPRESSED.to_owned(), diffed.diff_id.to_string());
        }
        let keys: Vec<String> = labels.keys().map(|k| format!("labels.{k}")).collect();
        let commit = writer.commit(diffed.size, Some(&diffed.digest), labels.clone());
        let committed = match unfinished {
            Some(unfinished) => unfinished.end(commit).await,
            None => commit.await,
        };
        match committed {
            Err(err) if err.is_already_exists() => {
                if !keys.is_empty() {
                    content.update(ctx, &diffed.digest, labels, &keys).await?;
                }
            }
            committed => drop(committed?),
        }
        Ok(diffed)
    }

    pub(crate) async fn slot(&self, origin: Origin) -> Result<tokio::sync::OwnedSemaphorePermit> {
        let slots = match origin {
            Origin::Store => Arc::clone(&self.local),
            Origin::Ahead => Arc::clone(&self.ahead),
            Origin::Elsewhere => Arc::clone(&self.streams),
        };
        slots.acquire_owned().await.map_err(|_| Error::unavailable("the differ is closed"))
    }
}

/// Writes what arrives.
///
/// # Errors
/// The content store's.
pub(crate) async fn store_pieces(
    writer: &mut ContentWriter,
    arriving: &mut mpsc::Receiver<Bytes>,
) -> Result<()> {
    while let Some(piece) = arriving.recv().await {
        writer.write(piece).await?;
    }
    Ok(())
}

/// The result of blocking work; a panic goes on in the caller.
pub(crate) fn joined<T>(result: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    match result {
        Ok(result) => result,
        Err(err) if err.is_panic() => std::panic::resume_unwind(err.into_panic()),
        Err(_) => Err(Error::unavailable("the daemon is stopping")),
    }
}

/// Writes to a channel of pieces. What was not flushed does not arrive.
pub(crate) struct Pieces {
    pieces: mpsc::Sender<Bytes>,
    buf: Vec<u8>,
}

impl Pieces {
    /// Both ends of a channel.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Bytes>) {
        let (pieces, arriving) = mpsc::channel(PIECE_COUNT_MAX);
        (Self { pieces, buf: Vec::with_capacity(PIECE_BYTES) }, arriving)
    }
}

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let len = data.len().min(PIECE_BYTES - self.buf.len());
        self.buf.extend_from_slice(&data[..len]);
        if self.buf.len() == PIECE_BYTES {
            self.flush()?;
        }
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.buf.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buf, Vec::with_capacity(PIECE_BYTES));
        self.pieces.blocking_send(piece.into()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }
}

/// Tells blocking work that its result is no longer wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Tells it.
    pub(crate) fn stop(&self) {
        self.0.store(true, Ordering::Release);
    }

    fn is_stopped(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }

    /// Tells it when what this returns is dropped.
    pub(crate) fn on_drop(self) -> StopOnDrop {
        StopOnDrop(self)
    }
}

/// See [`Stop::on_drop`].
pub(crate) struct StopOnDrop(Stop);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop();
    }
}

/// A reader that fails once nobody waits for what is read.
pub(crate) struct Stoppable {
    /// What is read.
    pub(crate) inner: Box<dyn Read + Send>,
    /// Told by whoever waits.
    pub(crate) stop: Stop,
}

impl Read for Stoppable {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.stop.is_stopped() {
            return Err(io::Error::other("the caller went away"));
        }
        self.inner.read(buf)
    }
}

fn apply_to(
    reader: impl Read + Send,
    mounts: &[Mount],
    temp: &TempRoot,
    sync: bool,
) -> Result<Applied> {
    let mut options = ApplyOptions { sync, ..ApplyOptions::default() };
    if mounts.is_empty() {
        return Err(Error::invalid_argument("no mounts to apply the layer onto"));
    }
    if !mounts.iter().all(Mount::is_writable) {
        return Err(Error::failed_precondition("the mounts to apply the layer onto are read-only"));
    }
    match place(mounts) {
        Place::Dir(dir) => gantry_archive::apply(reader, &dir, &options),
        Place::Overlay { upper: Some(upper), lowers, userxattr } => {
            options.target = Target::OverlayUpper { userxattr };
            options.lowers = Lowers::Known(lowers);
            gantry_archive::apply(reader, &upper, &options)
        }
        _ => {
            let mounted = temp.mount(mounts)?;
            let applied = gantry_archive::apply(reader, mounted.path(), &options)?;
            mounted.unmount()?;
            Ok(applied)
        }
    }
}

fn diff_mounts(
    left: &[Mount],
    right: &[Mount],
    temp: &TempRoot,
    out: &mut impl Write,
    options: &DiffOptions,
) -> Result<Diffed> {
    if let Some(changes) = overlay_changes(left, right) {
        match gantry_archive::diff(&changes, &mut *out, options) {
            // Said before anything is written: the upper directory alone does not tell.
            Err(err) if err.is_failed_precondition() => {
                tracing::debug!(%err, "comparing the mounted trees");
            }
            done => return done,
        }
    }
    if right.is_empty() {
        return Err(Error::invalid_argument("no mounts to take the layer from"));
    }
    let right = See::open(right, temp)?;
    let left = if left.is_empty() { None } else { Some(See::open(left, temp)?) };
    let changes = Changes::Trees {
        lower: left.as_ref().map(|l| l.path().to_owned()),
        upper: right.path().to_owned(),
    };
    gantry_archive::diff(&changes, out, options)
}

/// A tree to read: in place where it is a plain directory, else mounted read-only.
enum See {
    Place(PathBuf),
    Mounted(TempMount),
}

impl See {
    fn open(mounts: &[Mount], temp: &TempRoot) -> Result<Self> {
        match place(mounts) {
            Place::Dir(dir) => Ok(Self::Place(dir)),
            _ => temp.mount_readonly(mounts).map(Self::Mounted),
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Place(path) => path,
            Self::Mounted(mount) => mount.path(),
        }
    }
}
