//! Which facts of a task have been told.
//!
//! Exits, kills for memory and the deletion of a task are *facts*: each is published once, whatever
//! becomes of the daemon in between. Whoever knows of a fact keeps it until it is told: the shim
//! keeps its event until the daemon has taken it, and the exit record is on disk until the bundle
//! goes. So a fact may reach the daemon twice, or by two ways: again from a shim that got no answer
//! because the daemon was killed, and from the record of a process whose shim has died. The
//! journal is what it is compared with.
//!
//! It is a file in the bundle, `told`, one line for each fact, and goes away with the bundle. A fact
//! is told in this order: publish, wait until it is in the sockets of the clients that keep up,
//! write the line, answer the shim. So:
//!
//! * killed at any moment before it is published: told once, after the restart;
//! * killed once more before any client has found out that the daemon is back: the exchange has
//!   kept it ([`Exchange::open`]), and the next daemon tells it;
//! * killed after the line: never told again;
//! * killed in between, in the fraction of a millisecond that the hand-over takes: told again after
//!   the restart. No fact is ever lost.

use std::collections::VecDeque;
use std::fmt;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use gantry_api::Payload as _;
use gantry_api::containerd::events::{TaskDelete, TaskExit, TaskOom};
use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_events::{Envelope, Exchange};
use tokio::sync::Mutex;

use crate::manager::blocking;

/// The file in the bundle.
const FILE: &str = "told";

/// Facts of execs and kills for memory that are remembered. A shim sends its events one after the
/// other, so only its last one can come again; and only as many execs can be buried together.
const RECENT_MAX: usize = 256;

/// Lines after which the file is written anew with what is remembered: some 32 KiB.
const LINES_MAX: usize = 4 * RECENT_MAX;

/// Something that is told once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fact {
    /// The first process ended.
    Exit,
    /// An exec ended. Ids of execs are used again, pids of a bundle's life hardly.
    ExecExit {
        /// The exec.
        id: String,
        /// Its process.
        pid: u32,
    },
    /// A process was killed for memory, at this time in nanoseconds since 1970.
    Oom(u128),
    /// The task was deleted.
    Delete,
}

impl Fact {
    /// The fact that an event tells; None for one that may be told more than once.
    ///
    /// # Errors
    /// InvalidArgument for an event that does not decode.
    pub(crate) fn of(event: &prost_types::Any, at: SystemTime) -> Result<Option<OfTask>> {
        if let Some(exit) = event.unpack::<TaskExit>()? {
            let (task, pid) = (exit.container_id, exit.pid);
            return Ok(Some(if exit.id.is_empty() || exit.id == task {
                OfTask { task, pid, fact: Self::Exit }
            } else {
                OfTask { task, pid: 0, fact: Self::ExecExit { id: exit.id, pid } }
            }));
        }
        if let Some(oom) = event.unpack::<TaskOom>()? {
            let at = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            return Ok(Some(OfTask { task: oom.container_id, pid: 0, fact: Self::Oom(at) }));
        }
        if let Some(delete) = event.unpack::<TaskDelete>()?
            && (delete.id.is_empty() || delete.id == delete.container_id)
        {
            let (task, pid) = (delete.container_id, delete.pid);
            return Ok(Some(OfTask { task, pid, fact: Self::Delete }));
        }
        Ok(None)
    }

    fn parse(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        match (words.next()?, words.next(), words.next()) {
            ("exit", None, None) => Some(Self::Exit),
            ("exit", Some(id), Some(pid)) => {
                Some(Self::ExecExit { id: id.to_owned(), pid: pid.parse().ok()? })
            }
            ("oom", Some(at), None) => Some(Self::Oom(at.parse().ok()?)),
            ("delete", None, None) => Some(Self::Delete),
            _ => None,
        }
    }
}

impl fmt::Display for Fact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit => f.write_str("exit"),
            Self::ExecExit { id, pid } => write!(f, "exit {id} {pid}"),
            Self::Oom(at) => write!(f, "oom {at}"),
            Self::Delete => f.write_str("delete"),
        }
    }
}

/// A fact and the task it is one of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OfTask {
    /// The task's id.
    pub(crate) task: String,
    /// Pid of its first process, where the event tells: which of several tasks of one id it is.
    pub(crate) pid: u32,
    pub(crate) fact: Fact,
}

impl OfTask {
    /// What tells the fact from all others of this namespace.
    pub(crate) fn key(&self) -> String {
        format!("{} {} {}", self.task, self.pid, self.fact)
    }
}

/// The journal of one task.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    /// Held while a fact is told: facts of one task go out one after the other.
    told: Mutex<Told>,
}

/// What has been told.
#[derive(Debug, Default)]
struct Told {
    /// Whether the file has been read.
    read: bool,
    exit: bool,
    delete: bool,
    /// Other facts, the latest last.
    recent: VecDeque<Fact>,
    lines: usize,
}

impl Told {
    fn has(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Exit => self.exit,
            Fact::Delete => self.delete,
            other => self.recent.contains(other),
        }
    }

    fn add(&mut self, fact: Fact) {
        match fact {
            Fact::Exit => self.exit = true,
            Fact::Delete => self.delete = true,
            other => {
                if self.recent.len() == RECENT_MAX {
                    self.recent.pop_front();
                }
                self.recent.push_back(other);
            }
        }
        self.lines += 1;
    }

    /// Everything that is remembered, as the file has it.
    fn text(&self) -> String {
        let ends = [(self.exit, Fact::Exit), (self.delete, Fact::Delete)];
        let ends = ends.iter().filter(|(told, _)| *told).map(|(_, fact)| fact);
        self.recent.iter().chain(ends).map(|fact| format!("{fact}\n")).collect()
    }
}

impl Journal {
    /// The journal in the bundle at `bundle`; of a task of an earlier run unless `new`.
    pub(crate) fn new(bundle: &Path, new: bool) -> Arc<Self> {
        let told = Told { read: new, ..Told::default() };
        Arc::new(Self { path: bundle.join(FILE), told: Mutex::new(told) })
    }

    /// Publishes `envelope`, which tells `fact`, unless that has been told. To its end even when
    /// the caller goes away. False when it had been told. `recovered` is the
    /// [key](OfTask::key) of a fact from before the start.
    ///
    /// # Errors
    /// InvalidArgument for a bad topic.
    pub(crate) async fn tell(
        self: &Arc<Self>,
        exchange: &Exchange,
        fact: Fact,
        envelope: Envelope,
        recovered: Option<String>,
    ) -> Result<bool> {
        let (this, exchange) = (Arc::clone(self), exchange.clone());
        let work =
            tokio::spawn(async move { this.tell_now(&exchange, fact, envelope, recovered).await });
        work.await.unwrap_or_else(|_| Err(Error::internal("journal: publishing panicked")))
    }

    async fn tell_now(
        &self,
        exchange: &Exchange,
        fact: Fact,
        envelope: Envelope,
        recovered: Option<String>,
    ) -> Result<bool> {
        let mut told = self.told.lock().await;
        self.read(&mut told).await;
        if told.has(&fact) {
            return Ok(false);
        }
        exchange.hand_over(envelope, recovered.as_deref()).await?;
        let line = format!("{fact}\n");
        told.add(fact);
        let anew = (told.lines > LINES_MAX).then(|| told.text());
        if anew.is_some() {
            told.lines = told.recent.len();
        }
        let path = self.path.clone();
        let written = blocking(move || match anew {
            Some(text) => rewrite(&path, &text),
            None => append(&path, &line),
        });
        if let Err(err) = written.await {
            // Told all the same; it may be told again if the daemon dies.
            tracing::debug!(%err, "journal of a task");
        }
        Ok(true)
    }

    async fn read(&self, told: &mut Told) {
        if told.read {
            return;
        }
        let path = self.path.clone();
        let text = blocking(move || Ok(fs::read_to_string(path).unwrap_or_default())).await;
        // A last line cut short is one that was not written.
        for line in text.unwrap_or_default().split_inclusive('\n') {
            if let Some(fact) = line.strip_suffix('\n').and_then(Fact::parse) {
                told.add(fact);
            }
        }
        told.read = true;
    }
}

fn append(path: &Path, line: &str) -> Result<()> {
    gantry_failpoint::hit("bundle.told").context(|| path.display().to_string())?;
    let mut options = fs::OpenOptions::new();
    let mut file =
        options.create(true).append(true).open(path).context(|| path.display().to_string())?;
    file.write_all(line.as_bytes()).context(|| path.display().to_string())
}

fn rewrite(path: &Path, text: &str) -> Result<()> {
    let temporary = path.with_extension("tmp");
    gantry_failpoint::hit("bundle.told-anew")
        .and_then(|()| fs::write(&temporary, text))
        .and_then(|()| fs::rename(&temporary, path))
        .context(|| path.display().to_string())
}

#[cfg(test)]
#[path = "journal/tests.rs"]
mod tests;
