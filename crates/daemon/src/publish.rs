//! `gantryd publish`: how shims without ttrpc send an event.

use std::io::Read as _;
use std::time::Duration;

use gantry_api::containerd::services::events::v1::PublishRequest;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_services::NAMESPACE_HEADER;
use prost::Message as _;
use tonic::Request;

use crate::client;

/// Longest wait for the daemon; a shim waits for us.
const PUBLISH_WAIT_MAX: Duration = Duration::from_secs(5);

/// Largest event in bytes.
const EVENT_LEN_MAX: u64 = 4 << 20;

/// Reads an encoded `google.protobuf.Any` from standard input and publishes it.
///
/// # Errors
/// InvalidArgument for what is no Any; what the daemon answers.
pub async fn run(address: &str, namespace: &str, topic: &str) -> Result<()> {
    let mut bytes = Vec::new();
    std::io::stdin()
        .lock()
        .take(EVENT_LEN_MAX)
        .read_to_end(&mut bytes)
        .context(|| "publish: standard input")?;
    let event = prost_types::Any::decode(bytes.as_slice())
        .map_err(|e| Error::invalid_argument(format!("publish: standard input: {e}")))?;
    let mut request = Request::new(PublishRequest { topic: topic.to_owned(), event: Some(event) });
    let header = namespace
        .parse()
        .map_err(|_| Error::invalid_argument(format!("publish: namespace {namespace:?}")))?;
    request.metadata_mut().insert(NAMESPACE_HEADER, header);
    let send = async {
        let channel = client::connect(address).await?;
        EventsClient::new(channel).publish(request).await?;
        Ok(())
    };
    tokio::time::timeout(PUBLISH_WAIT_MAX, send)
        .await
        .map_err(|_| Error::deadline_exceeded(format!("publish: {address} does not answer")))?
}
