//! The activations there are.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use async_trait::async_trait;
use gantry_core::{Context, Labels, Namespace, labels};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_metadata::{Db, Member, MemberKind, Members};
use gantry_mount::Mount;

use crate::make::{Work, is_active, remove};
use crate::plan::plan;
use crate::record::{Activation, Record};

/// Activations at one time: each may hold some dozens of mounts, and a kernel has 100,000.
pub const ACTIVATIONS_MAX: usize = 4096;

/// Directory of the activations below the state.
const TARGETS: &str = "t";

/// Suffix of their files.
const SUFFIX: &str = "json";

type Key = (Namespace, String);

/// The activations. Cheap to clone; clones share them.
#[derive(Clone, Debug)]
pub struct Activations {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    db: Db,
    dir: PathBuf,
    /// Held for map accesses, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<Key, Known>,
    /// Names at work: being made or taken away.
    busy: HashSet<Key>,
    /// Number of the next directory.
    next: u64,
}

#[derive(Clone, Debug)]
struct Known {
    number: u64,
    lease: Option<String>,
    activation: Activation,
}

/// Holds a name while it is worked on.
struct Busy<'a>(&'a Shared, Key);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.state().busy.remove(&self.1);
    }
}

impl Activations {
    /// Takes `state` (made if missing), with what an earlier run has activated there. Leases and
    /// containers are looked up in `db`. Blocks.
    ///
    /// # Errors
    /// The I/O error; what cannot be cleaned only warns.
    pub fn open(state: &Path, db: Db) -> Result<Self> {
        let dir = state.join(TARGETS);
        fs::create_dir_all(&dir).context(|| dir.display().to_string())?;
        let state = load(&dir)?;
        Ok(Self { shared: Arc::new(Shared { db, dir, state: Mutex::new(state) }) })
    }

    /// From now on the collector takes activations away that nothing holds any more, until the
    /// last clone is dropped.
    pub fn start(&self) {
        let shared: Weak<dyn Members> = Arc::<Shared>::downgrade(&self.shared);
        self.shared.db.gc().look_after(MemberKind::Mount, shared);
    }

    /// Makes what has to be made of `mounts`, all of them if `temporary`. The activation is held by
    /// the lease of `ctx`, if it has one, by what the labels `containerd.io/gc.bref.*` name, and by
    /// what refers to it with `containerd.io/gc.ref.mount`; without lease and back reference it
    /// lives until it is deactivated. To its end even when the caller goes away.
    ///
    /// # Errors
    /// Unimplemented when there is nothing to do, which callers rely on; AlreadyExists;
    /// InvalidArgument for an empty name, a bad label or text that stands for nothing; NotFound for
    /// the lease; ResourceExhausted at [`ACTIVATIONS_MAX`]; the kernel's errors. Nothing is left
    /// then.
    pub async fn activate(
        &self,
        ctx: &Context,
        name: &str,
        mounts: Vec<Mount>,
        labels: Labels,
        temporary: bool,
    ) -> Result<Activation> {
        let (steps, made) = plan(&mounts, temporary).context(|| format!("mount {name:?}"))?;
        if name.is_empty() {
            return Err(Error::invalid_argument("mount name must not be empty"));
        }
        labels::validate_all(&labels)?;
        self.shared.db.leases().check(ctx)?;
        let (this, ctx, name) = (self.clone(), ctx.clone(), name.to_owned());
        detached(async move {
            let key = (ctx.namespace.clone(), name.clone());
            let (busy, number) = this.reserve(&key)?;
            let dir = this.shared.dir.clone();
            let (lease, namespace) = (ctx.lease.clone(), ctx.namespace.clone());
            let work = Work { dir, number, steps, made, mounts };
            let known = blocking(move || {
                let (active, system) = work.make()?;
                let activation = Activation { name, active, system, labels };
                let record = Record::new(namespace.as_str(), lease.as_deref(), &activation);
                if let Err(err) = save(&work.dir, number, &record) {
                    let _ = remove(&work.dir, number);
                    return Err(err);
                }
                Ok(Known { number, lease, activation })
            })
            .await?;
            let activation = known.activation.clone();
            this.state().known.insert(key, known);
            drop(busy);
            if this.shared.db.leases().check(&ctx).is_err() {
                // The collection that its deletion called for may not have seen this.
                this.shared.db.gc().stir();
            }
            Ok(activation)
        })
        .await
    }

    /// Takes an activation away: its mounts in reverse, then its directory.
    ///
    /// # Errors
    /// NotFound; Unavailable while somebody is at it; the kernel's error, and then it is still there.
    pub async fn deactivate(&self, namespace: &Namespace, name: &str) -> Result<()> {
        let (shared, key) = (Arc::clone(&self.shared), (namespace.clone(), name.to_owned()));
        detached(async move { shared.deactivate(&key, None).await }).await
    }

    /// An activation.
    ///
    /// # Errors
    /// NotFound.
    pub fn info(&self, namespace: &Namespace, name: &str) -> Result<Activation> {
        let key = (namespace.clone(), name.to_owned());
        let known = self.state().known.get(&key).map(|known| known.activation.clone());
        known.ok_or_else(|| missing(name))
    }

    /// The activations of a namespace, by name.
    pub fn list(&self, namespace: &Namespace) -> Vec<Activation> {
        let state = self.state();
        let own = state.known.iter().filter(|((ns, _), _)| ns == namespace);
        let mut found: Vec<Activation> = own.map(|(_, known)| known.activation.clone()).collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        found
    }

    fn reserve(&self, key: &Key) -> Result<(Busy<'_>, u64)> {
        let mut state = self.state();
        if state.known.contains_key(key) || state.busy.contains(key) {
            return Err(Error::already_exists(format!("mount {:?}", key.1)));
        }
        if state.known.len() + state.busy.len() >= ACTIVATIONS_MAX {
            let text = format!("mount {:?}: {ACTIVATIONS_MAX} activations are the limit", key.1);
            return Err(Error::resource_exhausted(text));
        }
        state.busy.insert(key.clone());
        state.next += 1;
        Ok((Busy(&self.shared, key.clone()), state.next))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }
}

impl Shared {
    /// Takes an activation away; only the one of this number, if one is given.
    async fn deactivate(&self, key: &Key, only: Option<u64>) -> Result<()> {
        let (busy, number) = {
            let mut state = self.state();
            let number = state.known.get(key).map(|known| known.number);
            let wanted = |number: &u64| only.is_none_or(|only| only == *number);
            let number = number.filter(wanted).ok_or_else(|| missing(&key.1))?;
            if !state.busy.insert(key.clone()) {
                return Err(Error::unavailable(format!("mount {:?} is being worked on", key.1)));
            }
            (Busy(self, key.clone()), number)
        };
        let dir = self.dir.clone();
        blocking(move || remove(&dir, number)).await.context(|| format!("mount {:?}", key.1))?;
        self.state().known.remove(key);
        drop(busy);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl Members for Shared {
    fn list(&self) -> Vec<Member> {
        let state = self.state();
        let member = |((namespace, name), known): (&Key, &Known)| Member {
            namespace: namespace.clone(),
            name: name.clone(),
            number: known.number,
            lease: known.lease.clone(),
            labels: known.activation.labels.clone(),
        };
        state.known.iter().map(member).collect()
    }

    async fn remove(&self, member: &Member) -> Result<()> {
        let key = (member.namespace.clone(), member.name.clone());
        match self.deactivate(&key, Some(member.number)).await {
            Err(err) if !err.is_not_found() => Err(err),
            _ => Ok(()),
        }
    }
}

pub(crate) fn file(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.{SUFFIX}"))
}

fn save(dir: &Path, number: u64, record: &Record) -> Result<()> {
    let (path, temporary) = (file(dir, number), dir.join(format!("{number}.tmp")));
    let text = serde_json::to_vec(record)
        .map_err(|e| Error::internal(format!("{}: {e}", path.display())))?;
    gantry_failpoint::hit("mounts.record")
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, &path))
        .context(|| path.display().to_string())
}

/// What an earlier run has left: whole activations are kept, others undone.
fn load(dir: &Path) -> Result<State> {
    let mut state = State::default();
    let mut numbers = HashSet::new();
    for entry in fs::read_dir(dir).context(|| dir.display().to_string())?.flatten() {
        let name = entry.file_name();
        let stem = Path::new(&name).file_stem().and_then(|stem| stem.to_str());
        numbers.extend(stem.and_then(|stem| stem.parse::<u64>().ok()));
    }
    for number in numbers {
        state.next = state.next.max(number);
        match whole(dir, number) {
            Some((namespace, lease, activation)) => {
                let key = (namespace, activation.name.clone());
                state.known.insert(key, Known { number, lease, activation });
            }
            None => {
                let _ = fs::remove_file(dir.join(format!("{number}.tmp")));
                if let Err(err) = remove(dir, number) {
                    tracing::warn!(%err, "mounts of an earlier run are left");
                }
            }
        }
    }
    Ok(state)
}

/// An activation of which everything is there; after a reboot no mount is.
fn whole(dir: &Path, number: u64) -> Option<(Namespace, Option<String>, Activation)> {
    let record: Record = serde_json::from_slice(&fs::read(file(dir, number)).ok()?).ok()?;
    let namespace = Namespace::new(record.namespace.clone()).ok()?;
    let lease = record.lease.clone();
    let activation = record.activation();
    let mounted = activation.active.iter().all(is_active);
    mounted.then_some((namespace, lease, activation))
}

fn missing(name: &str) -> Error {
    Error::not_found(format!("mount {name:?}"))
}

async fn detached<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("mount: background work panicked")))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::internal("mount: file work panicked")))
}
