//! Blobs.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::gantry::services::documents::v1 as documents;
use gantry_api::gantry::services::documents::v1::documents_client::DocumentsClient;
use gantry_core::{Descriptor, Digest, Labels};
use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::client::{Client, handle, service};
use crate::convert::{
    cut_off, is_disconnected, label_map, label_mask, labels, required, status, time,
};

/// Size of the pieces that are written, in bytes; far below the message limit, large enough that
/// the cost of a message does not count.
const CHUNK_SIZE: usize = 1 << 20;

/// Messages of one write that may be under way.
const WRITES_QUEUED_MAX: usize = 4;

/// Largest blob that [`Content::read`] keeps in memory, in bytes. Manifests and configs are far
/// smaller; layers are streamed.
const WHOLE_BLOB_SIZE_MAX: i64 = 64 << 20;

/// Blobs asked for in one call by [`Content::read_documents`]; what gantryd takes.
const DOCUMENTS_IN_CALL_MAX: usize = 10_000;

/// How long [`Content::writer`] waits for another writer of the same reference.
const LOCKED_PATIENCE: Duration = Duration::from_secs(30);

/// Pause between two tries for a locked reference.
const LOCKED_POLL_INTERVAL: Duration = Duration::from_millis(100);

handle! {
    /// The content service: blobs by digest, and the writing of new ones.
    Content, content
}

/// A blob's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Digest.
    pub digest: Digest,
    /// Size in bytes.
    pub size: i64,
    /// When the blob was committed.
    pub created_at: SystemTime,
    /// When its labels changed last.
    pub updated_at: SystemTime,
    /// Labels.
    pub labels: Labels,
}

/// The state of a write that is not committed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// The name under which the write can be resumed.
    pub reference: String,
    /// Bytes stored.
    pub offset: i64,
    /// Size the blob will have; 0 when it is not known.
    pub total: i64,
    /// Digest the blob must have; empty when it is not known.
    pub expected: String,
    /// When the write began.
    pub started_at: SystemTime,
    /// When bytes came last.
    pub updated_at: SystemTime,
}

/// What is known of a blob before it is written.
#[derive(Clone, Debug, Default)]
pub struct WriterOptions {
    /// The name under which the write can be resumed; one writer at a time.
    pub reference: String,
    /// Size in bytes; 0 when it is not known.
    pub total: i64,
    /// Digest, when it is known.
    pub expected: Option<Digest>,
}

/// A read under way.
#[derive(Debug)]
pub struct ContentReader {
    pieces: Streaming<wire::ReadContentResponse>,
}

/// A write under way. Dropped before [`ContentWriter::commit`], it can be resumed by reference.
#[derive(Debug)]
pub struct ContentWriter {
    sender: mpsc::Sender<wire::WriteContentRequest>,
    answers: Streaming<wire::WriteContentResponse>,
    options: WriterOptions,
    offset: i64,
}

impl Content {
    /// The record of a blob.
    ///
    /// # Errors
    /// NotFound.
    pub async fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        let request = wire::InfoRequest { digest: digest.to_string() };
        let answer = service!(self.client, ContentClient)
            .info(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        blob_info(required(answer.info, "the blob's record")?)
    }

    /// The blobs that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<BlobInfo>> {
        let request = wire::ListContentRequest { filters: filters.to_vec() };
        let mut pages = service!(self.client, ContentClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        let mut all = Vec::new();
        while let Some(page) = pages.message().await.map_err(status)? {
            for info in page.info {
                all.push(blob_info(info)?);
            }
        }
        Ok(all)
    }

    /// Sets labels; an empty value removes one.
    ///
    /// # Errors
    /// NotFound.
    pub async fn set_labels(&self, digest: &Digest, new: &Labels) -> Result<BlobInfo> {
        let info = wire::Info {
            digest: digest.to_string(),
            labels: label_map(new),
            ..wire::Info::default()
        };
        let request =
            wire::UpdateRequest { info: Some(info), update_mask: Some(label_mask(new.keys())) };
        let answer = service!(self.client, ContentClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        blob_info(required(answer.info, "the blob's record")?)
    }

    /// Removes a blob from the namespace.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, digest: &Digest) -> Result<()> {
        let request = wire::DeleteContentRequest { digest: digest.to_string() };
        service!(self.client, ContentClient)
            .delete(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// A whole blob in memory; for manifests and configs.
    ///
    /// # Errors
    /// NotFound; ResourceExhausted for a blob over 64 MiB.
    pub async fn read(&self, digest: &Digest) -> Result<Bytes> {
        let mut reader = self.read_range(digest, 0, WHOLE_BLOB_SIZE_MAX + 1).await?;
        let mut all = Vec::new();
        while let Some(chunk) = reader.message().await.map_err(status)? {
            all.extend_from_slice(&chunk.data);
            if all.len() as i64 > WHOLE_BLOB_SIZE_MAX {
                let why = format!("blob {digest}: larger than {WHOLE_BLOB_SIZE_MAX} bytes");
                return Err(Error::resource_exhausted(why));
            }
        }
        Ok(all.into())
    }

    /// The bytes of many small blobs, such as manifests and configs, in one call. What is not there,
    /// is large, or is on a daemon that cannot do this is left out: [`Self::read`] has the last word.
    ///
    /// # Errors
    /// The daemon's, other than that it does not know the call.
    pub async fn read_documents(&self, digests: &[Digest]) -> Result<HashMap<Digest, Bytes>> {
        let mut found = HashMap::with_capacity(digests.len());
        for asked in digests.chunks(DOCUMENTS_IN_CALL_MAX) {
            let digests = asked.iter().map(Digest::to_string).collect();
            let request = self.client.request(documents::ReadDocumentsRequest { digests });
            let answer = service!(self.client, DocumentsClient).read(request).await;
            let mut pages = match answer.map_err(status) {
                Err(e) if e.is_unimplemented() => break,
                answer => answer?.into_inner(),
            };
            while let Some(page) = pages.message().await.map_err(status)? {
                for document in page.documents {
                    found.insert(document.digest.parse()?, document.data.into());
                }
            }
        }
        Ok(found)
    }

    /// A blob's bytes from `offset` on, piece by piece.
    ///
    /// # Errors
    /// NotFound; OutOfRange for an offset past the end.
    pub async fn reader(&self, digest: &Digest, offset: i64) -> Result<ContentReader> {
        Ok(ContentReader { pieces: self.read_range(digest, offset, 0).await? })
    }

    /// Hands a blob to `sink`, piece by piece, from `offset` on; returns the number of bytes.
    ///
    /// # Errors
    /// NotFound; OutOfRange for an offset past the end; the sink's own.
    pub async fn read_to(
        &self,
        digest: &Digest,
        offset: i64,
        mut sink: impl AsyncFnMut(Bytes) -> Result<()>,
    ) -> Result<u64> {
        let mut reader = self.read_range(digest, offset, 0).await?;
        let mut total = 0;
        while let Some(chunk) = reader.message().await.map_err(status)? {
            total += chunk.data.len() as u64;
            sink(chunk.data).await?;
        }
        Ok(total)
    }

    /// Up to `len` bytes of a blob at `offset`; fewer only at its end.
    ///
    /// # Errors
    /// NotFound; OutOfRange for an offset past the end; ResourceExhausted for more than 64 MiB.
    pub async fn read_at(&self, digest: &Digest, offset: i64, len: i64) -> Result<Bytes> {
        if len > WHOLE_BLOB_SIZE_MAX {
            let why =
                format!("blob {digest}: {len} bytes asked for, {WHOLE_BLOB_SIZE_MAX} at most");
            return Err(Error::resource_exhausted(why));
        }
        // To the service, 0 bytes are all of them.
        if len <= 0 {
            return Ok(Bytes::new());
        }
        let mut reader = self.read_range(digest, offset, len).await?;
        let mut all = Vec::new();
        while let Some(chunk) = reader.message().await.map_err(status)? {
            all.extend_from_slice(&chunk.data);
        }
        Ok(all.into())
    }

    /// The state of one write.
    ///
    /// # Errors
    /// NotFound.
    pub async fn status(&self, reference: &str) -> Result<IngestStatus> {
        let request = wire::StatusRequest { r#ref: reference.to_owned() };
        let answer = service!(self.client, ContentClient)
            .status(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(ingest(required(answer.status, "the status")?))
    }

    /// The writes under way or left unfinished.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn statuses(&self, filters: &[String]) -> Result<Vec<IngestStatus>> {
        let request = wire::ListStatusesRequest { filters: filters.to_vec() };
        let answer = service!(self.client, ContentClient)
            .list_statuses(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.statuses.into_iter().map(ingest).collect())
    }

    /// Drops a write and its bytes.
    ///
    /// # Errors
    /// NotFound.
    pub async fn abort(&self, reference: &str) -> Result<()> {
        let request = wire::AbortRequest { r#ref: reference.to_owned() };
        service!(self.client, ContentClient)
            .abort(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }

    /// Opens or resumes a write. While someone else writes under the same reference, waits and
    /// tries again, half a minute long.
    ///
    /// # Errors
    /// AlreadyExists when the expected blob is there; Unavailable when the reference stays locked.
    pub async fn writer(&self, options: WriterOptions) -> Result<ContentWriter> {
        let deadline = Instant::now() + LOCKED_PATIENCE;
        loop {
            match ContentWriter::open(&self.client, options.clone()).await {
                Err(e)
                    if e.is_unavailable() && !is_disconnected(&e) && Instant::now() < deadline =>
                {
                    tokio::time::sleep(LOCKED_POLL_INTERVAL).await;
                }
                other => return other,
            }
        }
    }

    /// Writes a blob from memory; one that is there already is fine.
    ///
    /// # Errors
    /// FailedPrecondition when the bytes are not what `descriptor` says.
    pub async fn write_blob(
        &self,
        descriptor: &Descriptor,
        bytes: Bytes,
        blob_labels: &Labels,
    ) -> Result<()> {
        let options = WriterOptions {
            reference: format!("client-{}", descriptor.digest),
            total: descriptor.size,
            expected: Some(descriptor.digest.clone()),
        };
        let written = async {
            let mut writer = self.writer(options).await?;
            writer.restart().await?;
            writer.write(bytes).await?;
            writer.commit(blob_labels).await
        };
        match written.await {
            Err(e) if e.is_already_exists() => {
                if !blob_labels.is_empty() {
                    self.set_labels(&descriptor.digest, blob_labels).await?;
                }
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    async fn read_range(
        &self,
        digest: &Digest,
        offset: i64,
        size: i64,
    ) -> Result<Streaming<wire::ReadContentResponse>> {
        let request = wire::ReadContentRequest { digest: digest.to_string(), offset, size };
        let stream = service!(self.client, ContentClient)
            .read(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(stream.into_inner())
    }
}

impl ContentReader {
    /// The next piece; None at the end.
    ///
    /// # Errors
    /// Unavailable when the daemon goes away; NotFound or OutOfRange, which some daemons tell
    /// here only.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        Ok(self.pieces.message().await.map_err(status)?.map(|piece| piece.data))
    }
}

impl ContentWriter {
    async fn open(client: &Client, options: WriterOptions) -> Result<Self> {
        let (sender, receiver) = mpsc::channel(WRITES_QUEUED_MAX);
        let first = message(&options, wire::WriteAction::Stat);
        sender.try_send(first).expect("an empty queue takes a message");
        let answers = service!(client, ContentClient)
            .write(client.request(ReceiverStream::new(receiver)))
            .await
            .map_err(status)?
            .into_inner();
        let mut writer = Self { sender, answers, options, offset: 0 };
        writer.offset = writer.answer().await?.offset;
        Ok(writer)
    }

    /// Bytes stored so far; more than 0 when a write is resumed, or when the blob is known to
    /// another namespace.
    pub fn offset(&self) -> i64 {
        self.offset
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// Unavailable when the daemon is gone; ResourceExhausted on a full disk.
    pub async fn write(&mut self, mut bytes: Bytes) -> Result<()> {
        while !bytes.is_empty() {
            let chunk = bytes.split_to(bytes.len().min(CHUNK_SIZE));
            let end = self.offset + chunk.len() as i64;
            let mut request = message(&self.options, wire::WriteAction::Write);
            request.offset = self.offset;
            request.data = chunk;
            self.send(request).await?;
            let stored = self.answer().await?.offset;
            if stored != end {
                let why = format!("write {}: {stored} of {end} bytes", self.options.reference);
                return Err(Error::data_loss(why));
            }
            self.offset = stored;
        }
        Ok(())
    }

    /// Appends all that `reader` gives.
    ///
    /// # Errors
    /// Those of [`Self::write`] and of the reader.
    pub async fn write_from(&mut self, reader: &mut (impl AsyncRead + Unpin)) -> Result<()> {
        loop {
            let mut buffer = bytes::BytesMut::with_capacity(CHUNK_SIZE);
            while buffer.len() < CHUNK_SIZE {
                let count = reader
                    .read_buf(&mut buffer)
                    .await
                    .map_err(|e| Error::io("reading the content to write", e))?;
                if count == 0 {
                    break;
                }
            }
            if buffer.is_empty() {
                return Ok(());
            }
            self.write(buffer.freeze()).await?;
        }
    }

    /// Throws away what was stored by an earlier try.
    ///
    /// # Errors
    /// Those of the daemon.
    pub async fn restart(&mut self) -> Result<()> {
        // The next write says offset 0, which truncates. When all of the blob is there already
        // (from another namespace) nothing needs sending; writing again does no harm.
        self.offset = 0;
        Ok(())
    }

    /// Commits the blob and returns its digest. One that is there already is an error that the
    /// caller may take for success.
    ///
    /// # Errors
    /// AlreadyExists; FailedPrecondition when size or digest differ from what was promised.
    pub async fn commit(mut self, blob_labels: &Labels) -> Result<Digest> {
        let mut request = message(&self.options, wire::WriteAction::Commit);
        request.offset = self.offset;
        request.labels = label_map(blob_labels);
        self.send(request).await?;
        self.answer().await?.digest.parse()
    }

    async fn send(&mut self, request: wire::WriteContentRequest) -> Result<()> {
        if self.sender.send(request).await.is_ok() {
            return Ok(());
        }
        // The stream has ended: its last answer says why.
        self.answer().await?;
        Err(cut_off(format!("write {}", self.options.reference)))
    }

    async fn answer(&mut self) -> Result<wire::WriteContentResponse> {
        let answer = self.answers.message().await.map_err(status)?;
        answer.ok_or_else(|| cut_off(format!("write {}", self.options.reference)))
    }
}

fn message(options: &WriterOptions, action: wire::WriteAction) -> wire::WriteContentRequest {
    wire::WriteContentRequest {
        action: action.into(),
        r#ref: options.reference.clone(),
        total: options.total,
        expected: options.expected.as_ref().map(Digest::to_string).unwrap_or_default(),
        ..wire::WriteContentRequest::default()
    }
}

fn blob_info(info: wire::Info) -> Result<BlobInfo> {
    Ok(BlobInfo {
        digest: info.digest.parse()?,
        size: info.size,
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
        labels: labels(info.labels),
    })
}

fn ingest(status: wire::Status) -> IngestStatus {
    IngestStatus {
        reference: status.r#ref,
        offset: status.offset,
        total: status.total,
        expected: status.expected,
        started_at: time(status.started_at),
        updated_at: time(status.updated_at),
    }
}
