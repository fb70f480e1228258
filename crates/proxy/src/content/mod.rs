//! A content store that a plugin serves.

mod reader;
mod writer;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use gantry_api::containerd::services::content::v1 as wire;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_content::{Info, Reader, Status, Store, Writer, WriterOptions};
use gantry_core::{Digest, deadlines};
use gantry_errdefs::{Error, Result};
use tonic::transport::Channel;

use crate::convert::{required, size, time};
use crate::plugin::{MESSAGE_LEN_MAX, Plugin, request};
use reader::ProxyReader;
use writer::ProxyWriter;

/// The namespace under which a plugin keeps our blobs: records by namespace are ours.
pub const CONTENT_NAMESPACE: &str = "default";

/// How long a reference that we let go of may still look locked: the plugin learns of it by the
/// end of a stream.
const RELEASE_MAX: Duration = Duration::from_secs(2);

/// Pause between two tries for such a reference.
const RELEASE_POLL: Duration = Duration::from_millis(10);

/// A [`Store`] in another process.
#[derive(Clone, Debug)]
pub struct ProxyStore {
    plugin: Plugin,
    client: ContentClient<Channel>,
    released: Released,
}

/// References let go of a moment ago.
#[derive(Clone, Debug, Default)]
struct Released(Arc<Mutex<HashMap<String, Instant>>>);

impl Released {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, reference: &str) {
        let mut released = self.lock();
        released.retain(|_, at| at.elapsed() < RELEASE_MAX);
        released.insert(reference.to_owned(), Instant::now());
    }

    fn is_recent(&self, reference: &str) -> bool {
        self.lock().get(reference).is_some_and(|at| at.elapsed() < RELEASE_MAX)
    }
}

impl ProxyStore {
    /// The store that `plugin` serves.
    pub fn new(plugin: Plugin) -> Self {
        let client = ContentClient::new(plugin.channel())
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX);
        Self { plugin, client, released: Released::default() }
    }
}

#[async_trait]
impl Store for ProxyStore {
    async fn info(&self, digest: &Digest) -> Result<Info> {
        let message = wire::InfoRequest { digest: digest.to_string() };
        let mut client = self.client.clone();
        let call = client.info(request(CONTENT_NAMESPACE, message));
        let what = format!("info of {digest}");
        let answer = self.plugin.call(what, deadlines::PLUGIN_READ, call).await?;
        info(required(answer.info, "the blob's record")?)
    }

    async fn reader(&self, digest: &Digest) -> Result<Box<dyn Reader>> {
        let info = self.info(digest).await?;
        let (plugin, client) = (self.plugin.clone(), self.client.clone());
        Ok(Box::new(ProxyReader::new(plugin, client, info)))
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let message = wire::DeleteContentRequest { digest: digest.to_string() };
        let mut client = self.client.clone();
        let call = client.delete(request(CONTENT_NAMESPACE, message));
        self.plugin.call(format!("deletion of {digest}"), deadlines::PLUGIN_DELETE, call).await
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        let deadline = deadlines::PLUGIN_LIST;
        let turn = async { self.plugin.turn().await.map_err(Into::into) };
        let _turn = self.plugin.within("list", deadline, turn).await?;
        let mut client = self.client.clone();
        let list = async {
            let message = wire::ListContentRequest { filters: Vec::new() };
            let mut pages = client.list(request(CONTENT_NAMESPACE, message)).await?.into_inner();
            let mut all = Vec::new();
            while let Some(page) = pages.message().await? {
                all.extend(page.info);
            }
            Ok(all)
        };
        for found in self.plugin.within("list", deadline, list).await? {
            visit(info(found)?)?;
        }
        Ok(())
    }

    async fn writer(&self, options: WriterOptions) -> Result<Box<dyn Writer>> {
        if options.reference.is_empty() {
            return Err(Error::invalid_argument("content ref must not be empty"));
        }
        loop {
            let (plugin, client) = (self.plugin.clone(), self.client.clone());
            let opened = ProxyWriter::open(plugin, client, &options, self.released.clone()).await;
            match opened {
                Err(err) if err.is_unavailable() && self.released.is_recent(&options.reference) => {
                    tokio::time::sleep(RELEASE_POLL).await;
                }
                opened => return opened.map(|writer| Box::new(writer) as Box<dyn Writer>),
            }
        }
    }

    async fn status(&self, reference: &str) -> Result<Status> {
        let message = wire::StatusRequest { r#ref: reference.to_owned() };
        let mut client = self.client.clone();
        let call = client.status(request(CONTENT_NAMESPACE, message));
        let what = format!("status of {reference:?}");
        let answer = self.plugin.call(what, deadlines::PLUGIN_READ, call).await?;
        Ok(status(required(answer.status, "the status")?))
    }

    async fn statuses(&self) -> Result<Vec<Status>> {
        let message = wire::ListStatusesRequest { filters: Vec::new() };
        let mut client = self.client.clone();
        let call = client.list_statuses(request(CONTENT_NAMESPACE, message));
        let answer = self.plugin.call("list of ingests", deadlines::PLUGIN_LIST, call).await?;
        Ok(answer.statuses.into_iter().map(status).collect())
    }

    async fn abort(&self, reference: &str) -> Result<()> {
        let message = wire::AbortRequest { r#ref: reference.to_owned() };
        let mut client = self.client.clone();
        let call = client.abort(request(CONTENT_NAMESPACE, message));
        self.plugin.call(format!("abort of {reference:?}"), deadlines::PLUGIN_DELETE, call).await
    }
}

fn info(wire: wire::Info) -> Result<Info> {
    Ok(Info {
        digest: wire.digest.parse()?,
        size: size(wire.size),
        created_at: time(wire.created_at),
        updated_at: time(wire.updated_at),
    })
}

fn status(wire: wire::Status) -> Status {
    Status {
        reference: wire.r#ref,
        offset: size(wire.offset),
        total: size(wire.total),
        expected: wire.expected.parse().ok(),
        started_at: time(wire.started_at),
        updated_at: time(wire.updated_at),
    }
}
