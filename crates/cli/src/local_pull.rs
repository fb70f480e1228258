//! Pulling by this program, for daemons without the transfer service (containerd before 1.7).
//!
//! The same outcome as the daemon's own pull: content with labels that keep it, an image record,
//! snapshots. Everything is under a lease until the record holds it.

use std::path::PathBuf;
use std::sync::Arc;

use futures_util::stream::{self, StreamExt, TryStreamExt};
use gantry_client::{
    Client, ImageRecord, Progress, PullOptions, RegistryOptions, UnpackOptions, WriterOptions,
};
use gantry_core::image::Document;
use gantry_core::platforms::Matcher;
use gantry_core::reference::Reference;
use gantry_core::{Descriptor, Labels, media_types};
use gantry_errdefs::{Error, Result};
use gantry_registry::{
    Anonymous, AuthRequest, Credential, Credentials, Hosts, HostsOptions, Repository, Resolver,
    ResolverOptions,
};
use tokio::sync::mpsc;

/// Blobs fetched at the same time unless told otherwise; what containerd's clients do.
const DOWNLOADS_MAX: usize = 3;

/// Steps that may wait to be shown.
const STEPS_QUEUED_MAX: usize = 64;

/// Indexes within indexes are followed this deep.
const INDEX_DEPTH_MAX: usize = 4;

/// One pull: where from and where to.
struct Pull {
    client: Client,
    repository: Repository,
    matcher: Matcher,
    all_metadata: bool,
    downloads: usize,
    steps: mpsc::Sender<Progress>,
}

/// Pulls as `options` say, `downloads` blobs at a time (0 for the usual number).
pub(crate) async fn pull(
    client: &Client,
    options: &PullOptions,
    downloads: usize,
    mut progress: impl FnMut(Progress),
) -> Result<()> {
    let reference = Reference::parse(&options.reference)?;
    let repository = resolver(&options.registry).repository(&reference).await?;
    let guard = client.leases().guard().await?;
    let matcher = match (options.all_platforms, options.platforms.as_slice()) {
        (true, _) => Matcher::all(),
        (false, []) => Matcher::host(),
        (false, some) => Matcher::ordered(some),
    };
    let (steps, mut shown) = mpsc::channel(STEPS_QUEUED_MAX);
    let pull = Pull {
        client: guard.client().clone(),
        repository,
        matcher,
        all_metadata: options.all_metadata,
        downloads: if downloads == 0 { DOWNLOADS_MAX } else { downloads },
        steps,
    };
    let work = async move { pull.run(options).await };
    let show = async {
        while let Some(step) = shown.recv().await {
            progress(step);
        }
    };
    let (done, ()) = tokio::join!(work, show);
    let released = guard.release().await;
    done.and(released)
}

impl Pull {
    async fn run(self, options: &PullOptions) -> Result<()> {
        self.tell("resolving", &options.reference, 0, 0).await;
        let resolved = self.repository.resolve().await?;
        let target = resolved.descriptor;
        self.fetch_tree(&target, INDEX_DEPTH_MAX).await?;
        let mut record = ImageRecord::new(&options.reference, target.clone());
        record.labels.clone_from(&options.labels);
        self.client.images().create_or_update(&record).await?;
        if let Some(snapshotter) = &options.unpack {
            self.tell("unpacking", &options.reference, 0, 0).await;
            let image =
                self.client.resolve_target(&options.reference, &target, &self.matcher).await?;
            let unpack = UnpackOptions { snapshotter: snapshotter.clone() };
            self.client.unpack(&image, &unpack).await?;
        }
        self.tell("complete", &options.reference, 0, 0).await;
        Ok(())
    }

    /// Fetches a manifest or index and what it leads to, children first.
    async fn fetch_tree(&self, target: &Descriptor, depth_left: usize) -> Result<()> {
        if depth_left == 0 {
            let why = format!("index {}: nested deeper than {INDEX_DEPTH_MAX}", target.digest);
            return Err(Error::invalid_argument(why));
        }
        let bytes = self.repository.manifest(target).await?;
        let document = Document::parse(target, &bytes)?;
        let labels: Labels = document
            .children()
            .into_iter()
            .map(|(suffix, child)| {
                (format!("containerd.io/gc.ref.content.{suffix}"), child.digest.to_string())
            })
            .collect();
        match &document {
            Document::Index(index) => {
                for entry in self.wanted(&index.manifests)? {
                    Box::pin(self.fetch_tree(&entry, depth_left - 1)).await?;
                }
            }
            Document::Manifest(_) => {
                let children = document.children().into_iter().map(|(_, child)| child);
                stream::iter(children.map(|child| self.fetch_blob(child)))
                    .buffer_unordered(self.downloads)
                    .try_collect::<()>()
                    .await?;
            }
        }
        self.client.content().write_blob(target, bytes, &labels).await
    }

    /// The entries of an index to fetch: the best of each platform asked for.
    fn wanted(&self, entries: &[Descriptor]) -> Result<Vec<Descriptor>> {
        if self.matcher.is_all() || self.all_metadata {
            return Ok(entries.to_vec());
        }
        let rank = |d: &Descriptor| match &d.platform {
            Some(platform) => self.matcher.rank(platform),
            None => Some(usize::MAX),
        };
        let usable = |d: &&Descriptor| {
            media_types::is_manifest(&d.media_type) || media_types::is_index(&d.media_type)
        };
        let best = entries.iter().filter(usable).filter_map(rank).min();
        let Some(best) = best else {
            let why = "no match for platform in manifest";
            return Err(Error::not_found(format!("{}: {why}", self.repository.reference())));
        };
        Ok(entries.iter().filter(usable).filter(|d| rank(d) == Some(best)).cloned().collect())
    }

    async fn fetch_blob(&self, blob: &Descriptor) -> Result<()> {
        let name = blob.digest.to_string();
        let options = WriterOptions {
            reference: format!("layer-{}", blob.digest),
            total: blob.size,
            expected: Some(blob.digest.clone()),
        };
        let mut writer = match self.client.content().writer(options).await {
            Err(e) if e.is_already_exists() => {
                self.tell("already exists", &name, blob.size, blob.size).await;
                return Ok(());
            }
            other => other?,
        };
        let mut offset = writer.offset();
        let mut stream = self.repository.fetch(blob, offset.unsigned_abs()).await?;
        while let Some(bytes) = stream.next().await? {
            offset += bytes.len() as i64;
            writer.write(bytes).await?;
            self.tell("downloading", &name, offset, blob.size).await;
        }
        match writer.commit(&Labels::new()).await {
            Err(e) if !e.is_already_exists() => return Err(e),
            _ => {}
        }
        self.tell("complete", &name, blob.size, blob.size).await;
        Ok(())
    }

    async fn tell(&self, event: &str, name: &str, progress: i64, total: i64) {
        let step = Progress {
            event: event.to_owned(),
            name: name.to_owned(),
            parents: Vec::new(),
            progress,
            total,
            descriptor: None,
        };
        // Nobody looking is no reason to stop.
        let _ = self.steps.send(step).await;
    }
}

/// A resolver that goes by the flags of the command line.
pub(crate) fn resolver(registry: &RegistryOptions) -> Resolver {
    let config_dirs = match registry.hosts_dir.as_str() {
        "" => Vec::new(),
        dir => vec![PathBuf::from(dir)],
    };
    let hosts = Hosts::new(HostsOptions {
        config_dirs,
        plain_http: registry.plain_http.then_some(true),
        header: registry.headers.clone(),
        ..HostsOptions::default()
    });
    let credentials: Arc<dyn Credentials> = match &registry.credentials {
        None => Arc::new(Anonymous),
        Some(given) => Arc::new(Given(given.clone())),
    };
    Resolver::new(ResolverOptions { hosts, credentials })
}

/// The credentials of the command line, for whoever asks.
struct Given(gantry_client::Credentials);

#[async_trait::async_trait]
impl Credentials for Given {
    async fn get(&self, _: &AuthRequest) -> Result<Option<Credential>> {
        let secret = self.0.secret.clone();
        Ok(Some(if self.0.username.is_empty() {
            Credential::RefreshToken(secret)
        } else {
            Credential::Basic { username: self.0.username.clone(), secret }
        }))
    }
}
