//! Making containers: records with a root filesystem and a spec.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use gantry_core::{Any, Labels};
use gantry_errdefs::{Error, Result};
use gantry_oci::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};
use gantry_oci::{Spec, SpecBuilder};

use crate::cancel::make_or_undo;
use crate::checkpoint::Saved;
use crate::client::Client;
use crate::containers::{Container, ContainerRecord, Runtime};
use crate::convert::Mount;
use crate::image::Image;
use crate::resolved::ResolvedImage;
use crate::rootfs::{self, IdMap};
use crate::typeurl;
use crate::unpack::UnpackOptions;

/// The runtime of a container that names none.
const DEFAULT_RUNTIME: &str = "io.containerd.runc.v2";

/// The snapshotter of a container that names none.
pub const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

type SpecOption = Box<dyn FnOnce(SpecBuilder) -> SpecBuilder + Send + Sync>;

/// Makes a container, step by step.
pub struct ContainerBuilder {
    client: Client,
    record: ContainerRecord,
    image: Option<Image>,
    checkpoint: Option<Image>,
    without_changes: bool,
    /// Whether the runtime is the caller's choice.
    runtime_given: bool,
    new_rootfs: Option<NewRootfs>,
    snapshot_labels: Labels,
    spec_options: Vec<SpecOption>,
}

/// A root filesystem that is made together with the container.
#[derive(Clone, Debug)]
struct NewRootfs {
    key: String,
    read_only: bool,
    remap: Option<(Vec<IdMap>, Vec<IdMap>)>,
}

impl Client {
    /// Starts making container `id`.
    pub fn container_builder(&self, id: impl Into<String>) -> ContainerBuilder {
        let record = ContainerRecord {
            id: id.into(),
            labels: Labels::new(),
            image: String::new(),
            runtime: Runtime { name: DEFAULT_RUNTIME.to_owned(), options: None },
            spec: None,
            snapshotter: String::new(),
            snapshot_key: String::new(),
            extensions: BTreeMap::new(),
            sandbox: String::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        ContainerBuilder {
            client: self.clone(),
            record,
            image: None,
            checkpoint: None,
            without_changes: false,
            runtime_given: false,
            new_rootfs: None,
            snapshot_labels: Labels::new(),
            spec_options: Vec::new(),
        }
    }
}

impl ContainerBuilder {
    /// The image's name, and nothing else of it.
    #[must_use]
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.record.image = name.into();
        self
    }

    /// The image: its name, what its config says of the process, and the parent of a new root
    /// filesystem.
    #[must_use]
    pub fn from_image(mut self, image: &Image) -> Self {
        self.record.image = image.name().to_owned();
        self.image = Some(image.clone());
        self
    }

    /// A checkpoint, as [`Container::checkpoint_image`] and Go's clients make it: image, spec,
    /// runtime, snapshotter and the changes of the root filesystem, which is made anew under
    /// `key`. What else the builder is told goes before what the checkpoint says. The task is then
    /// restored by [`crate::TaskBuilder::from_checkpoint`].
    #[must_use]
    pub fn from_checkpoint(mut self, checkpoint: &Image, key: impl Into<String>) -> Self {
        self.checkpoint = Some(checkpoint.clone());
        self.new_snapshot(key)
    }

    /// With [`Self::from_checkpoint`]: the root filesystem as the image has it.
    #[must_use]
    pub fn without_changes(mut self) -> Self {
        self.without_changes = true;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.record.labels.insert(key.into(), value.into());
        self
    }

    /// Adds labels.
    #[must_use]
    pub fn labels(mut self, labels: Labels) -> Self {
        self.record.labels.extend(labels);
        self
    }

    /// The runtime; `io.containerd.runc.v2` without options unless set.
    #[must_use]
    pub fn runtime(mut self, name: impl Into<String>, options: Option<Any>) -> Self {
        self.record.runtime = Runtime { name: name.into(), options };
        self.runtime_given = true;
        self
    }

    /// The sandbox it belongs to.
    #[must_use]
    pub fn sandbox(mut self, id: impl Into<String>) -> Self {
        self.record.sandbox = id.into();
        self
    }

    /// The snapshotter of a new root filesystem; `overlayfs` unless set.
    #[must_use]
    pub fn snapshotter(mut self, name: impl Into<String>) -> Self {
        self.record.snapshotter = name.into();
        self
    }

    /// Labels of a new root filesystem, such as [`crate::VOLATILE_LABEL`].
    #[must_use]
    pub fn snapshot_labels(mut self, labels: Labels) -> Self {
        self.snapshot_labels.extend(labels);
        self
    }

    /// The root filesystem: an active snapshot or view that is there.
    #[must_use]
    pub fn snapshot(mut self, snapshotter: impl Into<String>, key: impl Into<String>) -> Self {
        self.record.snapshotter = snapshotter.into();
        self.record.snapshot_key = key.into();
        self.new_rootfs = None;
        self
    }

    /// A root filesystem of the image's, writable, made under `key` with the container. The image
    /// is unpacked if it is not.
    #[must_use]
    pub fn new_snapshot(self, key: impl Into<String>) -> Self {
        self.new_rootfs(key.into(), false, None)
    }

    /// As [`Self::new_snapshot`], read-only.
    #[must_use]
    pub fn new_view(self, key: impl Into<String>) -> Self {
        self.new_rootfs(key.into(), true, None)
    }

    /// As [`Self::new_snapshot`], with every file given to the ids on the host that its own stand
    /// for, and the spec in a user namespace of those. Needs the daemon's machine.
    #[must_use]
    pub fn remapped_snapshot(self, key: impl Into<String>, uids: &[IdMap], gids: &[IdMap]) -> Self {
        self.new_rootfs(key.into(), false, Some((uids.to_vec(), gids.to_vec())))
    }

    /// As [`Self::remapped_snapshot`], read-only.
    #[must_use]
    pub fn remapped_view(self, key: impl Into<String>, uids: &[IdMap], gids: &[IdMap]) -> Self {
        self.new_rootfs(key.into(), true, Some((uids.to_vec(), gids.to_vec())))
    }

    /// The runtime spec.
    ///
    /// # Errors
    /// Internal when it can't be encoded.
    pub fn spec(self, spec: &Spec) -> Result<Self> {
        Ok(self.raw_spec(typeurl::pack_spec(spec)?))
    }

    /// The runtime spec as bytes, kept as they are.
    #[must_use]
    pub fn raw_spec(mut self, spec: Any) -> Self {
        self.record.spec = Some(spec);
        self
    }

    /// Makes the spec: the default one, with what the image says (see [`Self::from_image`]), and
    /// then what `option` does to it. Options are applied in the order they are given.
    #[must_use]
    pub fn spec_option(
        mut self,
        option: impl FnOnce(SpecBuilder) -> SpecBuilder + Send + Sync + 'static,
    ) -> Self {
        self.spec_options.push(Box::new(option));
        self
    }

    /// Adds an extension.
    #[must_use]
    pub fn extension(mut self, name: impl Into<String>, value: Any) -> Self {
        self.record.extensions.insert(name.into(), value);
        self
    }

    /// Makes the container, and its root filesystem if that is to be new. What was made is
    /// removed again when a later step fails or the future is dropped.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument, also for options that do not go together; NotFound for
    /// content of the image that is missing.
    pub async fn create(self) -> Result<Container> {
        let work = async move {
            let this = self.checked()?;
            if this.new_rootfs.is_none() {
                return this.create_leased().await;
            }
            // Holds what is made until the record does.
            let guard = this.client.leases().guard().await?;
            let outer = this.client.clone();
            let this = Self { client: guard.client().clone(), ..this };
            let created = this.create_leased().await;
            if let Err(e) = guard.release().await {
                tracing::debug!(error = %e, "lease left to expire");
            }
            created.map(|made| Made {
                container: Container { client: outer, ..made.container },
                ..made
            })
        };
        make_or_undo(work, Made::undo).await.map(|made| made.container)
    }

    /// Refuses what cannot work before anything is made.
    fn checked(self) -> Result<Self> {
        let wrong = |why: &str| {
            let id = &self.record.id;
            Err(Error::invalid_argument(format!("container {id:?}: {why}")))
        };
        if self.record.id.is_empty() {
            return wrong("an id is needed");
        }
        let parent = self.image.is_some() || self.checkpoint.is_some();
        match &self.new_rootfs {
            Some(_) if !parent => return wrong("a new root filesystem needs an image"),
            Some(new) if new.key.is_empty() => return wrong("a snapshot key is needed"),
            Some(NewRootfs { remap: Some(_), .. }) if self.checkpoint.is_some() => {
                return wrong("a checkpoint cannot be remapped");
            }
            _ => {}
        }
        if self.record.spec.is_some() && !self.spec_options.is_empty() {
            return wrong("it has a spec; options are for one that is made");
        }
        Ok(self)
    }

    async fn create_leased(mut self) -> Result<Made> {
        if let Some(checkpoint) = self.checkpoint.take() {
            return self.create_saved(&checkpoint).await;
        }
        let image = match &self.image {
            Some(image) => Some(image.resolve().await?),
            None => None,
        };
        let mounts = match (&self.new_rootfs, &image) {
            (Some(new), Some(image)) => Some(self.make_rootfs(new, image).await?),
            _ => None,
        };
        let made = self.make_record(image.as_ref(), mounts.as_deref()).await;
        match (made, &self.new_rootfs) {
            (Ok(container), new) => Ok(Made { container, with_snapshot: new.is_some() }),
            (Err(e), Some(new)) => {
                self.drop_rootfs(&new.key).await;
                Err(e)
            }
            (Err(e), None) => Err(e),
        }
    }

    /// The container of a checkpoint, with what the checkpoint says where nothing else was asked.
    async fn create_saved(mut self, checkpoint: &Image) -> Result<Made> {
        let saved = Saved::read(&self.client, checkpoint).await?;
        let image = saved.image(&self.client).await?;
        if self.record.image.is_empty() {
            self.record.image.clone_from(&saved.image_name);
        }
        if self.record.spec.is_none() && self.spec_options.is_empty() {
            self.record.spec = Some(saved.spec(&self.client).await?);
        }
        if !self.runtime_given && !saved.runtime.is_empty() {
            let options = saved.runtime_options(&self.client).await?;
            self.record.runtime = Runtime { name: saved.runtime.clone(), options };
        }
        if self.record.snapshotter.is_empty() {
            self.record.snapshotter.clone_from(&saved.snapshotter);
        }
        let new = self.new_rootfs.clone().expect("a checkpoint comes with a key");
        let mounts = self.make_rootfs(&new, &image).await?;
        let made = async {
            if let Some(changes) = saved.changes().filter(|_| !self.without_changes) {
                self.client.diff().apply(changes, &mounts).await?;
            }
            self.make_record(Some(&image), Some(&mounts)).await
        };
        match made.await {
            Ok(container) => Ok(Made { container, with_snapshot: true }),
            Err(e) => {
                self.drop_rootfs(&new.key).await;
                Err(e)
            }
        }
    }

    async fn make_record(
        &mut self,
        image: Option<&ResolvedImage>,
        mounts: Option<&[Mount]>,
    ) -> Result<Container> {
        let wants_spec = image.is_some() || !self.spec_options.is_empty();
        if self.record.spec.is_none() && wants_spec {
            let spec = self.make_spec(image, mounts).await?;
            self.record.spec = Some(typeurl::pack_spec(&spec)?);
        }
        if let Some(new) = &self.new_rootfs {
            self.record.snapshot_key.clone_from(&new.key);
            self.record.snapshotter = self.snapshotter_name().to_owned();
        }
        let record = self.client.containers().create(&self.record).await?;
        Ok(Container { client: self.client.clone(), record })
    }

    async fn make_spec(
        &mut self,
        image: Option<&ResolvedImage>,
        mounts: Option<&[Mount]>,
    ) -> Result<Spec> {
        let mut builder = SpecBuilder::new(self.client.namespace(), &self.record.id);
        if let Some(image) = image {
            builder = builder.image_config(&image.config.config);
        }
        if let Some((uids, gids)) = self.new_rootfs.as_ref().and_then(|n| n.remap.as_ref()) {
            builder = builder.user_namespace(spec_maps(uids), spec_maps(gids));
        }
        for option in std::mem::take(&mut self.spec_options) {
            builder = option(builder);
        }
        if builder.needs_users()
            && let Some(mounts) = mounts
        {
            builder = builder.users(rootfs::users(mounts).await?);
        }
        builder.build()
    }

    fn snapshotter_name(&self) -> &str {
        match self.record.snapshotter.as_str() {
            "" => DEFAULT_SNAPSHOTTER,
            name => name,
        }
    }

    async fn make_rootfs(&self, new: &NewRootfs, image: &ResolvedImage) -> Result<Vec<Mount>> {
        let options = UnpackOptions::with_snapshotter(self.snapshotter_name());
        if !self.client.is_unpacked(image, &options.snapshotter).await? {
            self.client.unpack(image, &options).await?;
        }
        let snapshots = self.client.snapshots(options.snapshotter);
        let mut parent = image.parent();
        if let Some((uids, gids)) = &new.remap {
            parent = self.make_remapped(&parent, uids, gids).await?;
        }
        if new.read_only {
            snapshots.view(&new.key, &parent, self.snapshot_labels.clone()).await
        } else {
            snapshots.prepare(&new.key, &parent, self.snapshot_labels.clone()).await
        }
    }

    /// The committed snapshot that is `parent` with other owners, made once for all containers.
    async fn make_remapped(&self, parent: &str, uids: &[IdMap], gids: &[IdMap]) -> Result<String> {
        let root = |maps: &[IdMap]| maps.iter().find(|m| m.inside == 0).map_or(0, |m| m.outside);
        let name = format!("{parent}-{}-{}", root(uids), root(gids));
        let snapshots = self.client.snapshots(self.snapshotter_name());
        match snapshots.stat(&name).await {
            Ok(_) => return Ok(name),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        let key = format!("remap-{random} {name}");
        let mounts = snapshots.prepare(&key, parent, Labels::new()).await?;
        let changed = rootfs::remap(&mounts, uids.to_vec(), gids.to_vec()).await;
        let committed = match changed {
            Ok(()) => snapshots.commit(&name, &key, Labels::new()).await,
            Err(e) => Err(e),
        };
        match committed {
            Ok(()) => Ok(name),
            Err(e) => {
                let removed = snapshots.remove(&key).await;
                // Someone else was faster.
                if e.is_already_exists() { removed.map(|()| name) } else { Err(e) }
            }
        }
    }

    async fn drop_rootfs(&self, key: &str) {
        if let Err(e) = self.client.snapshots(self.snapshotter_name()).remove(key).await {
            tracing::debug!(key, error = %e, "snapshot left");
        }
    }

    fn new_rootfs(
        mut self,
        key: String,
        read_only: bool,
        remap: Option<(Vec<IdMap>, Vec<IdMap>)>,
    ) -> Self {
        self.new_rootfs = Some(NewRootfs { key, read_only, remap });
        self
    }
}

/// A container that was just made.
struct Made {
    container: Container,
    /// Whether its root filesystem was made with it.
    with_snapshot: bool,
}

impl Made {
    async fn undo(self) {
        if let Err(e) = self.container.delete(self.with_snapshot).await {
            tracing::debug!(container = self.container.id(), error = %e, "container left");
        }
    }
}

fn spec_maps(maps: &[IdMap]) -> Vec<LinuxIdMapping> {
    let one = |map: &IdMap| {
        LinuxIdMappingBuilder::default()
            .container_id(map.inside)
            .host_id(map.outside)
            .size(map.size)
            .build()
            .expect("every field is set")
    };
    maps.iter().map(one).collect()
}

impl fmt::Debug for ContainerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ContainerBuilder").field("record", &self.record).finish_non_exhaustive()
    }
}
