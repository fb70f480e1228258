//! Container records.

use std::collections::BTreeMap;
use std::time::SystemTime;

use gantry_api::containerd::services::containers::v1 as wire;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_core::{Any, Labels};
use gantry_errdefs::{Error, Result};
use gantry_oci::{Spec, UserDatabase};

use crate::cancel::to_its_end;
use crate::client::{Client, handle, service};
use crate::convert::{any, any_out, label_map, label_mask, labels, required, status, time};
use crate::image::Image;
use crate::{rootfs, typeurl};

handle! {
    /// The containers service: what should run, and how.
    Containers, containers
}

/// A runtime's name and its options, opaque to us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Runtime {
    /// Name, such as `io.containerd.runc.v2`, or the absolute path of a shim.
    pub name: String,
    /// Options for the shim.
    pub options: Option<Any>,
}

/// A container's record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    /// Id, unique within the namespace.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Name of the image it was made from; may be empty.
    pub image: String,
    /// What runs it.
    pub runtime: Runtime,
    /// The runtime spec, as [`gantry_oci::SPEC_TYPE_URL`].
    pub spec: Option<Any>,
    /// Snapshotter of its root filesystem; may be empty.
    pub snapshotter: String,
    /// Key of its root filesystem; may be empty.
    pub snapshot_key: String,
    /// Values of others, by name.
    pub extensions: BTreeMap<String, Any>,
    /// The sandbox it belongs to; may be empty.
    pub sandbox: String,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it was changed last.
    pub updated_at: SystemTime,
}

/// A change of a container's record, made by [`ContainerUpdate::apply`].
#[derive(Debug)]
#[must_use = "nothing changes before `apply`"]
pub struct ContainerUpdate<'a> {
    container: &'a mut Container,
    changed: ContainerRecord,
    mask: Vec<String>,
    failure: Option<Error>,
}

/// A container: its record and the client that has it.
#[derive(Clone, Debug)]
pub struct Container {
    pub(crate) client: Client,
    pub(crate) record: ContainerRecord,
}

impl Containers {
    /// The record of a container.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, id: &str) -> Result<ContainerRecord> {
        let request = wire::GetContainerRequest { id: id.to_owned() };
        let answer = service!(self.client, ContainersClient)
            .get(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.container, "the container")?))
    }

    /// The records that match any of `filters`; all when there are none.
    ///
    /// # Errors
    /// InvalidArgument for a bad filter.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<ContainerRecord>> {
        let request = wire::ListContainersRequest { filters: filters.to_vec() };
        let answer = service!(self.client, ContainersClient)
            .list(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.containers.into_iter().map(record).collect())
    }

    /// Makes a record.
    ///
    /// # Errors
    /// AlreadyExists; InvalidArgument.
    pub async fn create(&self, container: &ContainerRecord) -> Result<ContainerRecord> {
        let request = wire::CreateContainerRequest { container: Some(wire_container(container)) };
        let answer = service!(self.client, ContainersClient)
            .create(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.container, "the container")?))
    }

    /// Changes the fields named by `mask` (`labels.KEY`, `spec`, `image`, `snapshotkey`,
    /// `extensions.NAME`); all that may change without one.
    ///
    /// # Errors
    /// NotFound; InvalidArgument.
    pub async fn update(
        &self,
        container: &ContainerRecord,
        mask: &[String],
    ) -> Result<ContainerRecord> {
        let update_mask =
            (!mask.is_empty()).then(|| prost_types::FieldMask { paths: mask.to_vec() });
        let request = wire::UpdateContainerRequest {
            container: Some(wire_container(container)),
            update_mask,
        };
        let answer = service!(self.client, ContainersClient)
            .update(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        Ok(record(required(answer.container, "the container")?))
    }

    /// Removes a record. Does not look at tasks and snapshots: [`Container::delete`] does.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, id: &str) -> Result<()> {
        let request = wire::DeleteContainerRequest { id: id.to_owned() };
        service!(self.client, ContainersClient)
            .delete(self.client.request(request))
            .await
            .map_err(status)?;
        Ok(())
    }
}

impl Client {
    /// Container `id`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn container(&self, id: &str) -> Result<Container> {
        let record = self.containers().get(id).await?;
        Ok(Container { client: self.clone(), record })
    }
}

impl Container {
    /// Id.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The record as it was last read or written by this object.
    pub fn record(&self) -> &ContainerRecord {
        &self.record
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The runtime spec, parsed.
    ///
    /// # Errors
    /// NotFound when there is none; InvalidArgument when it is not JSON of a spec.
    pub fn spec(&self) -> Result<Spec> {
        let missing = || Error::not_found(format!("spec of container {:?}", self.record.id));
        let spec = self.record.spec.as_ref().ok_or_else(missing)?;
        gantry_oci::from_json(&spec.value)
    }

    /// The users and groups of its root filesystem as it is now, on this machine, whether the container
    /// runs or not.
    ///
    /// # Errors
    /// NotFound when its snapshot is gone; those of mounting it, unless its root is a directory of this
    /// machine; as [`UserDatabase::from_rootfs`].
    pub async fn users(&self) -> Result<UserDatabase> {
        let record = &self.record;
        if !record.snapshot_key.is_empty() {
            let snapshots = self.client.snapshots(&record.snapshotter);
            return rootfs::users(&snapshots.mounts(&record.snapshot_key).await?).await;
        }
        match self.spec()?.root() {
            Some(root) if root.path().is_absolute() => rootfs::users_of(root.path().clone()).await,
            _ => Ok(UserDatabase::default()),
        }
    }

    /// Reads the record anew.
    ///
    /// # Errors
    /// NotFound.
    pub async fn refresh(&mut self) -> Result<&ContainerRecord> {
        self.record = self.client.containers().get(self.id()).await?;
        Ok(&self.record)
    }

    /// The labels, read anew.
    ///
    /// # Errors
    /// NotFound.
    pub async fn labels(&self) -> Result<Labels> {
        Ok(self.client.containers().get(self.id()).await?.labels)
    }

    /// The values of others, read anew.
    ///
    /// # Errors
    /// NotFound.
    pub async fn extensions(&self) -> Result<BTreeMap<String, Any>> {
        Ok(self.client.containers().get(self.id()).await?.extensions)
    }

    /// The image the container was made from.
    ///
    /// # Errors
    /// NotFound when the container names none, or the name is gone.
    pub async fn image(&self) -> Result<Image> {
        if self.record.image.is_empty() {
            return Err(Error::not_found(format!("image of container {:?}", self.record.id)));
        }
        self.client.image(&self.record.image).await
    }

    /// Starts a change of several fields at once.
    pub fn update(&mut self) -> ContainerUpdate<'_> {
        let changed = self.record.clone();
        ContainerUpdate { container: self, changed, mask: Vec::new(), failure: None }
    }

    /// Sets labels; an empty value removes one. Returns all labels.
    ///
    /// # Errors
    /// NotFound; InvalidArgument.
    pub async fn set_labels(&mut self, new: &Labels) -> Result<&Labels> {
        let mut changed = self.record.clone();
        changed.labels.clone_from(new);
        let mask = label_mask(new.keys()).paths;
        self.record = self.client.containers().update(&changed, &mask).await?;
        Ok(&self.record.labels)
    }

    /// Removes the container, which must not have a task, and with `with_snapshot` its root
    /// filesystem. Once begun this goes on to its end, whether or not the caller waits.
    ///
    /// # Errors
    /// FailedPrecondition while a task exists; NotFound.
    pub async fn delete(&self, with_snapshot: bool) -> Result<()> {
        let container = self.clone();
        to_its_end(async move { container.delete_now(with_snapshot).await }).await
    }

    /// How this client's unsettled things name the container's task.
    pub(crate) fn task_name(&self) -> String {
        format!("{}/{}", self.client.namespace(), self.record.id)
    }

    async fn delete_now(&self, with_snapshot: bool) -> Result<()> {
        // Else a task whose making was given up would appear after its container has gone.
        self.client.unsettled().settled(&self.task_name()).await;
        match self.client.tasks().get(self.id()).await {
            Ok(_) => {
                let why = format!("container {:?}: its task must be deleted first", self.id());
                return Err(Error::failed_precondition(why));
            }
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        if with_snapshot && !self.record.snapshot_key.is_empty() {
            let snapshots = self.client.snapshots(&self.record.snapshotter);
            match snapshots.remove(&self.record.snapshot_key).await {
                Err(e) if !e.is_not_found() => return Err(e),
                _ => {}
            }
        }
        self.client.containers().delete(self.id()).await
    }
}

impl ContainerUpdate<'_> {
    /// Sets a label; an empty value removes it.
    pub fn label(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        let key = key.into();
        self.mask.push(format!("labels.{key}"));
        self.changed.labels.insert(key, value.into());
        self
    }

    /// Sets a value of the caller's own.
    pub fn extension(mut self, name: impl Into<String>, value: Any) -> Self {
        let name = name.into();
        self.mask.push(format!("extensions.{name}"));
        self.changed.extensions.insert(name, value);
        self
    }

    /// Sets the image's name.
    pub fn image(mut self, name: impl Into<String>) -> Self {
        self.mask.push("image".to_owned());
        self.changed.image = name.into();
        self
    }

    /// Sets the key of the root filesystem.
    pub fn snapshot_key(mut self, key: impl Into<String>) -> Self {
        self.mask.push("snapshotkey".to_owned());
        self.changed.snapshot_key = key.into();
        self
    }

    /// Sets the runtime spec; the next task runs by it.
    pub fn spec(mut self, spec: &Spec) -> Self {
        match typeurl::pack_spec(spec) {
            Ok(packed) => {
                self.mask.push("spec".to_owned());
                self.changed.spec = Some(packed);
            }
            Err(e) => self.failure = Some(e),
        }
        self
    }

    /// Makes the change.
    ///
    /// # Errors
    /// NotFound; InvalidArgument. Nothing is changed then.
    pub async fn apply(self) -> Result<()> {
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if self.mask.is_empty() {
            return Ok(());
        }
        let containers = self.container.client.containers();
        self.container.record = containers.update(&self.changed, &self.mask).await?;
        Ok(())
    }
}

fn record(c: wire::Container) -> ContainerRecord {
    let runtime = c.runtime.unwrap_or_default();
    ContainerRecord {
        id: c.id,
        labels: labels(c.labels),
        image: c.image,
        runtime: Runtime { name: runtime.name, options: runtime.options.map(any) },
        spec: c.spec.map(any),
        snapshotter: c.snapshotter,
        snapshot_key: c.snapshot_key,
        extensions: c.extensions.into_iter().map(|(k, v)| (k, any(v))).collect(),
        sandbox: c.sandbox,
        created_at: time(c.created_at),
        updated_at: time(c.updated_at),
    }
}

fn wire_container(c: &ContainerRecord) -> wire::Container {
    wire::Container {
        id: c.id.clone(),
        labels: label_map(&c.labels),
        image: c.image.clone(),
        runtime: Some(wire::container::Runtime {
            name: c.runtime.name.clone(),
            options: c.runtime.options.as_ref().map(any_out),
        }),
        spec: c.spec.as_ref().map(any_out),
        snapshotter: c.snapshotter.clone(),
        snapshot_key: c.snapshot_key.clone(),
        created_at: None,
        updated_at: None,
        extensions: c.extensions.iter().map(|(k, v)| (k.clone(), any_out(v))).collect(),
        sandbox: c.sandbox.clone(),
    }
}
