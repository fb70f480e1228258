//! A container: its processes, its cgroups, its engine.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gantry_errdefs::{Error, Result};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::task::JoinHandle;

use crate::cgroup::{Cgroup, OomWatch};
use crate::engine::Engine;
use crate::fd;
use crate::process::{Process, Stage};
use crate::reaper::Reaper;
use crate::upgrade::fds::{Incoming, Outgoing};
use crate::upgrade::state::ContainerState;

/// A fork bomb outside a pid namespace of its own is shot at this often before the runtime, which
/// freezes it first, is asked.
const KILL_ROUNDS_MAX: usize = 5;

/// One container of this shim.
#[derive(Debug)]
pub(crate) struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Makes and changes it.
    pub engine: Arc<dyn Engine>,
    /// Its first process.
    pub init: Arc<Process>,
    /// What opening streams and restoring needs of the options.
    pub settings: Settings,
    /// Pause, resume, update and checkpoint, one at a time.
    pub changes: tokio::sync::Mutex<()>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    kernel: Mutex<Kernel>,
}

/// Fixed at create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    /// Owner of stdio pipes.
    pub io_uid: u32,
    /// Group of stdio pipes.
    pub io_gid: u32,
    /// FIFOs may be handed over to processes.
    pub hand_over: bool,
    /// The end of the init does not end the other processes by itself.
    pub kill_all: bool,
    /// The shim mounted the root filesystem.
    pub mounted: bool,
    /// No `pivot_root`.
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// Directory of a checkpoint that start restores from.
    pub restore: Option<PathBuf>,
    /// Work directory of criu.
    pub criu_work: PathBuf,
}

#[derive(Debug, Default)]
struct Kernel {
    cgroup: Option<Cgroup>,
    oom: Option<Arc<OomWatch>>,
    oom_task: Option<JoinHandle<()>>,
}

impl Container {
    /// A container whose init does not exist yet.
    pub(crate) fn new(
        id: String,
        bundle: PathBuf,
        engine: Arc<dyn Engine>,
        init: Process,
        settings: Settings,
    ) -> Self {
        Self {
            id,
            bundle,
            engine,
            init: Arc::new(init),
            settings,
            changes: tokio::sync::Mutex::default(),
            execs: Mutex::default(),
            kernel: Mutex::default(),
        }
    }

    /// A process by exec id; empty is the init.
    ///
    /// # Errors
    /// NotFound.
    pub(crate) fn process(&self, exec_id: &str) -> Result<Arc<Process>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let found = self.execs().get(exec_id).cloned();
        found.ok_or_else(|| Error::not_found(format!("process does not exist {exec_id}")))
    }

    /// Registers an exec.
    ///
    /// # Errors
    /// AlreadyExists.
    pub(crate) fn add_exec(&self, process: Process) -> Result<()> {
        let mut execs = self.execs();
        let id = process.exec_id.clone();
        if execs.contains_key(&id) || id == self.id {
            return Err(Error::already_exists(format!("id {id}")));
        }
        execs.insert(id, Arc::new(process));
        Ok(())
    }

    /// Forgets an exec.
    pub(crate) fn remove_exec(&self, exec_id: &str) {
        let mut execs = self.execs();
        execs.remove(exec_id);
        if execs.is_empty() {
            // A container that was exec'd into a million times is as small as a new one.
            *execs = HashMap::new();
        }
    }

    /// Every exec that is known.
    pub(crate) fn execs_now(&self) -> Vec<Arc<Process>> {
        self.execs().values().cloned().collect()
    }

    /// Its init and every exec.
    pub(crate) fn processes(&self) -> Vec<Arc<Process>> {
        let mut all = self.execs_now();
        all.push(self.init.clone());
        all
    }

    /// Finds the cgroups of the init and starts to watch for kills for memory.
    pub(crate) fn find_cgroup(&self) {
        match Cgroup::of(self.init.pid()) {
            Ok(cgroup) => {
                let oom = OomWatch::start(&cgroup).map(Arc::new);
                *self.kernel() = Kernel { cgroup: Some(cgroup), oom, oom_task: None };
            }
            Err(err) => crate::log::warning!("container {}: cgroups: {err}", self.id),
        }
    }

    /// What the next program needs to go on with it.
    ///
    /// # Errors
    /// A descriptor's.
    pub(crate) fn carry(&self, fds: Outgoing) -> Result<ContainerState> {
        let kernel = self.kernel();
        let execs = self.execs_now();
        Ok(ContainerState {
            id: self.id.clone(),
            bundle: self.bundle.clone(),
            settings: self.settings.clone(),
            cgroup: kernel.cgroup.clone(),
            kills_seen: kernel.oom.as_ref().map(|oom| oom.reported()),
            init: self.init.carry(fds)?,
            execs: execs.iter().map(|exec| exec.carry(fds)).collect::<Result<_>>()?,
        })
    }

    /// One of the program before this one, with the `engine` of its runtime.
    pub(crate) fn resume(
        state: ContainerState,
        engine: Arc<dyn Engine>,
        fds: &mut Incoming,
        reaper: &Arc<Reaper>,
    ) -> Self {
        let init = Process::resume(state.init, fds, reaper);
        let container = Self::new(state.id, state.bundle, engine, init, state.settings);
        let execs = state.execs.into_iter().map(|exec| Process::resume(exec, fds, reaper));
        let execs = execs.map(|exec| (exec.exec_id.clone(), Arc::new(exec)));
        container.execs().extend(execs);
        let watched = state.cgroup.as_ref().zip(state.kills_seen);
        let oom = watched.and_then(|(cgroup, seen)| OomWatch::resume(cgroup, seen));
        let oom = oom.map(Arc::new);
        *container.kernel() = Kernel { cgroup: state.cgroup, oom, oom_task: None };
        container
    }

    /// Its cgroups.
    ///
    /// # Errors
    /// NotFound when there are none.
    pub(crate) fn cgroup(&self) -> Result<Cgroup> {
        let found = self.kernel().cgroup.clone();
        found.ok_or_else(|| Error::not_found("cgroup does not exist"))
    }

    /// Its watch for kills for memory.
    pub(crate) fn oom(&self) -> Option<Arc<OomWatch>> {
        self.kernel().oom.clone()
    }

    /// Stops watching for kills for memory.
    pub(crate) fn forget_oom(&self) {
        let mut kernel = self.kernel();
        kernel.oom = None;
        if let Some(task) = kernel.oom_task.take() {
            task.abort();
        }
    }

    /// Keeps the task that reports kills for memory, to end it with the container.
    pub(crate) fn set_oom_task(&self, task: JoinHandle<()>) {
        self.kernel().oom_task = Some(task);
    }

    /// Every pid of the container.
    ///
    /// # Errors
    /// The runtime's, where the cgroup cannot tell.
    pub(crate) async fn pids(&self) -> Result<Vec<u32>> {
        let pids = self.kernel().cgroup.as_ref().and_then(Cgroup::pids);
        match pids {
            Some(pids) => Ok(pids),
            None if self.init.stage() == Stage::Stopped => Ok(Vec::new()),
            None => self.engine.pids(&self.id).await,
        }
    }

    /// Sends a signal to every process.
    ///
    /// # Errors
    /// NotFound when there is none left.
    pub(crate) async fn signal_all(&self, number: u32) -> Result<()> {
        let frozen = matches!(self.init.stage(), Stage::Paused | Stage::Pausing);
        let signal = fd::named_signal(number).filter(|_| !frozen);
        let Some(signal) = signal else {
            return self.engine.kill(&self.id, number, true).await;
        };
        if signal == Signal::KILL && !self.settings.kill_all {
            // The rest of a pid namespace dies with its first process.
            return self.init.signal(signal);
        }
        let cgroup = self.kernel().cgroup.clone();
        let Some(pids) = cgroup.as_ref().and_then(Cgroup::pids) else {
            return self.engine.kill(&self.id, number, true).await;
        };
        if pids.is_empty() {
            return Err(Error::not_found("process already finished"));
        }
        for pid in pids {
            fd::signal_pid(pid, signal)?;
        }
        if signal == Signal::KILL { self.kill_rest(cgroup.as_ref()).await } else { Ok(()) }
    }

    /// Kills until nothing new has appeared.
    async fn kill_rest(&self, cgroup: Option<&Cgroup>) -> Result<()> {
        let mut before = Vec::new();
        for _ in 0..KILL_ROUNDS_MAX {
            let pids = cgroup.and_then(Cgroup::pids).unwrap_or_default();
            if pids.iter().all(|pid| before.contains(pid)) {
                return Ok(());
            }
            for pid in &pids {
                fd::signal_pid(*pid, Signal::KILL)?;
            }
            before = pids;
            tokio::task::yield_now().await;
        }
        self.engine.kill(&self.id, 9, true).await
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
