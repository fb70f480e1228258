//! Pull: from a registry into the image store, unpacked.

mod fetch;
mod graph;
mod layers;

use futures_util::future::try_join_all;
use gantry_core::{Context, Digest, Reference};
use gantry_errdefs::{Error, Result};
use gantry_metadata::Image;
use gantry_registry::Resolver;

use crate::lease;
use crate::progress::{ProgressSink, Stage};
use crate::transfer::{StoreOptions, Transfer};
use fetch::Fetcher;

/// Blobs fetched at once in one pull, unless configured otherwise: enough to fill a link, few
/// enough for registries that count connections (and containerd's number).
pub const DOWNLOADS_MAX_DEFAULT: usize = 3;

/// What to pull, and from where.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The image on the registry.
    pub reference: Reference,
    /// How to get there; see [`Transfer::resolver`].
    pub resolver: Resolver,
    /// What to make of it here. An empty name is that of the reference.
    pub store: StoreOptions,
    /// Who is told how far it is.
    pub progress: ProgressSink,
}

/// What came of a pull.
#[derive(Clone, Debug)]
pub struct PulledImage {
    /// The image as it is in the store now.
    pub image: Image,
    /// Top snapshot (chain ID) per snapshotter that the image was unpacked to.
    pub unpacked: Vec<(String, Digest)>,
}

impl Transfer {
    /// Pulls an image: resolves it, fetches what is missing, unpacks it where asked, and creates
    /// or updates the image record. Fetching resumes what an earlier pull left, and blobs that
    /// someone else is fetching are waited for instead of fetched twice. Dropping the future
    /// stops everything.
    ///
    /// # Errors
    /// NotFound when the registry has no such image, or the image nothing for the platforms;
    /// InvalidArgument for a schema 1 or malformed manifest, or
    /// when nothing that is asked to be unpacked to is served; DataLoss for bytes that are not what
    /// their digest says; PermissionDenied when an image verifier refuses it; Unavailable, Unauthenticated, PermissionDenied with every host tried
    /// and its reason; the classes of unpacking.
    pub async fn pull(&self, ctx: &Context, options: PullOptions) -> Result<PulledImage> {
        let progress = options.progress.clone();
        let reference = options.reference.clone();
        progress.message(format!("Resolving from OCI Registry ({reference})"));
        let (ctx, own) = lease::ensure(self.db(), ctx).await?;
        let pulled = own.end(self.pull_leased(&ctx, options).await).await?;
        progress.message(format!("Completed pull from OCI Registry ({reference})"));
        Ok(pulled)
    }

    async fn pull_leased(&self, ctx: &Context, options: PullOptions) -> Result<PulledImage> {
        let PullOptions { reference, resolver, mut store, progress } = options;
        store.unpacks = self.options().served.of(store.unpacks)?;
        if store.name.is_empty() {
            store.name = reference.to_string();
        }
        let repository = resolver.repository(&reference).await?;
        let resolved = repository.resolve().await?;
        self.options().verifiers.check(&store.name, &resolved.descriptor).await?;
        progress.message(format!("Pulling from OCI Registry ({reference})"));
        progress.send(crate::Progress::named(Stage::FetchingContent, &store.name));
        let content = self.db().content();
        let limits = fetch::Limits {
            downloads_max: self.options().downloads_max,
            budget: self.options().budget.clone(),
            flights: self.downloads().clone(),
        };
        let fetcher = Fetcher::new(content, ctx.clone(), repository, progress.clone(), limits);
        let top = resolved.descriptor;
        let selection = graph::Selection {
            matcher: store.matcher(),
            manifest_limit: store.manifest_limit,
            all_metadata: store.all_metadata,
        };
        let whole = vec![store.name.clone()];
        let manifests = graph::walk(&fetcher, &selection, &top, whole, resolved.bytes).await?;
        let unpacked = self.fetch_manifests(ctx, &fetcher, manifests, &store, &progress).await?;
        let images = self.store_image(ctx, &store, &top, &progress).await?;
        let image = images.into_iter().next();
        let image = image.ok_or_else(|| Error::internal("a pull without an image name"))?;
        Ok(PulledImage { image, unpacked })
    }

    /// Fetches what the manifests point at, and unpacks the ones that are to be.
    async fn fetch_manifests(
        &self,
        ctx: &Context,
        fetcher: &Fetcher,
        manifests: Vec<graph::Found>,
        store: &StoreOptions,
        progress: &ProgressSink,
    ) -> Result<Vec<(String, Digest)>> {
        let one = layers::ManifestPull { transfer: self, ctx, fetcher, store, progress };
        let each = manifests.into_iter().map(|found| one.run(found));
        let done: Vec<Vec<(String, Digest)>> = try_join_all(each).await?;
        Ok(done.into_iter().flatten().collect())
    }
}
