//! The client: containers by id, and the way events come.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use gantry_client::ContainerBuilder;
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_oci::Spec;

use crate::container::Container;
use crate::events::Events;
use crate::runtimes::RuntimeConfig;
use crate::types::{BUNDLE_LABEL, Backend};

/// How a client works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Directory for a bundle per container, with its FIFOs.
    pub state_dir: PathBuf,
    /// The runtimes.
    pub runtimes: RuntimeConfig,
    /// User and group that own the FIFOs within a shim, for engines with remapped roots.
    pub io_owner: (u32, u32),
    /// Leaves the change of root to `chroot`, for roots on a ramdisk.
    pub no_pivot_root: bool,
}

impl Options {
    /// The usual: bundles in `state_dir`, the stock runtimes.
    pub fn new(state_dir: impl Into<PathBuf>) -> Self {
        Self {
            state_dir: state_dir.into(),
            runtimes: RuntimeConfig::default(),
            io_owner: (0, 0),
            no_pivot_root: false,
        }
    }
}

/// The engine's way to its containers. Cheap to clone; events stop with the last clone and the
/// last object made from it.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) daemon: gantry_client::Client,
    pub(crate) options: Options,
    pub(crate) events: Events,
}

impl Client {
    /// A client of `daemon`'s containers in its namespace, whose events go to `backend` from when
    /// this returns.
    ///
    /// # Errors
    /// Unavailable when the daemon can't be reached.
    pub async fn new(
        daemon: gantry_client::Client,
        options: Options,
        backend: Arc<dyn Backend>,
    ) -> Result<Self> {
        let events = Events::start(&daemon, backend).await?;
        Ok(Self { inner: Arc::new(Inner { daemon, options, events }) })
    }

    /// The daemon's version.
    ///
    /// # Errors
    /// Unavailable.
    pub async fn version(&self) -> Result<gantry_client::Version> {
        self.inner.daemon.version().await
    }

    /// The client below.
    pub fn daemon(&self) -> &gantry_client::Client {
        &self.inner.daemon
    }

    /// A container that is there.
    ///
    /// # Errors
    /// NotFound.
    pub async fn load_container(&self, id: &str) -> Result<Container> {
        let found = self.inner.daemon.container(id).await.map_err(|e| {
            if e.is_not_found() { Error::not_found(format!("no such container: {id}")) } else { e }
        })?;
        let bundle = match found.record().labels.get(BUNDLE_LABEL) {
            Some(path) => PathBuf::from(path),
            None => self.bundle(id),
        };
        Ok(Container::new(self.clone(), found, bundle))
    }

    /// Makes a container that runs by `spec` with the runtime called `runtime`. What else its
    /// record should say, such as labels or a root filesystem from a snapshotter, `options` adds.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument for an unknown runtime.
    pub async fn new_container(
        &self,
        id: &str,
        spec: &Spec,
        runtime: &str,
        options: impl FnOnce(ContainerBuilder) -> ContainerBuilder,
    ) -> Result<Container> {
        let entry = self.inner.options.runtimes.resolve(runtime)?;
        let bundle = self.bundle(id);
        let builder = self
            .inner
            .daemon
            .container_builder(id)
            .runtime(entry.shim, entry.options)
            .spec(spec)?
            .label(BUNDLE_LABEL, bundle.to_string_lossy());
        let made = options(builder).create().await?;
        let container = Container::new(self.clone(), made, bundle);
        if let Err(e) = make_private(container.bundle()) {
            // Nothing may be left of a container that could not be made.
            let _ = container.delete().await;
            return Err(e);
        }
        Ok(container)
    }

    /// As [`Self::new_container`]; a stale container of this id, with its task, is removed first.
    ///
    /// # Errors
    /// As [`Self::new_container`], and what keeps the stale container from going.
    pub async fn replace_container(
        &self,
        id: &str,
        spec: &Spec,
        runtime: &str,
        options: impl Fn(ContainerBuilder) -> ContainerBuilder,
    ) -> Result<Container> {
        match self.new_container(id, spec, runtime, &options).await {
            Err(e) if e.is_already_exists() => {}
            other => return other,
        }
        tracing::debug!(container = id, "a stale container of that id is removed");
        match self.load_container(id).await {
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
            Ok(stale) => stale.force_delete().await?,
        }
        self.new_container(id, spec, runtime, &options).await
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.inner.options.state_dir.join(id)
    }
}

/// Makes a directory that only its owner gets into.
fn make_private(dir: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .context(|| format!("making {}", dir.display()))
}
