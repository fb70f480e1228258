//! `containerd.services.transfer.v1`: images between registries, the store and streams.
//!
//! What to move is said by two messages of named types ([`wire`]); credentials, progress and
//! archives travel over streams the client has opened before ([`crate::streaming`]).

mod auth;
mod http_log;
mod pipes;
mod wire;

use std::time::Duration;

use gantry_api::containerd::services::transfer::v1::TransferRequest;
use gantry_api::containerd::services::transfer::v1::transfer_server;
use gantry_api::{BytesAny, Payload as _};
use gantry_core::Context;
use gantry_errdefs::{Error, Result as Outcome};
use gantry_images::{
    CopyOptions, ExportOptions, ProgressSink, PullOptions, PushOptions, StoreOptions, Transfer,
    progress_channel,
};
use tonic::{Request, Response, Status};

use crate::streaming::{Stream, Streams};
use crate::window::DataWriter;
use crate::{call, stream_progress};
use wire::{Place, Registry};

/// How long a finished transfer waits for its client to read the last progress.
const PROGRESS_WAIT_MAX: Duration = gantry_core::deadlines::CLIENT_PROGRESS;

/// Moves images on behalf of clients.
#[derive(Clone, Debug)]
pub struct TransferService {
    transfer: Transfer,
    streams: Streams,
}

impl TransferService {
    /// A service over `transfer`; clients' streams are found in `streams`.
    pub fn new(transfer: Transfer, streams: Streams) -> Self {
        Self { transfer, streams }
    }

    async fn run(
        &self,
        ctx: &Context,
        from: Place,
        to: Place,
        progress: ProgressSink,
    ) -> Outcome<()> {
        match (from, to) {
            (Place::Registry(from), Place::Store(to)) => self.pull(ctx, from, to, progress).await,
            (Place::Store(from), Place::Registry(to)) => self.push(ctx, from, to, progress).await,
            (Place::Store(from), Place::Store(to)) => {
                self.transfer.tag(ctx, &from.name, &to, &progress).await.map(drop)
            }
            (Place::Import { stream, compress }, Place::Store(to)) => {
                let to = StoreOptions { compress, ..to };
                let stream = self.streams.take(&ctx.namespace, &stream)?;
                pipes::read(stream, |archive| self.transfer.import(ctx, archive, &to, &progress))
                    .await
                    .map(drop)
            }
            (Place::Store(from), Place::Export { stream, options }) => {
                let stream = self.streams.take(&ctx.namespace, &stream)?;
                self.export(ctx, &from, &options, stream, &progress).await
            }
            (Place::Import { stream: from, .. }, Place::Export { stream: to, .. }) => {
                let from = self.streams.take(&ctx.namespace, &from)?;
                let to = self.streams.take(&ctx.namespace, &to)?;
                pipes::echo(from, to).await
            }
            (Place::Registry(from), Place::Registry(to)) => {
                let base = self.transfer.resolver();
                let from_resolver = from.resolver(base, &self.streams, ctx)?;
                let to_resolver = to.resolver(base, &self.streams, ctx)?;
                let (from, to) = (from.reference, to.reference);
                let copy = CopyOptions { from, from_resolver, to, to_resolver, progress };
                self.transfer.copy(copy).await.map(drop)
            }
            (Place::LayerIn { stream, media_type }, Place::Snapshot(to)) => {
                let stream = self.streams.take(&ctx.namespace, &stream)?;
                let transfer = &self.transfer;
                pipes::read(stream, |layer| {
                    transfer.unpack_stream(ctx, layer, &media_type, &to, &progress)
                })
                .await
                .map(drop)
            }
            (Place::Snapshot(from), Place::LayerOut { stream, media_type }) => {
                let stream = self.streams.take(&ctx.namespace, &stream)?;
                let layer = DataWriter::new(stream);
                let diff = self.transfer.diff_stream(ctx, &from, &media_type, layer, &progress);
                diff.await.map(drop)
            }
            (from, to) => {
                Err(Error::unimplemented(format!("transfer from {} to {}", from.name(), to.name())))
            }
        }
    }

    async fn pull(
        &self,
        ctx: &Context,
        from: Registry,
        store: StoreOptions,
        progress: ProgressSink,
    ) -> Outcome<()> {
        let resolver = from.resolver(self.transfer.resolver(), &self.streams, ctx)?;
        let reference = from.reference;
        let options = PullOptions { reference, resolver, store, progress };
        self.transfer.pull(ctx, options).await.map(drop)
    }

    async fn push(
        &self,
        ctx: &Context,
        from: StoreOptions,
        to: Registry,
        progress: ProgressSink,
    ) -> Outcome<()> {
        let resolver = to.resolver(self.transfer.resolver(), &self.streams, ctx)?;
        let platform = (!from.platforms.is_empty()).then(|| from.matcher());
        let options =
            PushOptions { image: from.name, reference: to.reference, resolver, platform, progress };
        self.transfer.push(ctx, options).await.map(drop)
    }

    async fn export(
        &self,
        ctx: &Context,
        from: &StoreOptions,
        options: &ExportOptions,
        stream: Stream,
        progress: &ProgressSink,
    ) -> Outcome<()> {
        let archive = DataWriter::new(stream);
        self.transfer.export(ctx, from, options, archive, progress).await
    }
}

#[tonic::async_trait]
impl transfer_server::Transfer for TransferService {
    async fn transfer(&self, request: Request<TransferRequest>) -> Result<Response<()>, Status> {
        let ctx = call::context(&request)?;
        let request = request.into_inner();
        let from = Place::of(call::required(request.source, "source")?)?;
        let to = Place::of(call::required(request.destination, "destination")?)?;
        let progress_stream = request.options.unwrap_or_default().progress_stream;
        if progress_stream.is_empty() {
            self.run(&ctx, from, to, ProgressSink::default()).await?;
            return Ok(Response::new(()));
        }
        let stream = self.streams.take(&ctx.namespace, &progress_stream)?;
        let (sink, mut updates) = progress_channel();
        let telling = async move {
            while let Some(update) = updates.next().await {
                // A client that stopped listening still wants its image.
                if stream.send(BytesAny::pack(&stream_progress::to_wire(update))).await.is_err() {
                    break;
                }
            }
        };
        let mut telling = tokio::spawn(telling);
        let moved = self.run(&ctx, from, to, sink).await;
        if tokio::time::timeout(PROGRESS_WAIT_MAX, &mut telling).await.is_err() {
            telling.abort();
        }
        moved?;
        Ok(Response::new(()))
    }
}
