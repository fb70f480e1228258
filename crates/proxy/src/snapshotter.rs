//! A snapshotter that a plugin serves.

use std::collections::HashSet;
use std::fmt;
use std::sync::OnceLock;

use async_trait::async_trait;
use gantry_api::containerd::services::snapshots::v1 as wire;
use gantry_api::containerd::services::snapshots::v1::snapshots_client::SnapshotsClient;
use gantry_core::{Labels, Namespace, deadlines};
use gantry_errdefs::{Error, Result};
use gantry_mount::Mount;
use gantry_snapshots::{CommitOptions, Info, Kind, Snapshotter, Usage};
use prost_types::FieldMask;
use tonic::transport::Channel;

use crate::convert::{mounts, required, size, time};
use crate::plugin::{MESSAGE_LEN_MAX, Plugin, request};

/// The namespace of a snapshot whose key names none.
const NAMESPACE_DEFAULT: &str = "default";

/// Tells the namespaces there are, for listings: a plugin may show one of them at a time.
pub type NamespaceList = Box<dyn Fn() -> Result<Vec<Namespace>> + Send + Sync>;

/// A [`Snapshotter`] in another process, which knows it by the plugin's name.
pub struct ProxySnapshotter {
    plugin: Plugin,
    client: SnapshotsClient<Channel>,
    namespaces: OnceLock<NamespaceList>,
}

impl ProxySnapshotter {
    /// The snapshotter that `plugin` serves.
    pub fn new(plugin: Plugin) -> Self {
        let client = SnapshotsClient::new(plugin.channel())
            .max_decoding_message_size(MESSAGE_LEN_MAX)
            .max_encoding_message_size(MESSAGE_LEN_MAX);
        Self { plugin, client, namespaces: OnceLock::new() }
    }

    /// Tells how to learn the namespaces there are. Without it only snapshots whose keys name no
    /// namespace are listed.
    pub fn set_namespaces(&self, namespaces: NamespaceList) {
        let _ = self.namespaces.set(namespaces);
    }

    fn name(&self) -> String {
        self.plugin.name().to_owned()
    }

    fn client(&self) -> SnapshotsClient<Channel> {
        self.client.clone()
    }

    /// The namespaces to list, the one for keys without any included.
    fn listed(&self) -> Result<Vec<String>> {
        let mut names = vec![NAMESPACE_DEFAULT.to_owned()];
        if let Some(list) = self.namespaces.get() {
            names.extend(list()?.iter().map(|ns| ns.as_str().to_owned()));
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Where to look for `key`: in the namespace that it names, or, for a name that is not ours (a
    /// layer that a remote snapshotter had), in all of them.
    fn candidates(&self, key: &str) -> Result<Vec<String>> {
        match namespace_in(key) {
            Some(namespace) => Ok(vec![namespace.to_owned()]),
            None => self.listed(),
        }
    }

    /// Everything one namespace shows.
    async fn list(&self, namespace: &str) -> Result<Vec<Info>> {
        let what = format!("list of {namespace}");
        let (mut client, deadline) = (self.client(), deadlines::PLUGIN_LIST);
        let _turn = self.plugin.within(&what, deadline, self.turn()).await?;
        let message = wire::ListSnapshotsRequest { snapshotter: self.name(), filters: Vec::new() };
        let all = async {
            let mut pages = client.list(request(namespace, message)).await?.into_inner();
            let mut all = Vec::new();
            while let Some(page) = pages.message().await? {
                all.extend(page.info);
            }
            Ok(all)
        };
        self.plugin.within(&what, deadline, all).await?.into_iter().map(info).collect()
    }

    async fn turn(&self) -> Result<crate::plugin::Turn, tonic::Status> {
        self.plugin.turn().await.map_err(Into::into)
    }
}

/// Makes a call in each of the namespaces that a key may be in, until it is found.
macro_rules! where_it_is {
    ($self:ident, $key:expr, $what:expr, $deadline:expr, $method:ident, $message:expr) => {{
        let mut found = Err(Error::not_found(format!("snapshot {:?}", $key)));
        for namespace in $self.candidates($key)? {
            let mut client = $self.client();
            let call = client.$method(request(&namespace, $message.clone()));
            found = $self.plugin.call(&$what, $deadline, call).await;
            if !found.as_ref().is_err_and(Error::is_not_found) {
                break;
            }
        }
        found
    }};
}

/// The namespace for a key.
fn namespace_of(key: &str) -> &str {
    namespace_in(key).unwrap_or(NAMESPACE_DEFAULT)
}

/// The namespace in a key `<namespace>/<number>/<name>`.
fn namespace_in(key: &str) -> Option<&str> {
    let mut parts = key.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(ns), Some(number), Some(_))
            if number.parse::<u64>().is_ok() && Namespace::new(ns).is_ok() =>
        {
            Some(ns)
        }
        _ => None,
    }
}

fn info(wire: wire::Info) -> Result<Info> {
    let kind = match wire.kind() {
        wire::Kind::View => Kind::View,
        wire::Kind::Active => Kind::Active,
        wire::Kind::Committed => Kind::Committed,
        wire::Kind::Unknown => {
            return Err(Error::unknown(format!("snapshot {:?} is of no known kind", wire.name)));
        }
    };
    Ok(Info {
        kind,
        name: wire.name,
        parent: (!wire.parent.is_empty()).then_some(wire.parent),
        labels: wire.labels.into_iter().collect(),
        created: time(wire.created_at),
        updated: time(wire.updated_at),
    })
}

#[async_trait]
impl Snapshotter for ProxySnapshotter {
    async fn stat(&self, key: &str) -> Result<Info> {
        let message = wire::StatSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let what = format!("stat of {key:?}");
        let answer = where_it_is!(self, key, what, deadlines::PLUGIN_READ, stat, message)?;
        info(required(answer.info, "the snapshot")?)
    }

    async fn update(&self, changed: Info, fieldpaths: &[String]) -> Result<Info> {
        let key = changed.name.clone();
        let message = wire::UpdateSnapshotRequest {
            snapshotter: self.name(),
            info: Some(wire::Info {
                name: changed.name,
                labels: changed.labels.into_iter().collect(),
                ..wire::Info::default()
            }),
            update_mask: (!fieldpaths.is_empty()).then(|| FieldMask { paths: fieldpaths.to_vec() }),
        };
        let what = format!("update of {key:?}");
        let answer = where_it_is!(self, &key, what, deadlines::PLUGIN_READ, update, message)?;
        info(required(answer.info, "the snapshot")?)
    }

    async fn usage(&self, key: &str) -> Result<Usage> {
        let message = wire::UsageRequest { snapshotter: self.name(), key: key.to_owned() };
        // Of an active one the whole tree is walked.
        let what = format!("usage of {key:?}");
        let answer = where_it_is!(self, key, what, deadlines::PLUGIN_LIST, usage, message)?;
        Ok(Usage { inodes: size(answer.inodes), size: size(answer.size) })
    }

    async fn mounts(&self, key: &str) -> Result<Vec<Mount>> {
        let message = wire::MountsRequest { snapshotter: self.name(), key: key.to_owned() };
        let mut client = self.client();
        let call = client.mounts(request(namespace_of(key), message));
        let what = format!("mounts of {key:?}");
        let answer = self.plugin.call(what, deadlines::PLUGIN_READ, call).await?;
        Ok(mounts(answer.mounts))
    }

    async fn prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let message = wire::PrepareSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            labels: labels.into_iter().collect(),
        };
        let mut client = self.client();
        let call = client.prepare(request(namespace_of(key), message));
        let what = format!("prepare of {key:?}");
        let answer = self.plugin.call(what, deadlines::PLUGIN_PREPARE, call).await?;
        Ok(mounts(answer.mounts))
    }

    async fn view(&self, key: &str, parent: Option<&str>, labels: Labels) -> Result<Vec<Mount>> {
        let message = wire::ViewSnapshotRequest {
            snapshotter: self.name(),
            key: key.to_owned(),
            parent: parent.unwrap_or_default().to_owned(),
            labels: labels.into_iter().collect(),
        };
        let mut client = self.client();
        let call = client.view(request(namespace_of(key), message));
        let what = format!("view {key:?}");
        let answer = self.plugin.call(what, deadlines::PLUGIN_PREPARE, call).await?;
        Ok(mounts(answer.mounts))
    }

    async fn commit(&self, name: &str, key: &str, options: CommitOptions) -> Result<()> {
        let message = wire::CommitSnapshotRequest {
            snapshotter: self.name(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: options.labels.into_iter().collect(),
            parent: options.parent.unwrap_or_default(),
        };
        let mut client = self.client();
        let call = client.commit(request(namespace_of(key), message));
        self.plugin.call(format!("commit of {key:?}"), deadlines::PLUGIN_COMMIT, call).await
    }

    async fn remove(&self, key: &str) -> Result<()> {
        let message = wire::RemoveSnapshotRequest { snapshotter: self.name(), key: key.to_owned() };
        let what = format!("removal of {key:?}");
        where_it_is!(self, key, what, deadlines::PLUGIN_DELETE, remove, message)
    }

    async fn walk(&self, visit: &mut (dyn FnMut(Info) -> Result<()> + Send)) -> Result<()> {
        // A plugin that knows no namespaces shows everything under each of them.
        let mut seen = HashSet::new();
        for namespace in self.listed()? {
            for info in self.list(&namespace).await? {
                if seen.insert(info.name.clone()) {
                    visit(info)?;
                }
            }
        }
        Ok(())
    }

    async fn cleanup(&self) -> Result<()> {
        let message = wire::CleanupRequest { snapshotter: self.name() };
        let mut client = self.client();
        let call = client.cleanup(request(NAMESPACE_DEFAULT, message));
        self.plugin.call("cleanup", deadlines::PLUGIN_DELETE, call).await
    }

    fn is_foreign(&self) -> bool {
        true
    }

    /// The plugin lives on.
    async fn close(&self) -> Result<()> {
        Ok(())
    }
}

impl fmt::Debug for ProxySnapshotter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProxySnapshotter").field("plugin", &self.plugin).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_tell_their_namespace() {
        for (key, want) in [
            ("k8s.io/17/web", "k8s.io"),
            ("k8s.io/17/a/b", "k8s.io"),
            ("k8s.io/x/web", NAMESPACE_DEFAULT),
            ("web", NAMESPACE_DEFAULT),
            ("-/17/web", NAMESPACE_DEFAULT),
        ] {
            assert_eq!(namespace_of(key), want, "{key}");
        }
    }
}
