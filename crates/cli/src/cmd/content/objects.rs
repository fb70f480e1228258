//! `content fetch-object`, `fetch-blob` and `push-object`: this program and a registry, without
//! the transfer service.

use std::io::Write;
use std::sync::Arc;

use bytes::Bytes;
use clap::Args;
use gantry_client::Content;
use gantry_core::image::Document;
use gantry_core::reference::Reference;
use gantry_core::{Descriptor, Digest, Digester, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{BlobSource, Repository};

use crate::output;
use crate::registry_flags::RegistryFlags;
use crate::session::Session;

/// Manifests and indexes that are looked through for a blob; more is no image.
const DOCUMENTS_MAX: usize = 1024;

#[derive(Debug, Args)]
pub(crate) struct FetchObjectFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// Full reference, such as docker.io/library/busybox:latest
    reference: String,
    /// Object and hints, which ctr takes too and does not look at either
    #[arg(hide = true)]
    hints: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct FetchBlobFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// Media type of the blobs; a manifest's or index's is fetched as such
    #[arg(long, value_name = "TYPE", default_value = "")]
    media_type: String,
    /// Full reference of an image that the blobs belong to
    reference: String,
    /// Digests
    #[arg(required = true)]
    digests: Vec<Digest>,
}

#[derive(Debug, Args)]
pub(crate) struct PushObjectFlags {
    #[command(flatten)]
    registry: RegistryFlags,
    /// Full reference to push to; a manifest gets its tag
    reference: String,
    /// Digest of the blob
    digest: Digest,
    /// Media type of the blob
    media_type: String,
}

impl FetchObjectFlags {
    pub(crate) async fn execute(self) -> Result<()> {
        let repository = open(&self.registry, &self.reference).await?;
        let resolved = repository.resolve().await?;
        let bytes = match resolved.bytes {
            Some(bytes) => bytes,
            None => repository.manifest(&resolved.descriptor).await?,
        };
        write_out(&bytes)?;
        flush()
    }
}

impl FetchBlobFlags {
    pub(crate) async fn execute(self) -> Result<()> {
        let repository = open(&self.registry, &self.reference).await?;
        for digest in &self.digests {
            if media_types::is_document(&self.media_type) {
                let document = Descriptor::new(&self.media_type, digest.clone(), 0);
                write_out(&repository.manifest(&document).await?)?;
                continue;
            }
            let mut blob = find(&repository, digest).await?;
            if !self.media_type.is_empty() {
                blob.media_type.clone_from(&self.media_type);
            }
            fetch_blob(&repository, &blob).await?;
        }
        flush()
    }
}

impl PushObjectFlags {
    pub(crate) async fn execute(self, session: &Session) -> Result<()> {
        let Self { registry, reference, digest, media_type } = self;
        let repository = open(&registry, &reference).await?;
        let target = repository.reference();
        if let Some(other) = target.digest().filter(|d| **d != digest) {
            let why = format!("push {digest}: the reference names another digest, {other}");
            return Err(Error::invalid_argument(why));
        }
        let content = session.client.content();
        let size = content.info(&digest).await?.size;
        let object = Descriptor::new(media_type, digest, size);
        if object.is_document() {
            let bytes = content.read(&object.digest).await?;
            repository.push_manifest(&object, bytes, target.tag()).await?;
        } else {
            let source = Stored { content, digest: object.digest.clone() };
            repository.push_blob(&object, Arc::new(source), &[], &|_| {}).await?;
        }
        output::line(format!("Pushed {} {}", object.digest, object.media_type));
        Ok(())
    }
}

/// A blob of the daemon, as a source to push from.
struct Stored {
    content: Content,
    digest: Digest,
}

#[async_trait::async_trait]
impl BlobSource for Stored {
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let limit = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        self.content.read_at(&self.digest, limit(offset), limit(len as u64)).await
    }
}

async fn open(registry: &RegistryFlags, reference: &str) -> Result<Repository> {
    let reference = Reference::parse(reference)?;
    registry.options(&reference.to_string())?.resolver().repository(&reference).await
}

/// The descriptor of a blob, from the image that the repository's reference names: only what
/// points at a blob knows its size.
async fn find(repository: &Repository, digest: &Digest) -> Result<Descriptor> {
    let top = repository.resolve().await?.descriptor;
    let mut documents = vec![top];
    let mut seen = 0;
    while let Some(document) = documents.pop() {
        if document.digest == *digest {
            return Ok(document);
        }
        if !document.is_document() {
            continue;
        }
        seen += 1;
        if seen > DOCUMENTS_MAX {
            let why = format!("image {}: over {DOCUMENTS_MAX} manifests", repository.reference());
            return Err(Error::resource_exhausted(why));
        }
        let bytes = match repository.manifest(&document).await {
            // An index may list platforms that were never pushed.
            Err(e) if e.is_not_found() => continue,
            other => other?,
        };
        let children = Document::parse(&document, &bytes)?;
        for (_, child) in children.children() {
            if child.digest == *digest {
                return Ok(child.clone());
            }
            if child.is_document() {
                documents.push(child.clone());
            }
        }
    }
    Err(Error::not_found(format!("blob {digest} in image {}", repository.reference())))
}

/// Writes a blob to standard output as it comes, and tells when it was not what its digest says.
async fn fetch_blob(repository: &Repository, blob: &Descriptor) -> Result<()> {
    if blob.is_document() {
        return write_out(&repository.manifest(blob).await?);
    }
    let mut digester = Digester::new(blob.digest.algorithm());
    let mut stream = repository.fetch(blob, 0).await?;
    while let Some(bytes) = stream.next().await? {
        digester.update(&bytes);
        write_out(&bytes)?;
    }
    let digest = digester.finish();
    if digest != blob.digest {
        let why = format!("blob {}: the registry sent {digest}", blob.digest);
        return Err(Error::data_loss(why));
    }
    Ok(())
}

fn write_out(bytes: &[u8]) -> Result<()> {
    std::io::stdout().lock().write_all(bytes).map_err(written)
}

fn flush() -> Result<()> {
    std::io::stdout().flush().map_err(written)
}

fn written(e: std::io::Error) -> Error {
    Error::io("writing to standard output", e)
}
