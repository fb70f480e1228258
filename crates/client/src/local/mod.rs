//! Images moved by this program, for daemons without the transfer service (containerd before 1.7).
//!
//! The outcome is that of the daemon's own transfers: content with labels that keep it, image
//! records, snapshots. Everything is under a lease until a record holds it.

pub(crate) mod explain;
mod export;
mod import;
mod pull;
mod push;
mod schema1;

use std::path::PathBuf;
use std::sync::Arc;

use gantry_core::image::Document;
use gantry_core::platforms::Matcher;
use gantry_core::{Descriptor, Digest, Labels, Platform, Reference, labels};
use gantry_errdefs::Result;
use gantry_registry::{
    Anonymous, AuthRequest, Credential, Credentials, Hosts, HostsOptions, Resolver, ResolverOptions,
};
use tokio::sync::mpsc;

use crate::content::Content;
use crate::transfer::{Progress, RegistryOptions};

pub(crate) use export::export;
pub(crate) use import::import;
pub(crate) use pull::pull;
pub(crate) use push::push;

/// Blobs moved at the same time unless told otherwise; what containerd's clients do.
const BLOBS_AT_ONCE: usize = 3;

/// Steps that may wait to be shown.
const STEPS_QUEUED_MAX: usize = 64;

impl RegistryOptions {
    /// A resolver that goes by these options, for this program's own requests.
    pub fn resolver(&self) -> Resolver {
        let dirs = self.hosts_dir.split(':').filter(|dir| !dir.is_empty());
        let config_dirs = dirs.map(PathBuf::from).collect();
        let hosts = Hosts::new(HostsOptions {
            config_dirs,
            // Who has TLS files for a registry wants TLS, on loopback too.
            plain_http: match self.plain_http {
                true => Some(true),
                false => (!self.tls.is_default()).then_some(false),
            },
            header: self.headers.clone(),
            tls: self.tls.clone(),
        });
        let credentials: Arc<dyn Credentials> = match &self.credentials {
            None => Arc::new(Anonymous),
            Some(given) => {
                let host = self.credentials_host.clone();
                Arc::new(Given { credentials: given.clone(), host })
            }
        };
        let resolver = Resolver::new(ResolverOptions { hosts, credentials });
        match &self.http_log {
            Some(log) => resolver.observed(Arc::new(log.clone())),
            None => resolver,
        }
    }
}

/// The platforms that a caller asked for; this machine's when there are none.
fn matcher(all: bool, platforms: &[Platform]) -> Matcher {
    match (all, platforms) {
        (true, _) => Matcher::all(),
        (false, []) => Matcher::host(),
        (false, some) => Matcher::ordered(some),
    }
}

/// Labels by which the garbage collector finds what a document refers to.
pub(crate) fn gc_labels(document: &Document) -> Labels {
    let label = |(suffix, child): (String, &Descriptor)| {
        (format!("containerd.io/gc.ref.content.{suffix}"), child.digest.to_string())
    };
    document.children().into_iter().map(label).collect()
}

/// What a blob's labels become: those of `more`, and that it is to be found at `origin` too.
async fn with_origin(
    content: &Content,
    digest: &Digest,
    mut more: Labels,
    origin: &Reference,
) -> Result<Labels> {
    let current = match content.info(digest).await {
        Err(e) if e.is_not_found() => Labels::new(),
        info => info?.labels,
    };
    labels::add_source(&mut more, &current, origin);
    Ok(more)
}

/// The credentials of the caller, for whoever may have them.
struct Given {
    credentials: crate::transfer::Credentials,
    host: Option<String>,
}

#[async_trait::async_trait]
impl Credentials for Given {
    async fn get(&self, asked: &AuthRequest) -> Result<Option<Credential>> {
        if !may_know(self.host.as_deref(), &asked.host) {
            return Ok(None);
        }
        let username = self.credentials.username.clone();
        let secret = self.credentials.secret.clone();
        Ok(Some(if username.is_empty() {
            Credential::RefreshToken(secret)
        } else {
            Credential::Basic { username, secret }
        }))
    }
}

/// Whether the host that asks may be told credentials that are for `host` alone.
pub(crate) fn may_know(host: Option<&str>, asks: &str) -> bool {
    let hub = host == Some("docker.io") && asks == "registry-1.docker.io";
    hub || host.is_none_or(|host| host == asks)
}

/// Where the steps of a transfer are told.
#[derive(Clone)]
struct Steps(mpsc::Sender<Progress>);

impl Steps {
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
        let _ = self.0.send(step).await;
    }
}

/// Runs `work`, handing the steps it tells to `progress`.
async fn followed<T, F>(
    work: impl FnOnce(Steps) -> F,
    mut progress: impl FnMut(Progress),
) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let (steps, mut told) = mpsc::channel(STEPS_QUEUED_MAX);
    let show = async {
        while let Some(step) = told.recv().await {
            progress(step);
        }
    };
    let (done, ()) = tokio::join!(work(Steps(steps)), show);
    done
}
