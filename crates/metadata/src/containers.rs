//! Containers: records of what to run.

use std::ops::ControlFlow;

use gantry_core::fieldmask::{self, Path};
use gantry_core::{Context, filters, identifiers, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::KvRead;

use crate::db::{Db, blocking, encode, now};
use crate::event::{AnyMap, Event};
use crate::gc::Node;
use crate::keys::{self, Kind};
use crate::records::{ContainerRecord, decode};
use crate::stored::StoredContainers;
use crate::types::Container;

/// The fields an update without a mask replaces.
const MUTABLE: [&str; 5] = ["labels", "extensions", "spec", "image", "snapshotkey"];

/// The containers of the store.
#[derive(Clone, Debug)]
pub struct Containers {
    db: Db,
}

impl Containers {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The container `id`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn get(&self, ctx: &Context, id: &str) -> Result<Container> {
        read(&self.db.view()?, ctx, id)
    }

    /// The containers that match any of `filters` (fields id, image, runtime.name, labels), by id.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse.
    pub async fn list(&self, ctx: &Context, filters: &[String]) -> Result<Vec<Container>> {
        let (this, ctx, filters) = (self.clone(), ctx.clone(), filters.to_vec());
        blocking(move || {
            let mut found = Vec::new();
            this.walk(&ctx, &filters, &mut |container| {
                found.push(container);
                Ok(ControlFlow::Continue(()))
            })?;
            Ok(found)
        })
        .await
    }

    /// All containers as they are stored, as of now.
    ///
    /// # Errors
    /// DataLoss when the database can't be read.
    pub fn stored(&self, ctx: &Context) -> Result<StoredContainers> {
        let within = keys::within(Kind::Container, &ctx.namespace);
        Ok(StoredContainers::new(self.db.view()?, within.into_bytes()))
    }

    /// Visits the containers that match any of `filters`, by id, as of one moment. Does not wait
    /// for anything; long lists should be walked off the async threads.
    ///
    /// # Errors
    /// InvalidArgument for a filter that does not parse; what `visit` returns.
    pub fn walk(
        &self,
        ctx: &Context,
        filters: &[String],
        visit: &mut dyn FnMut(Container) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let filter = filters::parse_all(filters)?;
        let view = self.db.view()?;
        if let Some(id) = filter.required(&["id"]) {
            return match read(&view, ctx, id) {
                Ok(found) if filter.matches(&found) => visit(found).map(drop),
                Ok(_) => Ok(()),
                Err(err) if err.is_not_found() => Ok(()),
                Err(err) => Err(err),
            };
        }
        view.scan(&keys::within(Kind::Container, &ctx.namespace), &mut |key, value| {
            let [_, id] = keys::parts(key)?;
            let container = parse(value, id)?;
            if filter.matches(&container) {
                visit(container)
            } else {
                Ok(ControlFlow::Continue(()))
            }
        })
    }

    /// Creates a container; times are set here. Publishes `/containers/create`.
    ///
    /// # Errors
    /// InvalidArgument for a bad id or label, a missing runtime name, or a snapshot key without a
    /// snapshotter; AlreadyExists.
    pub async fn create(&self, ctx: &Context, mut container: Container) -> Result<Container> {
        validate(&container)?;
        container.labels.retain(|_, value| !value.is_empty());
        let ctx = ctx.clone();
        self.db
            .write(move |tx| {
                let key = keys::object(Kind::Container, &ctx.namespace, &container.id);
                if tx.txn.has(&key)? {
                    return Err(Error::already_exists(format!("container {:?}", container.id)));
                }
                container.created_at = now();
                container.updated_at = container.created_at;
                tx.ensure_namespace(&ctx.namespace)?;
                tx.txn.put(&key, encode(&ContainerRecord::from(container.clone())));
                tx.touch(|| Node::container(&ctx.namespace, &container.id));
                let event = Event::ContainerCreate {
                    id: container.id.clone(),
                    image: container.image.clone(),
                    runtime_name: container.runtime.name.clone(),
                    runtime_options: container.runtime.options.clone(),
                };
                tx.emit(&ctx.namespace, event);
                Ok(container)
            })
            .await
    }

    /// Changes the container `update.id`. `fieldpaths` are `labels`, `labels.<key>`, `extensions`,
    /// `extensions.<key>`, `spec`, `image` and `snapshotkey`; none replaces all of these. An empty
    /// value deletes a label. Publishes `/containers/update`.
    ///
    /// # Errors
    /// NotFound; InvalidArgument for another field path, a bad label, or, without a mask, when
    /// snapshotter or runtime name differ.
    pub async fn update(
        &self,
        ctx: &Context,
        update: Container,
        fieldpaths: &[String],
    ) -> Result<Container> {
        if update.id.is_empty() {
            return Err(Error::invalid_argument("container id must not be empty"));
        }
        let (ctx, fieldpaths) = (ctx.clone(), fieldpaths.to_vec());
        self.db
            .write(move |tx| {
                let mut container = read(tx.txn, &ctx, &update.id)?;
                apply(&mut container, update, &fieldpaths)?;
                validate(&container)?;
                container.updated_at = now();
                let key = keys::object(Kind::Container, &ctx.namespace, &container.id);
                tx.txn.put(&key, encode(&ContainerRecord::from(container.clone())));
                tx.touch(|| Node::container(&ctx.namespace, &container.id));
                let event = Event::ContainerUpdate {
                    id: container.id.clone(),
                    image: container.image.clone(),
                    labels: container.labels.clone(),
                    snapshot_key: container.snapshot_key.clone(),
                };
                tx.emit(&ctx.namespace, event);
                Ok(container)
            })
            .await
    }

    /// Deletes the record of the container `id`, whatever its task does. Publishes
    /// `/containers/delete`.
    ///
    /// # Errors
    /// NotFound.
    pub async fn delete(&self, ctx: &Context, id: &str) -> Result<()> {
        let (ctx, id) = (ctx.clone(), id.to_owned());
        self.db
            .write(move |tx| {
                let key = keys::object(Kind::Container, &ctx.namespace, &id);
                if !tx.txn.has(&key)? {
                    return Err(missing(&ctx, &id));
                }
                tx.txn.delete(&key);
                tx.emit(&ctx.namespace, Event::ContainerDelete { id });
                tx.dirty();
                Ok(())
            })
            .await
    }
}

fn missing(ctx: &Context, id: &str) -> Error {
    Error::not_found(format!("container {id:?} in namespace {:?}", ctx.namespace.as_str()))
}

fn parse(value: &[u8], id: String) -> Result<Container> {
    let record: ContainerRecord = decode(value, &format!("container {id:?}"))?;
    Ok(record.into_container(id))
}

fn read(read: &impl KvRead, ctx: &Context, id: &str) -> Result<Container> {
    match read.get(&keys::object(Kind::Container, &ctx.namespace, id))? {
        Some(value) => parse(&value, id.to_owned()),
        None => Err(missing(ctx, id)),
    }
}

fn validate(container: &Container) -> Result<()> {
    identifiers::validate("container", &container.id)?;
    let bad = |why: &str| Error::invalid_argument(format!("container {:?}: {why}", container.id));
    if container.extensions.contains_key("") {
        return Err(bad("extension keys must not be empty"));
    }
    labels::validate_all(&container.labels)?;
    if container.runtime.name.is_empty() {
        return Err(bad("runtime name must be set"));
    }
    if container.snapshotter.is_empty() && !container.snapshot_key.is_empty() {
        return Err(bad("snapshotter must be set when the snapshot key is"));
    }
    Ok(())
}

fn apply(container: &mut Container, mut update: Container, fieldpaths: &[String]) -> Result<()> {
    let what = format!("container {:?}", container.id);
    let immutable =
        |field: &str| Error::invalid_argument(format!("{what}: field {field} is immutable"));
    let maps = ["labels", "extensions"];
    let fields = ["spec", "image", "snapshotkey"];
    let mask = if fieldpaths.is_empty() {
        if update.snapshotter != container.snapshotter {
            return Err(immutable("snapshotter"));
        }
        if update.runtime.name != container.runtime.name {
            return Err(immutable("runtime.name"));
        }
        MUTABLE.map(Path::Field).to_vec()
    } else {
        fieldmask::parse(&what, fieldpaths, &fields, &maps)?
    };
    fieldmask::merge_map(&mut container.labels, "labels", &mask, &update.labels);
    for path in &mask {
        match path {
            Path::Field("extensions") => container.extensions.clone_from(&update.extensions),
            Path::Key { field: "extensions", key } => {
                merge_extension(&mut container.extensions, key, &update.extensions);
            }
            Path::Field("spec") => container.spec = update.spec.take(),
            Path::Field("image") => container.image.clone_from(&update.image),
            Path::Field("snapshotkey") => container.snapshot_key.clone_from(&update.snapshot_key),
            _ => {}
        }
    }
    Ok(())
}

fn merge_extension(current: &mut AnyMap, key: &str, update: &AnyMap) {
    match update.get(key) {
        Some(value) => drop(current.insert(key.to_owned(), value.clone())),
        None => drop(current.remove(key)),
    }
}
