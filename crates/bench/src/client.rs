//! The one client both daemons are driven with.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::content::v1::content_client::ContentClient;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::leases::v1 as leases;
use gantry_api::containerd::services::leases::v1::leases_client::LeasesClient;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_core::{Digest, Digester};
use gantry_errdefs::{Error, Result};
use gantry_testkit::{Daemon, Image};
use hyper_util::rt::TokioIo;
use prost_types::Any;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Pair;

/// Largest message, as containerd's clients set it.
const MESSAGE_LEN_MAX: usize = 16 << 20;

/// What clients hold while they make things: without it a snapshot without a container may be
/// collected.
const LEASE: &str = "bench";

/// A connection to one daemon.
#[derive(Clone)]
pub(crate) struct Client {
    channel: Channel,
    namespace: Arc<str>,
    /// Chain ID of the unpacked image.
    pub(crate) chain_id: Arc<str>,
}

impl Client {
    pub(crate) async fn connect(daemon: &Daemon, image: &Image) -> Result<Self> {
        let path = daemon.address();
        let endpoint = Endpoint::from_static("http://localhost");
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        let channel = endpoint
            .connect_with_connector(connector)
            .await
            .map_err(|e| Error::unavailable(format!("connecting: {e}")))?;
        let chain_id = Arc::from(chain_id(image.diff_ids()).as_str());
        let client = Self { channel, namespace: Arc::from(daemon.namespace()), chain_id };
        let request = leases::CreateRequest { id: LEASE.to_owned(), labels: none() };
        let mut request = client.request(request);
        // It is not there yet.
        request.metadata_mut().remove("containerd-lease");
        LeasesClient::new(client.channel.clone()).create(request).await?;
        Ok(client)
    }

    /// A request in the daemon's namespace, under the lease.
    pub(crate) fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let value = self.namespace.parse().expect("namespaces are plain text");
        request.metadata_mut().insert("containerd-namespace", value);
        let lease = tonic::metadata::MetadataValue::from_static(LEASE);
        request.metadata_mut().insert("containerd-lease", lease);
        request
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    pub(crate) fn content(&self) -> ContentClient<Channel> {
        ContentClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    pub(crate) fn snapshots(&self) -> SnapshotsClient<Channel> {
        SnapshotsClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }

    pub(crate) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.channel.clone())
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LEN_MAX)
    }
}

fn chain_id(diff_ids: &[Digest]) -> Digest {
    let (first, rest) = diff_ids.split_first().expect("an image has layers");
    rest.iter().fold(first.clone(), |chain, diff| {
        let mut digester = Digester::new(gantry_core::Algorithm::Sha256);
        digester.update(format!("{chain} {diff}").as_bytes());
        digester.finish()
    })
}

/// An `Any` with a spec in it.
pub(crate) fn spec_any(type_url: &str, value: Vec<u8>) -> Any {
    Any { type_url: type_url.to_owned(), value }
}

/// Labels that keep an object from being collected, as the lease of a real client would.
pub(crate) fn pinned() -> HashMap<String, String> {
    HashMap::from([("containerd.io/gc.root".to_owned(), "bench".to_owned())])
}

/// No labels.
pub(crate) fn none() -> HashMap<String, String> {
    HashMap::new()
}

/// Rounds of [`rates`]. Between two of them the other daemon has its turn.
const ROUNDS: usize = 21;

/// The [`rate`] of `count` calls on each daemon: the median of many short rounds in turns, so that a
/// disk that is slow for a while is slow for both.
pub(crate) async fn rates<F, W>(
    pair: &Pair,
    count: usize,
    workers: usize,
    work: W,
) -> Result<[f64; 2]>
where
    W: Fn(Client, usize) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    in_turns(ROUNDS, async |round, side| {
        let (client, work) = (pair.daemons[side].1.clone(), work.clone());
        let one = move |n| work(client.clone(), round * count + n);
        rate(count / ROUNDS, workers, one).await
    })
    .await
}

/// The medians of what `rate` finds for each round and side; the sides take turns at being first.
pub(crate) async fn in_turns(
    rounds: usize,
    mut rate: impl AsyncFnMut(usize, usize) -> Result<f64>,
) -> Result<[f64; 2]> {
    let mut sides = [Vec::new(), Vec::new()];
    for round in 0..rounds {
        for side in [round % 2, 1 - round % 2] {
            sides[side].push(rate(round, side).await?);
        }
    }
    Ok(sides.map(|mut side| {
        side.sort_unstable_by(f64::total_cmp);
        side[rounds / 2]
    }))
}

/// Runs `work` for 0..count on `workers` tasks; returns how many ran per second.
pub(crate) async fn rate<F, W>(count: usize, workers: usize, work: W) -> Result<f64>
where
    W: Fn(usize) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Result<()>> + Send,
{
    let begin = std::time::Instant::now();
    let mut set = tokio::task::JoinSet::new();
    for worker in 0..workers {
        let work = work.clone();
        set.spawn(async move {
            let mut n = worker;
            while n < count {
                work(n).await?;
                n += workers;
            }
            Ok::<(), Error>(())
        });
    }
    while let Some(done) = set.join_next().await {
        done.map_err(|e| Error::internal(format!("a bench worker: {e}")))??;
    }
    #[allow(clippy::cast_precision_loss, reason = "counts are small")]
    Ok(count as f64 / begin.elapsed().as_secs_f64())
}
