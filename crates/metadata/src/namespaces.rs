//! Namespaces: created by their first object, deleted only when empty.

use std::ops::ControlFlow;

use gantry_core::{Labels, Namespace, fieldmask, labels};
use gantry_errdefs::{Error, Result};
use gantry_store::{Key, KvRead};

use crate::db::{Db, Tx, encode};
use crate::event::Event;
use crate::keys::{self, Kind};
use crate::records::{NamespaceRecord, decode};
use crate::types::NamespaceInfo;

/// The namespaces of the store. Not namespaced themselves: no call takes a context.
#[derive(Clone, Debug)]
pub struct Namespaces {
    db: Db,
}

impl Namespaces {
    pub(crate) fn new(db: Db) -> Self {
        Self { db }
    }

    /// The labels of a namespace. Never NotFound: a namespace nobody wrote to has none.
    ///
    /// # Errors
    /// DataLoss when the database can't be read.
    pub async fn get(&self, name: &str) -> Result<NamespaceInfo> {
        // No namespace has such a name, and one that is not there has no labels.
        if Namespace::new(name).is_err() {
            return Ok(NamespaceInfo { name: name.to_owned(), labels: Labels::new() });
        }
        let record = read(&self.db.view()?, name)?.unwrap_or_default();
        Ok(NamespaceInfo { name: name.to_owned(), labels: record.labels })
    }

    /// All namespaces, by name.
    ///
    /// # Errors
    /// DataLoss when the database can't be read.
    pub async fn list(&self) -> Result<Vec<NamespaceInfo>> {
        let mut found = Vec::new();
        self.db.view()?.scan(&keys::all(Kind::Namespace), &mut |key, value| {
            let [name] = keys::parts(key)?;
            let record: NamespaceRecord = decode(value, &format!("namespace {name:?}"))?;
            found.push(NamespaceInfo { name, labels: record.labels });
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(found)
    }

    /// Creates a namespace. Publishes `/namespaces/create`.
    ///
    /// # Errors
    /// InvalidArgument for a bad name or label; AlreadyExists.
    pub async fn create(&self, name: &str, labels: Labels) -> Result<NamespaceInfo> {
        let namespace = Namespace::new(name)?;
        labels::validate_all(&labels)?;
        let mut kept = Labels::new();
        fieldmask::replace(&mut kept, &labels);
        let labels = kept;
        self.db
            .write(move |tx| {
                let key = keys::namespace(namespace.as_str());
                if tx.txn.has(&key)? {
                    return Err(Error::already_exists(format!(
                        "namespace {:?}",
                        namespace.as_str()
                    )));
                }
                tx.txn.put(&key, encode(&NamespaceRecord { labels: labels.clone() }));
                let name = namespace.as_str().to_owned();
                let event = Event::NamespaceCreate { name: name.clone(), labels: labels.clone() };
                tx.emit(&namespace, event);
                Ok(NamespaceInfo { name, labels })
            })
            .await
    }

    /// Changes labels, creating the namespace if it is missing. `fieldpaths` are `labels.<key>`;
    /// none replaces all labels. Publishes `/namespaces/update`.
    ///
    /// # Errors
    /// InvalidArgument for a bad name, label or field path.
    pub async fn update(
        &self,
        name: &str,
        labels: Labels,
        fieldpaths: &[String],
    ) -> Result<NamespaceInfo> {
        let namespace = Namespace::new(name)?;
        labels::validate_all(&labels)?;
        let fieldpaths = fieldpaths.to_vec();
        self.db
            .write(move |tx| {
                let what = format!("namespace {:?}", namespace.as_str());
                let mut record = read(tx.txn, namespace.as_str())?.unwrap_or_default();
                if fieldpaths.is_empty() {
                    fieldmask::replace(&mut record.labels, &labels);
                }
                for path in &fieldpaths {
                    match path.strip_prefix("labels.") {
                        Some(key) if !key.is_empty() => {
                            fieldmask::merge_key(&mut record.labels, key, &labels);
                        }
                        _ => {
                            let text = format!("cannot update {path:?} field on {what}");
                            return Err(Error::invalid_argument(text));
                        }
                    }
                }
                tx.txn.put(&keys::namespace(namespace.as_str()), encode(&record));
                let name = namespace.as_str().to_owned();
                let labels = record.labels;
                let event = Event::NamespaceUpdate { name: name.clone(), labels: labels.clone() };
                tx.emit(&namespace, event);
                Ok(NamespaceInfo { name, labels })
            })
            .await
    }

    /// Deletes an empty namespace, with its leases, sandboxes and ingests. Publishes
    /// `/namespaces/delete`.
    ///
    /// # Errors
    /// InvalidArgument for a bad name; NotFound; FailedPrecondition when it has images, blobs,
    /// containers or snapshots.
    pub async fn delete(&self, name: &str) -> Result<()> {
        let namespace = Namespace::new(name)?;
        self.db
            .write(move |tx| {
                let key = keys::namespace(namespace.as_str());
                if !tx.txn.has(&key)? {
                    return Err(Error::not_found(format!("namespace {:?}", namespace.as_str())));
                }
                let left = what_is_left(tx, &namespace)?;
                if !left.is_empty() {
                    return Err(Error::failed_precondition(format!(
                        "namespace {:?} must be empty, but it still has {}",
                        namespace.as_str(),
                        left.join(", ")
                    )));
                }
                tx.txn.delete(&key);
                remove_the_rest(tx, &namespace)?;
                let name = namespace.as_str().to_owned();
                tx.emit(&namespace, Event::NamespaceDelete { name });
                tx.dirty();
                Ok(())
            })
            .await
    }
}

pub(crate) fn read(read: &(impl KvRead + ?Sized), name: &str) -> Result<Option<NamespaceRecord>> {
    read.get(&keys::namespace(name))?
        .map(|value| decode(&value, &format!("namespace {name:?}")))
        .transpose()
}

fn what_is_left(tx: &Tx<'_, '_>, namespace: &Namespace) -> Result<Vec<String>> {
    let mut left = Vec::new();
    for (kind, word) in
        [(Kind::Image, "images"), (Kind::Blob, "blobs"), (Kind::Container, "containers")]
    {
        if tx.txn.first(&keys::within(kind, namespace))?.is_some() {
            left.push(word.to_owned());
        }
    }
    // Hops from snapshotter to snapshotter rather than over every snapshot.
    let snapshots = keys::within(Kind::Snapshot, namespace);
    let end = gantry_store::prefix_end(&snapshots);
    let mut from = snapshots.into_bytes();
    loop {
        let mut found = None;
        tx.txn.scan_range(&from, end.as_deref(), &mut |key, _| {
            found = Some(Key::str_parts(key)?);
            Ok(ControlFlow::Break(()))
        })?;
        let Some(parts) = found else { return Ok(left) };
        let snapshotter = parts.get(3).map(String::as_str).unwrap_or_default();
        left.push(format!("snapshots on {snapshotter:?} snapshotter"));
        let own = keys::object(Kind::Snapshot, namespace, snapshotter);
        match gantry_store::prefix_end(&own) {
            Some(next) => from = next,
            None => return Ok(left),
        }
    }
}

fn remove_the_rest(tx: &mut Tx<'_, '_>, namespace: &Namespace) -> Result<()> {
    for kind in [Kind::Lease, Kind::LeaseResource, Kind::Sandbox] {
        tx.txn.delete_prefix(&keys::within(kind, namespace))?;
    }
    crate::content::drop_ingests(tx, namespace)
}
