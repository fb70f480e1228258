//! What lives outside the database, but with what is in it: activated mounts and open streams.
//!
//! A member is held by the lease it was made under, by what its back references name, and by
//! whatever refers to it with `containerd.io/gc.ref.{mount,stream}`. One that has neither a lease
//! nor a back reference is held by whoever made it, and no business of the collector. Members are
//! listed when a run begins, so one that is made later is safe from that run.

use std::sync::{Arc, PoisonError, Weak};

use async_trait::async_trait;
use gantry_core::{Labels, Namespace, deadlines};
use gantry_errdefs::Result;

use super::GcState;
use super::node::{Node, NodeKind};
use crate::db::detached;

/// What a kind of members is called in `containerd.io/gc.ref.<kind>`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MemberKind {
    /// `mount`: activated mounts.
    Mount,
    /// `stream`: streams of clients.
    Stream,
}

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Where it is.
    pub namespace: Namespace,
    /// Its name there.
    pub name: String,
    /// Tells it from another one of its name that is made after it has gone.
    pub number: u64,
    /// The lease it was made under.
    pub lease: Option<String>,
    /// Its labels; back references count.
    pub labels: Labels,
}

/// All of one kind; see [`Gc::look_after`](super::Gc::look_after).
#[async_trait]
pub trait Members: Send + Sync + 'static {
    /// All there are now.
    fn list(&self) -> Vec<Member>;

    /// Takes one away that nothing holds any more. One that has gone by itself is no error.
    ///
    /// # Errors
    /// Why it is still there; it is tried again later.
    async fn remove(&self, member: &Member) -> Result<()>;
}

/// Those who have members. They are not kept alive by this.
#[derive(Default)]
pub(super) struct Sources(std::sync::Mutex<Vec<(MemberKind, Weak<dyn Members>)>>);

/// A member in a run.
#[derive(Clone)]
pub(super) struct Listed {
    pub(super) node: Node,
    pub(super) member: Member,
    source: Arc<dyn Members>,
}

impl MemberKind {
    fn node_kind(self) -> NodeKind {
        match self {
            Self::Mount => NodeKind::Mount,
            Self::Stream => NodeKind::Stream,
        }
    }
}

impl Sources {
    pub(super) fn add(&self, kind: MemberKind, members: Weak<dyn Members>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((kind, members));
    }

    /// All members there are now.
    pub(super) fn list(&self) -> Vec<Listed> {
        let known: Vec<_> = {
            let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            sources.retain(|(_, source)| source.strong_count() > 0);
            sources.iter().filter_map(|(kind, s)| Some((*kind, s.upgrade()?))).collect()
        };
        let of_one = |(kind, source): (MemberKind, Arc<dyn Members>)| {
            let listed = source.list().into_iter().map(move |member| {
                let node = Node::new(kind.node_kind(), member.namespace.as_str(), &member.name);
                Listed { node, member, source: Arc::clone(&source) }
            });
            listed.collect::<Vec<_>>()
        };
        known.into_iter().flat_map(of_one).collect()
    }
}

/// Takes away what nothing holds, outside any transaction. Returns how many have gone; the others
/// are tried again by the next run, which comes by itself.
pub(super) async fn remove(state: &GcState, unheld: Vec<Listed>) -> u64 {
    let mut removed = 0;
    for listed in unheld {
        let (name, kind) = (listed.member.name.clone(), listed.node.kind.clone());
        let work = detached(async move { listed.source.remove(&listed.member).await });
        // Unmounting may hang; the collector must not.
        match tokio::time::timeout(deadlines::PLUGIN_COLLECT, work).await {
            Ok(Ok(())) => {
                tracing::info!(?kind, name, "nothing holds it any more: taken away");
                removed += 1;
            }
            Ok(Err(err)) => {
                tracing::warn!(?kind, name, %err, "will be taken away later");
                state.retry_later();
            }
            Err(_) => {
                tracing::warn!(?kind, name, "is taken away without the collector");
                state.retry_later();
            }
        }
    }
    removed
}
