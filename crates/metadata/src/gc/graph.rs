//! The graph in the database: roots, candidates and edges.
//!
//! | node | root when | edges |
//! |---|---|---|
//! | lease | not expired | its members |
//! | image | not expired | its target, labels |
//! | container | always | its snapshot, labels |
//! | sandbox | always | labels |
//! | content | `gc.root` | labels |
//! | snapshot | `gc.root` | its parent, labels |
//! | ingest | open, or unleased and not expired | the digest it expects |
//! | mount, stream | without lease and back reference | none |
//!
//! Back references are edges written on their other end; the scan that finds the roots collects
//! them. All edges stay within a namespace.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::time::SystemTime;

use gantry_core::{Labels, Namespace};
use gantry_errdefs::Result;
use gantry_store::KvRead;
use prost::Message;

use super::labels;
use super::members::Member;
use super::node::{Node, NodeKind};
use crate::keys::{self, Kind};
use crate::records::{ImageRecord, IngestRecord, LeaseRecord, SnapshotRecord, decode, time};

/// The labels of a record of any kind but blobs: they are tag 1.
#[derive(Clone, PartialEq, Message)]
struct LabelsOnly {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
}

/// What the collector needs of a container, without its spec.
#[derive(Clone, PartialEq, Message)]
struct ContainerRefs {
    #[prost(btree_map = "string, string", tag = "1")]
    labels: Labels,
    #[prost(string, tag = "6")]
    snapshotter: String,
    #[prost(string, tag = "7")]
    snapshot_key: String,
}

/// The labels of a blob.
#[derive(Clone, PartialEq, Message)]
struct BlobLabels {
    #[prost(btree_map = "string, string", tag = "4")]
    labels: Labels,
}

/// The labels of a snapshot.
#[derive(Clone, PartialEq, Message)]
struct SnapshotRefs {
    #[prost(string, tag = "2")]
    parent: String,
    #[prost(btree_map = "string, string", tag = "5")]
    labels: Labels,
}

/// Objects that live with another: from the other to them.
pub(super) type BackReferences = HashMap<Node, Vec<Node>>;

/// What a scan of the whole database finds.
#[derive(Debug, Default)]
pub(super) struct Scan {
    pub(super) roots: Vec<Node>,
    /// What may be collected when it is not reached.
    pub(super) candidates: Vec<Node>,
    pub(super) back_references: BackReferences,
    /// When the next lease, image or ingest expires.
    pub(super) next_expiry: Option<SystemTime>,
}

/// Reads roots, candidates and back references. `open` are ingests with a writer.
pub(super) fn scan(
    read: &dyn KvRead,
    now: SystemTime,
    open: &HashSet<(String, String)>,
) -> Result<Scan> {
    let mut scan = Scan::default();
    scan.leases(read, now)?;
    scan.images(read, now)?;
    for (kind, node_kind) in
        [(Kind::Container, NodeKind::Container), (Kind::Sandbox, NodeKind::Sandbox)]
    {
        each(read, kind, |[namespace, id]: [String; 2], _| {
            scan.roots.push(Node::new(node_kind.clone(), &namespace, &id));
            Ok(())
        })?;
    }
    each(read, Kind::Blob, |[namespace, digest]: [String; 2], value| {
        let node = Node::new(NodeKind::Content, &namespace, &digest);
        let record: BlobLabels = decode(value, "blob")?;
        scan.candidate(node, &record.labels, now);
        Ok(())
    })?;
    each(read, Kind::Snapshot, |[namespace, snapshotter, key]: [String; 3], value| {
        let node = Node::new(NodeKind::Snapshot(snapshotter), &namespace, &key);
        let record: SnapshotRefs = decode(value, "snapshot")?;
        scan.candidate(node, &record.labels, now);
        Ok(())
    })?;
    scan.ingests(read, now, open)?;
    Ok(scan)
}

impl Scan {
    fn leases(&mut self, read: &dyn KvRead, now: SystemTime) -> Result<()> {
        each(read, Kind::Lease, |[namespace, id]: [String; 2], value| {
            let record: LeaseRecord = decode(value, "lease")?;
            let node = Node::new(NodeKind::Lease, &namespace, &id);
            if self.expires(labels::expiry(&record.labels), now) {
                self.candidates.push(node);
            } else {
                self.roots.push(node);
            }
            Ok(())
        })
    }

    fn images(&mut self, read: &dyn KvRead, now: SystemTime) -> Result<()> {
        each(read, Kind::Image, |[namespace, name]: [String; 2], value| {
            let record: LabelsOnly = decode(value, "image")?;
            let node = Node::new(NodeKind::Image, &namespace, &name);
            self.note_back_references(&node, &record.labels, now);
            if self.expires(labels::expiry(&record.labels), now) {
                self.candidates.push(node);
            } else {
                self.roots.push(node);
            }
            Ok(())
        })
    }

    fn ingests(
        &mut self,
        read: &dyn KvRead,
        now: SystemTime,
        open: &HashSet<(String, String)>,
    ) -> Result<()> {
        each(read, Kind::Ingest, |[namespace, reference]: [String; 2], value| {
            let record: IngestRecord = decode(value, "ingest")?;
            let node = Node::new(NodeKind::Ingest, &namespace, &reference);
            // A leased ingest has no time of its own and is no root.
            let kept = record.expires_at != 0 && !self.expires(Some(time(record.expires_at)), now);
            if kept || open.contains(&(namespace, reference)) {
                self.roots.push(node);
            } else {
                self.candidates.push(node);
            }
            Ok(())
        })
    }

    fn candidate(&mut self, node: Node, labels: &Labels, now: SystemTime) {
        self.note_back_references(&node, labels, now);
        if labels::is_root(labels) {
            self.roots.push(node);
        } else {
            self.candidates.push(node);
        }
    }

    /// Adds something outside the database, which its lease and its back references hold; without
    /// any of them it is nobody's to take.
    pub(super) fn member(&mut self, node: &Node, member: &Member, now: SystemTime) {
        let mut holders = Vec::new();
        holders.extend(member.lease.as_ref().map(|id| Node::lease(&member.namespace, id)));
        labels::back_references(&member.labels, now, &mut |kind, key| {
            holders.push(Node::new(kind, &node.namespace, key));
        });
        if holders.is_empty() {
            self.roots.push(node.clone());
        }
        for holder in holders {
            self.back_references.entry(holder).or_default().push(node.clone());
        }
    }

    fn note_back_references(&mut self, node: &Node, labels: &Labels, now: SystemTime) {
        labels::back_references(labels, now, &mut |kind, key| {
            let parent = Node::new(kind, &node.namespace, key);
            self.back_references.entry(parent).or_default().push(node.clone());
        });
    }

    /// Whether `at` has passed; a time to come is noted.
    fn expires(&mut self, at: Option<SystemTime>, now: SystemTime) -> bool {
        let Some(at) = at else { return false };
        if at > now {
            self.next_expiry = Some(self.next_expiry.map_or(at, |next| next.min(at)));
        }
        at <= now
    }
}

/// Pushes what `node` refers to. An object that is missing refers to nothing.
pub(super) fn edges(
    read: &dyn KvRead,
    back: &BackReferences,
    node: &Node,
    out: &mut Vec<Node>,
) -> Result<()> {
    let namespace = Namespace::new(node.namespace.as_str())?;
    let from = out.len();
    match &node.kind {
        NodeKind::Lease => lease_edges(read, &namespace, &node.key, out)?,
        NodeKind::Container => {
            if let Some(record) = get::<ContainerRefs>(read, Kind::Container, &namespace, node)? {
                if !record.snapshot_key.is_empty() {
                    out.push(Node::snapshot(&namespace, &record.snapshotter, &record.snapshot_key));
                }
                label_edges(&record.labels, &namespace, out);
            }
        }
        NodeKind::Sandbox => {
            if let Some(record) = get::<LabelsOnly>(read, Kind::Sandbox, &namespace, node)? {
                label_edges(&record.labels, &namespace, out);
            }
        }
        NodeKind::Image => {
            if let Some(record) = get::<ImageRecord>(read, Kind::Image, &namespace, node)? {
                out.push(Node::new(NodeKind::Content, namespace.as_str(), &record.digest));
                label_edges(&record.labels, &namespace, out);
            }
        }
        NodeKind::Content => {
            if let Some(record) = get::<BlobLabels>(read, Kind::Blob, &namespace, node)?
                && !node.flat
            {
                label_edges(&record.labels, &namespace, out);
            }
        }
        NodeKind::Snapshot(snapshotter) => {
            if let Some(value) = read.get(&keys::snapshot(&namespace, snapshotter, &node.key))? {
                let record: SnapshotRefs = decode(&value, "snapshot")?;
                if !record.parent.is_empty() {
                    let mut parent = Node::snapshot(&namespace, snapshotter, &record.parent);
                    parent.flat = node.flat;
                    out.push(parent);
                }
                if !node.flat {
                    label_edges(&record.labels, &namespace, out);
                }
            }
        }
        NodeKind::Ingest => {
            if let Some(record) = get::<IngestRecord>(read, Kind::Ingest, &namespace, node)?
                && !record.expected.is_empty()
            {
                out.push(Node::new(NodeKind::Content, namespace.as_str(), &record.expected));
            }
        }
        NodeKind::Mount | NodeKind::Stream | NodeKind::Other => {}
    }
    debug_assert!(out[from..].iter().all(|n| n.namespace == node.namespace));
    if !back.is_empty() {
        let named = Node { flat: false, ..node.clone() };
        out.extend(back.get(&named).into_iter().flatten().cloned());
    }
    Ok(())
}

fn lease_edges(
    read: &dyn KvRead,
    namespace: &Namespace,
    id: &str,
    out: &mut Vec<Node>,
) -> Result<()> {
    let Some(value) = read.get(&keys::object(Kind::Lease, namespace, id))? else { return Ok(()) };
    let record: LeaseRecord = decode(&value, "lease")?;
    let flat = labels::is_flat(&record.labels);
    read.scan(&keys::object(Kind::LeaseResource, namespace, id), &mut |key, _| {
        let [_, _, kind, id] = keys::parts(key)?;
        out.push(Node { flat, ..Node::resource(namespace, &kind, &id) });
        Ok(ControlFlow::Continue(()))
    })
}

fn label_edges(labels: &Labels, namespace: &Namespace, out: &mut Vec<Node>) {
    labels::references(labels, &mut |kind, key| {
        out.push(Node::new(kind, namespace.as_str(), key));
    });
}

fn get<R: Message + Default>(
    read: &dyn KvRead,
    kind: Kind,
    namespace: &Namespace,
    node: &Node,
) -> Result<Option<R>> {
    read.get(&keys::object(kind, namespace, &node.key))?
        .map(|value| decode(&value, &node.key))
        .transpose()
}

fn each<const N: usize>(
    read: &dyn KvRead,
    kind: Kind,
    mut visit: impl FnMut([String; N], &[u8]) -> Result<()>,
) -> Result<()> {
    read.scan(&keys::all(kind), &mut |key, value| {
        visit(keys::parts(key)?, value)?;
        Ok(ControlFlow::Continue(()))
    })
}

/// The snapshot record of a node, for the sweep.
pub(super) fn snapshot_record(
    read: &dyn KvRead,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
) -> Result<Option<SnapshotRecord>> {
    read.get(&keys::snapshot(namespace, snapshotter, key))?
        .map(|value| decode(&value, key))
        .transpose()
}
