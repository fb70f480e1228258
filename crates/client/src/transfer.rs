//! Pull, push, tag, import and export by the daemon's transfer service.

use std::collections::HashMap;
use std::time::Duration;

use futures_util::future::join_all;
use gantry_api::Payload;
use gantry_api::containerd::services::transfer::v1::transfer_client::TransferClient;
use gantry_api::containerd::services::transfer::v1::{TransferOptions, TransferRequest};
use gantry_api::containerd::types::{self, transfer as wire};
use gantry_core::{Descriptor, Labels, Platform};
use gantry_errdefs::{Error, Result};
use gantry_registry::{HttpLog, TlsFiles};
use prost::Name;
use prost_types::Any;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::beside::{Auth, Beside, Log};
use crate::client::{handle, service};
use crate::convert::{descriptor, label_map, platform_out, status};
use crate::streams::MessageStream;

/// How long the last steps of a transfer that is done may take to arrive. A daemon that leaves the
/// stream open costs this much.
const LAST_STEPS_PATIENCE: Duration = Duration::from_secs(1);

handle! {
    /// The transfer service. Daemons before 1.7 have none and answer Unimplemented.
    Transfer, transfer
}

/// Name and password for a registry.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User; empty when `secret` is a refresh token.
    pub username: String,
    /// Password or token.
    pub secret: String,
}

/// How a registry is spoken to.
#[derive(Clone, Debug, Default)]
pub struct RegistryOptions {
    /// Uses HTTP without TLS.
    pub plain_http: bool,
    /// Directory with `hosts.toml` files, on the daemon's machine; for this program's requests
    /// several with `:` between them.
    pub hosts_dir: String,
    /// Credentials, handed out when the registry asks.
    pub credentials: Option<Credentials>,
    /// The host that alone gets the credentials, as references name it; None hands them to every
    /// host that asks, mirrors included.
    pub credentials_host: Option<String>,
    /// Further headers.
    pub headers: Vec<(String, String)>,
    /// TLS files of this program, where the host's configuration has none. Only requests of this
    /// program can use them: transfers by the daemon are refused with any.
    pub tls: TlsFiles,
    /// Who is told of the requests, of this program and of the daemon (gantryd; containerd from
    /// 2.1 on).
    pub http_log: Option<HttpLog>,
}

/// What is pulled, and what happens to it.
#[derive(Clone, Debug)]
pub struct PullOptions {
    /// The full reference.
    pub reference: String,
    /// The registry.
    pub registry: RegistryOptions,
    /// Labels of the image record.
    pub labels: Labels,
    /// Platforms to fetch; empty for the daemon's own, see `all_platforms`.
    pub platforms: Vec<Platform>,
    /// Fetches every platform.
    pub all_platforms: bool,
    /// Fetches manifests and configs of every platform.
    pub all_metadata: bool,
    /// Fetches manifests and configs of every platform, and no layer. This program does that, and
    /// unpacks nothing.
    pub metadata_only: bool,
    /// Snapshotter to unpack into; None fetches only.
    pub unpack: Option<String>,
    /// Blobs that this program fetches at the same time, when it pulls; 0 for the usual number.
    pub downloads: usize,
    /// Lets this program pull even if the daemon could.
    pub local: bool,
    /// Makes an image of docker's schema 1, which is refused otherwise, into one of OCI's: it gets
    /// another digest. This program does that, so it pulls.
    pub convert_schema1: bool,
}

/// What is pushed.
#[derive(Clone, Debug)]
pub struct PushOptions {
    /// The local image's name.
    pub image: String,
    /// The full reference to push to.
    pub reference: String,
    /// The registry.
    pub registry: RegistryOptions,
    /// Platforms to push; empty for all that are there.
    pub platforms: Vec<Platform>,
    /// What to push instead of the image, by its digest; this program does that.
    pub manifest: Option<Descriptor>,
}

/// What happens to the images of an archive.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Name of images that the archive names by tag or digest alone.
    pub base_name: Option<String>,
    /// Also names images by digest, `base@digest`.
    pub digests: bool,
    /// Name of the archive's index itself.
    pub index_name: Option<String>,
    /// As `digests`, but not of images that the archive gives a name.
    pub skip_named_digests: bool,
    /// Labels of the image records.
    pub labels: Labels,
    /// Platforms to take and unpack; empty for the daemon's own, see `all_platforms`.
    pub platforms: Vec<Platform>,
    /// Takes every platform.
    pub all_platforms: bool,
    /// Snapshotter to unpack into; None only stores.
    pub unpack: Option<String>,
    /// Compresses the layers that an archive of docker's holds as plain tars. Daemons without the
    /// transfer service are given them as they are.
    pub compress: bool,
}

/// What of images goes into an archive.
#[derive(Clone, Debug, Default)]
pub struct ExportOptions {
    /// Platforms to write; empty for all that are there.
    pub platforms: Vec<Platform>,
    /// Writes every platform; content of all of them must be there.
    pub all_platforms: bool,
    /// Leaves out `manifest.json`, by which docker loads the archive.
    pub skip_docker_manifest: bool,
    /// Leaves out layers that may not be distributed.
    pub skip_non_distributable: bool,
}

/// What is copied from registry to registry.
#[derive(Clone, Debug)]
pub struct CopyOptions {
    /// The full reference of the image.
    pub from: String,
    /// Its registry.
    pub from_registry: RegistryOptions,
    /// The full reference it gets.
    pub to: String,
    /// The registry it goes to.
    pub to_registry: RegistryOptions,
}

/// A step of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What happens, such as `downloading`, `complete`, `extracting`.
    pub event: String,
    /// To what: a reference, or `layer (sha256:...)` and the like. Empty for the whole.
    pub name: String,
    /// Names of what it belongs to.
    pub parents: Vec<String>,
    /// Bytes done.
    pub progress: i64,
    /// Bytes in all; 0 when it is not known.
    pub total: i64,
    /// The content, when it is known.
    pub descriptor: Option<Descriptor>,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

impl PullOptions {
    /// Pulls `reference` for the daemon's platform and unpacks it with overlayfs.
    pub fn new(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            registry: RegistryOptions::default(),
            labels: Labels::new(),
            platforms: Vec::new(),
            all_platforms: false,
            all_metadata: false,
            metadata_only: false,
            unpack: Some("overlayfs".to_owned()),
            downloads: 0,
            local: false,
            convert_schema1: false,
        }
    }

    /// Takes images of docker's schema 1 too, and makes them into images of OCI's.
    #[must_use]
    pub fn convert_schema1(mut self) -> Self {
        self.convert_schema1 = true;
        self
    }

    /// Uses HTTP without TLS.
    #[must_use]
    pub fn plain_http(mut self) -> Self {
        self.registry.plain_http = true;
        self
    }

    /// The snapshotter to unpack into; None fetches only.
    #[must_use]
    pub fn unpack(mut self, snapshotter: Option<&str>) -> Self {
        self.unpack = snapshotter.map(str::to_owned);
        self
    }

    /// Fetches one more platform, instead of this machine's.
    #[must_use]
    pub fn platform(mut self, platform: Platform) -> Self {
        self.platforms.push(platform);
        self
    }

    /// Adds a label of the image record.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.labels.insert(key.into(), value.into());
        self
    }

    /// Who asks, when the registry wants to know.
    #[must_use]
    pub fn credentials(mut self, credentials: Credentials) -> Self {
        self.registry.credentials = Some(credentials);
        self
    }
}

impl PushOptions {
    /// Pushes image `image` to `reference`, all of it that is there.
    pub fn new(image: impl Into<String>, reference: impl Into<String>) -> Self {
        Self {
            image: image.into(),
            reference: reference.into(),
            registry: RegistryOptions::default(),
            platforms: Vec::new(),
            manifest: None,
        }
    }

    /// Uses HTTP without TLS.
    #[must_use]
    pub fn plain_http(mut self) -> Self {
        self.registry.plain_http = true;
        self
    }
}

impl Transfer {
    /// Pulls an image and, unless told not to, unpacks it. `progress` is called for each step.
    ///
    /// # Errors
    /// NotFound for a reference the registry does not have; Unimplemented from a daemon without
    /// the service; the registry's refusals by class.
    pub async fn pull(
        &self,
        options: PullOptions,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let platforms = wanted(options.all_platforms, &options.platforms);
        let unpacks = unpacks(options.unpack.as_deref(), &platforms);
        let store = wire::ImageStore {
            name: options.reference.clone(),
            labels: label_map(&options.labels),
            platforms,
            all_metadata: options.all_metadata,
            unpacks,
            ..wire::ImageStore::default()
        };
        let (source, beside) = self.registry(&options.reference, options.registry).await?;
        self.run(&source, &store, vec![beside], progress).await
    }

    /// Pushes an image. `progress` is called for each step.
    ///
    /// # Errors
    /// NotFound for a missing image; the registry's refusals by class.
    pub async fn push(
        &self,
        options: PushOptions,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let store = wire::ImageStore {
            name: options.image,
            platforms: options.platforms.iter().map(platform_out).collect(),
            ..wire::ImageStore::default()
        };
        let (registry, beside) = self.registry(&options.reference, options.registry).await?;
        self.run(&store, &registry, vec![beside], progress).await
    }

    /// Gives an image a second name.
    ///
    /// # Errors
    /// NotFound; AlreadyExists unless `overwrite`.
    pub async fn tag(&self, image: &str, name: &str, overwrite: bool) -> Result<()> {
        let source = wire::ImageStore { name: image.to_owned(), ..wire::ImageStore::default() };
        let reference = wire::ImageReference {
            name: name.to_owned(),
            allow_overwrite: overwrite,
            ..wire::ImageReference::default()
        };
        let target = wire::ImageStore {
            name: name.to_owned(),
            extra_references: if overwrite { vec![reference] } else { Vec::new() },
            ..wire::ImageStore::default()
        };
        self.run(&source, &target, Vec::new(), |_| {}).await
    }

    /// Imports the images of an archive (OCI layout or Docker), read from `archive`.
    ///
    /// # Errors
    /// InvalidArgument for what is no archive.
    pub async fn import(
        &self,
        archive: &mut (impl AsyncRead + Unpin + Send),
        options: ImportOptions,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let platforms = wanted(options.all_platforms, &options.platforms);
        let unpacks = unpacks(options.unpack.as_deref(), &platforms);
        // Without a base name, images keep the full names that the archive gives them; the dated
        // one is for those named by a bare tag.
        let named = options.base_name.is_some();
        let base = wire::ImageReference {
            name: options.base_name.unwrap_or_else(dated_name),
            is_prefix: true,
            allow_overwrite: !named,
            add_digest: options.digests,
            skip_named_digest: options.skip_named_digests,
        };
        let store = wire::ImageStore {
            name: options.index_name.unwrap_or_default(),
            labels: label_map(&options.labels),
            platforms,
            extra_references: vec![base],
            unpacks,
            ..wire::ImageStore::default()
        };
        let bytes = MessageStream::open(&self.client, "import").await?;
        let source = wire::ImageImportStream {
            stream: bytes.id().to_owned(),
            force_compress: options.compress,
            ..Default::default()
        };
        let transfer = self.run(&source, &store, Vec::new(), progress);
        // The transfer's own error says more than that of its stream.
        let (done, sent) = tokio::join!(transfer, bytes.send_bytes(archive));
        done.and(sent)
    }

    /// Copies an image with all its platforms from registry to registry, past the daemon's store.
    /// `progress` is called for each step. For daemons other than gantryd Unimplemented.
    ///
    /// # Errors
    /// NotFound for the image; the registries' refusals by class.
    pub async fn copy(
        &self,
        options: CopyOptions,
        progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let (from, from_beside) = self.registry(&options.from, options.from_registry).await?;
        let (to, to_beside) = self.registry(&options.to, options.to_registry).await?;
        self.run(&from, &to, vec![from_beside, to_beside], progress).await
    }

    /// Writes images as an archive to `archive`; returns its size. `progress` is called for each
    /// step.
    ///
    /// # Errors
    /// NotFound for a missing image, and for content of platforms that is not there.
    pub async fn export(
        &self,
        images: &[String],
        options: &ExportOptions,
        archive: &mut (impl AsyncWrite + Unpin + Send),
        progress: impl FnMut(Progress) + Send,
    ) -> Result<u64> {
        let reference =
            |name: &String| wire::ImageReference { name: name.clone(), ..Default::default() };
        let store = wire::ImageStore {
            extra_references: images.iter().map(reference).collect(),
            ..wire::ImageStore::default()
        };
        let bytes = MessageStream::open(&self.client, "export").await?;
        let target = wire::ImageExportStream {
            stream: bytes.id().to_owned(),
            platforms: options.platforms.iter().map(platform_out).collect(),
            all_platforms: options.all_platforms,
            skip_compatibility_manifest: options.skip_docker_manifest,
            skip_non_distributable: options.skip_non_distributable,
            ..wire::ImageExportStream::default()
        };
        let transfer = self.run(&store, &target, Vec::new(), progress);
        let (done, received) = tokio::join!(transfer, bytes.receive_bytes(archive));
        done.and(received)
    }

    /// The registry end of a transfer, with a stream for credentials when there are any.
    async fn registry(
        &self,
        reference: &str,
        options: RegistryOptions,
    ) -> Result<(wire::OciRegistry, Beside)> {
        let auth = match options.credentials {
            None => None,
            Some(credentials) => {
                let stream = MessageStream::open(&self.client, "auth").await?;
                let host = options.credentials_host;
                Some(Auth { stream, credentials, host })
            }
        };
        if !options.tls.is_default() {
            let why = "TLS files of the client are not for requests of the daemon: pull and push by \
                       this program, or name them in a hosts.toml";
            return Err(Error::invalid_argument(why));
        }
        let log = match options.http_log {
            None => None,
            Some(to) => Some(Log { stream: MessageStream::open(&self.client, "http").await?, to }),
        };
        let debug = match log.as_ref().map(|log| (log.to.dump, log.to.trace)) {
            Some((true, true)) => wire::HttpDebug::Both,
            Some((true, false)) => wire::HttpDebug::Debug,
            Some((false, true)) => wire::HttpDebug::Trace,
            _ => wire::HttpDebug::Disabled,
        };
        let resolver = wire::RegistryResolver {
            http_debug: debug.into(),
            logs_stream: log.as_ref().map(|l| l.stream.id().to_owned()).unwrap_or_default(),
            auth_stream: auth.as_ref().map(|a| a.stream.id().to_owned()).unwrap_or_default(),
            headers: options.headers.into_iter().collect::<HashMap<_, _>>(),
            host_dir: options.hosts_dir,
            default_scheme: if options.plain_http { "http".to_owned() } else { String::new() },
        };
        let registry =
            wire::OciRegistry { reference: reference.to_owned(), resolver: Some(resolver) };
        Ok((registry, Beside { auth, log }))
    }

    /// Runs a transfer, telling its progress and answering its questions meanwhile.
    async fn run<S: Name, D: Name>(
        &self,
        source: &S,
        destination: &D,
        beside: Vec<Beside>,
        mut progress: impl FnMut(Progress) + Send,
    ) -> Result<()> {
        let mut steps = MessageStream::open(&self.client, "progress").await?;
        let options = TransferOptions { progress_stream: steps.id().to_owned() };
        let request = TransferRequest {
            source: Some(Any::pack(source)),
            destination: Some(Any::pack(destination)),
            options: Some(options),
        };
        let mut service = service!(self.client, TransferClient);
        let call = service.transfer(self.client.request(request));
        let follow = async {
            while let Ok(Some(message)) = steps.receive().await {
                if let Ok(Some(step)) = message.unpack::<wire::Progress>() {
                    progress(step_of(step));
                }
            }
        };
        let (auths, logs): (Vec<_>, Vec<_>) = beside.into_iter().map(|b| (b.auth, b.log)).unzip();
        let answer = async {
            join_all(auths.into_iter().flatten().map(Auth::serve)).await;
            std::future::pending::<()>().await
        };
        let logs = join_all(logs.into_iter().flatten().map(Log::follow));
        let follow = async { tokio::join!(follow, logs) };
        tokio::pin!(call, follow, answer);
        let mut followed = false;
        let done = loop {
            tokio::select! {
                done = &mut call => break done.map(|_| ()).map_err(status),
                _ = &mut follow, if !followed => followed = true,
                () = &mut answer => {}
            }
        };
        if !followed {
            // Sent before the answer, on another stream: it may arrive after it.
            let _ = tokio::time::timeout(LAST_STEPS_PATIENCE, follow).await;
        }
        done
    }
}

/// What to ask for: nothing for every platform, that of this machine if none is named.
fn wanted(all: bool, platforms: &[Platform]) -> Vec<types::Platform> {
    match (all, platforms.is_empty()) {
        (true, _) => Vec::new(),
        (false, true) => vec![platform_out(&gantry_core::platforms::default())],
        (false, false) => platforms.iter().map(platform_out).collect(),
    }
}

/// One unpack per platform, if there is to be any; for every platform, that of this machine.
fn unpacks(
    snapshotter: Option<&str>,
    platforms: &[types::Platform],
) -> Vec<wire::UnpackConfiguration> {
    let Some(snapshotter) = snapshotter else { return Vec::new() };
    let own = [platform_out(&gantry_core::platforms::default())];
    let wanted = if platforms.is_empty() { &own } else { platforms };
    wanted
        .iter()
        .map(|p| wire::UnpackConfiguration {
            platform: Some(p.clone()),
            snapshotter: snapshotter.to_owned(),
        })
        .collect()
}

fn step_of(step: wire::Progress) -> Progress {
    Progress {
        event: step.event,
        name: step.name,
        parents: step.parents,
        progress: step.progress,
        total: step.total,
        descriptor: step.desc.and_then(|d| descriptor(d).ok()),
    }
}

/// `import-<year>-<month>-<day>`, as ctr names images that have no name of their own.
pub(crate) fn dated_name() -> String {
    let now = gantry_core::timestamp::format(std::time::SystemTime::now());
    format!("import-{}", now.split('T').next().unwrap_or_default())
}
