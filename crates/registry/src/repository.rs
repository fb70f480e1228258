//! A repository on whichever of its hosts is able: the walk over hosts.

use std::collections::HashSet;
use std::fmt::{self, Write as _};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use gantry_core::Reference;
use gantry_errdefs::{Class, Error, Result};
use url::Url;

use crate::auth::Auth;
use crate::client::Clients;
use crate::credentials::{Anonymous, Credentials};
use crate::failure::Failure;
use crate::fetch::ranges::AheadBudget;
use crate::hosts::{Capabilities, Host, Hosts};
use crate::limits::{ATTEMPTS_MAX, BACKOFF_FIRST, BACKOFF_MAX, RETRY_AFTER_MAX};
use crate::steps::{HostStep, Observer, Step};
use crate::transport::{self, Request};

/// What a resolver starts from.
pub struct ResolverOptions {
    /// Which hosts serve which registry.
    pub hosts: Hosts,
    /// Who we are to them.
    pub credentials: Arc<dyn Credentials>,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self { hosts: Hosts::default(), credentials: Arc::new(Anonymous) }
    }
}

impl fmt::Debug for ResolverOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResolverOptions").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Shared by all transfers: hosts, credentials, connections, tokens. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    hosts: Hosts,
    clients: Arc<Clients>,
    auth: Arc<Auth>,
    ahead: AheadBudget,
}

impl Default for Resolver {
    fn default() -> Self {
        Self::new(ResolverOptions::default())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

impl Resolver {
    /// A resolver with connections of its own.
    pub fn new(options: ResolverOptions) -> Self {
        Self {
            hosts: options.hosts,
            clients: Arc::default(),
            auth: Arc::new(Auth::new(options.credentials)),
            ahead: AheadBudget::default(),
        }
    }

    /// The same connections for other hosts and credentials. Tokens are not shared: they belong
    /// to whoever the credentials belong to.
    #[must_use]
    pub fn with(&self, options: ResolverOptions) -> Self {
        Self {
            hosts: options.hosts,
            clients: self.clients.clone(),
            auth: Arc::new(Auth::new(options.credentials)),
            ahead: self.ahead.clone(),
        }
    }

    /// The same resolver with other credentials; see [`Resolver::with`].
    #[must_use]
    pub fn with_credentials(&self, credentials: Arc<dyn Credentials>) -> Self {
        self.with(ResolverOptions { hosts: self.hosts.clone(), credentials })
    }

    /// The same resolver, whose steps `observer` is told; see [`Resolver::with`].
    #[must_use]
    pub fn observed(&self, observer: Arc<dyn Observer>) -> Self {
        Self { auth: Arc::new(self.auth.observed(observer)), ..self.clone() }
    }

    /// The same resolver with other hosts; see [`Resolver::with`].
    #[must_use]
    pub fn with_hosts(&self, hosts: Hosts) -> Self {
        self.with(ResolverOptions { hosts, credentials: self.auth.credentials() })
    }

    /// Which hosts serve which registry.
    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    /// The repository that `reference` names, with its hosts looked up.
    ///
    /// # Errors
    /// What [`Hosts::lookup`] returns.
    pub async fn repository(&self, reference: &Reference) -> Result<Repository> {
        let (hosts, registry) = (self.hosts.clone(), reference.host().to_owned());
        let hosts = tokio::task::spawn_blocking(move || hosts.lookup(&registry))
            .await
            .map_err(|e| Error::internal(format!("reading host configuration: {e}")))??;
        self.auth.tell(|| Step::Hosts {
            registry: reference.host().to_owned(),
            hosts: hosts.iter().map(host_step).collect(),
        });
        Ok(Repository {
            inner: Arc::new(Inner {
                reference: reference.clone(),
                hosts,
                clients: self.clients.clone(),
                auth: self.auth.clone(),
                ahead: self.ahead.clone(),
                logged: Mutex::default(),
                misses: AtomicU32::new(0),
            }),
        })
    }
}

/// One repository of a registry; see the crate's page. Cheap to clone.
#[derive(Clone)]
pub struct Repository {
    inner: Arc<Inner>,
}

struct Inner {
    reference: Reference,
    hosts: Vec<Host>,
    clients: Arc<Clients>,
    auth: Arc<Auth>,
    ahead: AheadBudget,
    /// Hosts whose skipping was logged.
    logged: Mutex<HashSet<String>>,
    /// Blobs in a row that were to be pushed and were not there.
    misses: AtomicU32,
}

impl fmt::Debug for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.inner.hosts.iter().map(Host::origin).collect();
        write!(f, "Repository({} on {hosts:?})", self.inner.reference)
    }
}

/// An attempt on one host.
pub(crate) type Attempt<'s, T> = BoxFuture<'s, Result<T, Failure>>;

impl Repository {
    /// How many blobs in a row were not there when they were to be pushed.
    pub(crate) fn misses(&self) -> &AtomicU32 {
        &self.inner.misses
    }

    /// The reference this repository was made for.
    pub fn reference(&self) -> &Reference {
        &self.inner.reference
    }

    /// The hosts in the order they are tried.
    pub fn hosts(&self) -> &[Host] {
        &self.inner.hosts
    }

    /// What may be held in memory ahead of streams.
    pub(crate) fn ahead_budget(&self) -> AheadBudget {
        self.inner.ahead.clone()
    }

    /// Sends a request to one host.
    pub(crate) async fn send(
        &self,
        host: &Host,
        request: &Request<'_>,
    ) -> Result<reqwest::Response, Failure> {
        let inner = &self.inner;
        transport::send(&inner.clients, &inner.auth, host, &inner.reference, request).await
    }

    /// The address of `rest` (`manifests/latest`) in this repository on `host`.
    pub(crate) fn url(&self, host: &Host, rest: &str) -> Result<Url, Failure> {
        let text = format!("{}{}/{}/{rest}", host.origin(), host.path, self.inner.reference.path());
        let mut url = Url::parse(&text).map_err(|e| {
            Failure::lasting(Class::InvalidArgument, format!("cannot make a URL of {text:?}: {e}"))
        })?;
        if let Some(namespace) = &host.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Tries `attempt` on each host that has the capability, in order, until one succeeds; walks
    /// again after a pause while the last host's failure may pass. `what` is for errors.
    pub(crate) async fn walk<'s, T>(
        &'s self,
        what: &str,
        capable: fn(&Capabilities) -> bool,
        attempt: impl Fn(&'s Host) -> Attempt<'s, T> + Send + Sync,
    ) -> Result<T> {
        let hosts: Vec<&Host> =
            self.inner.hosts.iter().filter(|h| capable(&h.capabilities)).collect();
        let mut pause = BACKOFF_FIRST;
        for round in 1.. {
            let mut failures: Vec<(&Host, Failure)> = Vec::new();
            for host in &hosts {
                match attempt(host).await {
                    Ok(done) => return Ok(done),
                    Err(failure) => {
                        self.log_skipped(host, &failure);
                        failures.push((host, failure));
                    }
                }
            }
            let again = failures.last().map(|(_, f)| f).filter(|f| f.transient);
            let wait = again.and_then(|f| match f.retry_after {
                Some(asked) => (asked <= RETRY_AFTER_MAX).then_some(asked.max(pause)),
                None => Some(pause),
            });
            let (Some(wait), true) = (wait, round < ATTEMPTS_MAX) else {
                return Err(self.no_host(what, &failures, round));
            };
            tokio::time::sleep(jittered(wait)).await;
            pause = (pause * 2).min(BACKOFF_MAX);
        }
        unreachable!("the loop above ends by returning")
    }

    fn log_skipped(&self, host: &Host, failure: &Failure) {
        let reason = failure.reason.clone();
        self.inner.auth.tell(|| Step::Skipped { host: host.origin(), reason });
        let mut logged = self.inner.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if logged.insert(host.origin()) {
            tracing::info!(
                reference = %self.inner.reference,
                host = host.origin(),
                reason = failure.reason,
                "registry host skipped"
            );
        }
    }

    /// The error of a walk that no host ended: every host with its reason. Its class is that of
    /// the last host, which is the registry itself unless configured otherwise.
    fn no_host(&self, what: &str, failures: &[(&Host, Failure)], rounds: u32) -> Error {
        let locator = self.inner.reference.locator();
        let Some((_, last)) = failures.last() else {
            return Error::not_found(format!(
                "{what} of {locator}: no host is configured that may be asked"
            ));
        };
        let mut message = format!("{what} of {locator}: ");
        for (i, (host, failure)) in failures.iter().enumerate() {
            let separator = if i == 0 { "" } else { "; " };
            let _ = write!(message, "{separator}{}: {}", host.origin(), failure.reason);
        }
        if rounds > 1 {
            let _ = write!(message, " (tried {rounds} times)");
        }
        Error::new(last.class, message)
    }
}

/// A host as it is told.
fn host_step(host: &Host) -> HostStep {
    let may = &host.capabilities;
    let named = [
        (may.pull, "pull"),
        (may.resolve, "resolve"),
        (may.push, "push"),
        (may.referrers, "referrers"),
    ];
    let capabilities = named.into_iter().filter(|(may, _)| *may).map(|(_, name)| name).collect();
    HostStep { host: host.origin(), mirror: host.namespace.is_some(), capabilities }
}

/// Up to a quarter more, so that many pulls do not come back at the same moment. The randomness
/// is the clock's: this needs spread, not secrecy.
fn jittered(pause: Duration) -> Duration {
    let nanos = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    pause + pause * (nanos % 256) / 1024
}
