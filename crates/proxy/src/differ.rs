//! A differ that a plugin serves.

use async_trait::async_trait;
use gantry_api::containerd::services::diff::v1 as wire;
use gantry_api::containerd::services::diff::v1::diff_client::DiffClient;
use gantry_core::{Context, Descriptor, deadlines};
use gantry_errdefs::Result;
use gantry_images::{ApplyRequest, DiffRequest, LayerDiffer};
use gantry_mount::Mount;
use prost_types::{Any, Timestamp};
use tonic::transport::Channel;

use crate::convert::{descriptor, descriptor_to_wire, mounts_to_wire};
use crate::plugin::{MESSAGE_LEN_MAX, Plugin, request_of};

/// A [`LayerDiffer`] in another process. It reads and writes content through our own API.
#[derive(Clone, Debug)]
pub struct ProxyDiffer {
    plugin: Plugin,
    client: DiffClient<Channel>,
}

impl ProxyDiffer {
    /// The differ that `plugin` serves.
    pub fn new(plugin: Plugin) -> Self {
        let client = DiffClient::new(plugin.channel())
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX);
        Self { plugin, client }
    }
}

#[async_trait]
impl LayerDiffer for ProxyDiffer {
    async fn apply(
        &self,
        ctx: &Context,
        layer: &Descriptor,
        mounts: &[Mount],
        request: ApplyRequest,
    ) -> Result<Descriptor> {
        let message = wire::ApplyRequest {
            diff: Some(descriptor_to_wire(layer)),
            mounts: mounts_to_wire(mounts),
            sync_fs: request.sync,
            payloads: request.payloads.into_iter().map(|(k, any)| (k, any_to_wire(any))).collect(),
        };
        let mut client = self.client.clone();
        let call = client.apply(request_of(ctx, message));
        let what = format!("apply of {}", layer.digest);
        descriptor(self.plugin.call(what, deadlines::PLUGIN_DIFF, call).await?.applied)
    }

    async fn diff(
        &self,
        ctx: &Context,
        left: &[Mount],
        right: &[Mount],
        request: DiffRequest,
    ) -> Result<Descriptor> {
        let seconds = request.source_date_epoch;
        let message = wire::DiffRequest {
            left: mounts_to_wire(left),
            right: mounts_to_wire(right),
            media_type: request.media_type,
            r#ref: request.reference,
            labels: request.labels.into_iter().collect(),
            source_date_epoch: seconds.map(|seconds| Timestamp { seconds, nanos: 0 }),
        };
        let mut client = self.client.clone();
        let call = client.diff(request_of(ctx, message));
        descriptor(self.plugin.call("diff", deadlines::PLUGIN_DIFF, call).await?.diff)
    }
}

fn any_to_wire(any: gantry_core::Any) -> Any {
    Any { type_url: any.type_url, value: any.value }
}
