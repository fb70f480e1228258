//! The doctor: finds what is orphaned or damaged, says why it is there, and removes or repairs it.
//!
//! It works inside the daemon, beside everything else, because only the daemon knows what is in
//! use at this moment: blobs and snapshots being made hold their names, tasks being made have
//! their key in the table before anything of them is on disk. A thing is reported only when two
//! looks, [`BETWEEN_LOOKS`] apart, find the same; and it is looked at once more, with its name
//! held, before it is touched. Of what lies outside the daemon's own directories (cgroups, FIFOs,
//! processes, sockets) only what is older than [`Request::min_age`] counts.
//!
//! - [`Doctor::examine`]: what `gantry doctor [--fix]` asks for.
//! - [`Doctor::after_start`]: after an unclean end, everything that may have been lost is verified
//!   in the background and made whole.
#![forbid(unsafe_code)]

mod finding;
mod machine;
mod start;
mod thing;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gantry_errdefs::{Result, ResultExt as _};
use gantry_images::Unpacker;
use gantry_metadata::{BlobScan, Db, LayerScan};
use gantry_mount::TempRoot;
use gantry_runtime::Manager;

pub use finding::{Finding, State};
pub use start::Unclean;
use thing::Thing;

/// Time between the two looks: what is on its way in or out is through by then.
pub const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// Findings of the start that are kept to be told.
const START_FINDINGS_MAX: usize = 256;

/// What no look can tell.
const UNSEEN: [&str; 5] = [
    "the contents of unpacked files: layers are compared by names, kinds, modes, owners, sizes, \
     times and attributes",
    "the contents of blobs, unless asked to read them (--deep)",
    "the inside of snapshotters in other processes, and of other daemons",
    "leases, images and containers that nobody wants any more but nobody deleted",
    "cgroups under paths that a client chose, networks, and what is in other pid namespaces",
];

/// What to look at.
#[derive(Clone, Debug)]
pub struct Request {
    /// Remove or repair what is found.
    pub fix: bool,
    /// Read every blob and compare its digest.
    pub deep: bool,
    /// How old a thing outside the daemon's directories must be to count.
    pub min_age: Duration,
    /// Where clients make the FIFOs of their tasks.
    pub fifo_dirs: Vec<PathBuf>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Every orphaned or damaged thing.
    pub findings: Vec<Finding>,
    /// What the doctor cannot see.
    pub unseen: Vec<String>,
}

/// See the crate. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Doctor {
    db: Db,
    unpacker: Unpacker,
    runtime: Manager,
    temp: TempRoot,
    /// What the start found and made of it.
    at_start: Arc<Mutex<Vec<Finding>>>,
}

impl Doctor {
    /// A doctor for these parts of a daemon.
    pub fn new(db: Db, unpacker: Unpacker, runtime: Manager, temp: TempRoot) -> Self {
        Self { db, unpacker, runtime, temp, at_start: Arc::default() }
    }

    /// Looks at everything, and mends it if asked to. A thing that cannot be mended is in the
    /// report with the reason; it is no error.
    ///
    /// # Errors
    /// When database or content store cannot be read at all.
    pub async fn examine(&self, request: &Request) -> Result<Report> {
        let first = self.look(request).await?;
        let mut things = Vec::new();
        if !first.is_empty() {
            tokio::time::sleep(BETWEEN_LOOKS).await;
            let names: HashSet<_> = first.iter().map(Thing::name).collect();
            things = self.look(request).await?;
            things.retain(|thing| names.contains(&thing.name()));
        }
        let mut findings = self.at_start.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for thing in things {
            let finding = if request.fix { self.fix(thing).await } else { Some(thing.finding()) };
            findings.extend(finding);
        }
        let mut unseen: Vec<String> = UNSEEN.map(str::to_owned).to_vec();
        if !self.runtime.is_loaded() {
            unseen.push("tasks: the shims of an earlier run are still being looked for".to_owned());
        }
        Ok(Report { findings, unseen })
    }

    /// Everything wrong at this moment; damaged blobs first, for layers are unpacked from them.
    async fn look(&self, request: &Request) -> Result<Vec<Thing>> {
        let upkeep = self.db.upkeep();
        let scan = if request.deep { BlobScan::All } else { BlobScan::Sizes };
        let mut things = Vec::new();
        things.extend(upkeep.bad_blobs(scan).await?.into_iter().map(Thing::Blob));
        things.extend(upkeep.bad_layers(LayerScan::All).await?.into_iter().map(Thing::Layer));
        things.extend(upkeep.orphans().await?.into_iter().map(Thing::Orphan));
        let left = self.runtime.leftovers(request.min_age).await?;
        let sandboxes = self.sandboxes().await?;
        things.extend(
            left.into_iter()
                .filter(|l| !sandboxes.contains(&(l.namespace.clone(), l.id.clone())))
                .map(Thing::Leftover),
        );
        things.extend(self.temp.strays()?.into_iter().map(Thing::TempMount));
        things.extend(self.cgroups(request.min_age).await?.into_iter().map(Thing::Cgroup));
        things.extend(self.fifo_dirs(request).await?.into_iter().map(Thing::FifoDir));
        Ok(things)
    }

    /// Mends one thing; none when there turns out to be nothing to mend.
    async fn fix(&self, thing: Thing) -> Option<Finding> {
        let mut finding = thing.finding();
        match self.mend(&thing).await {
            Ok(true) => {
                finding.fixed = true;
                tracing::info!(
                    kind = finding.kind,
                    id = finding.id,
                    why = finding.reason,
                    "mended"
                );
            }
            Ok(false) => return None,
            Err(err) => {
                tracing::warn!(kind = finding.kind, id = finding.id, %err, "not mended");
                finding.error = err.text();
            }
        }
        Some(finding)
    }

    async fn mend(&self, thing: &Thing) -> Result<bool> {
        let upkeep = self.db.upkeep();
        gantry_failpoint::hit("doctor.mend").context(|| "mend".to_owned())?;
        match thing {
            Thing::Blob(bad) => upkeep.drop_blob(bad).await,
            Thing::Layer(bad) => self.mend_layer(bad).await.map(|()| true),
            Thing::Orphan(orphan) => upkeep.remove_orphan(orphan).await,
            Thing::Leftover(left) => self.runtime.remove_leftover(left).await,
            Thing::TempMount(path) => {
                let (temp, path) = (self.temp.clone(), path.clone());
                machine::blocking(move || temp.remove_stray(&path)).await
            }
            Thing::Cgroup(cgroup) => {
                let cgroup = cgroup.clone();
                machine::blocking(move || machine::remove_cgroup(&cgroup)).await
            }
            Thing::FifoDir(dir) => {
                let dir = dir.clone();
                machine::blocking(move || machine::remove_fifo_dir(&dir)).await
            }
        }
    }

    /// Unpacks a layer again; one that cannot be is removed, for the next pull to bring back.
    async fn mend_layer(&self, bad: &gantry_metadata::BadLayer) -> Result<()> {
        let err = match self.unpacker.repair(bad).await {
            Ok(()) => return Ok(()),
            Err(err) => err,
        };
        // In use, or a passing trouble: what is there is better than nothing.
        let no_blob = bad.origin.is_none() || err.is_not_found();
        let bad_blob = err.is_invalid_argument() || err.is_data_loss();
        if !no_blob && !bad_blob {
            return Err(err);
        }
        let mut given_up = self.db.upkeep().give_up(bad).await;
        if given_up.as_ref().is_err_and(gantry_errdefs::Error::is_failed_precondition) {
            // What is on top may only wait for the collector.
            self.db.gc().run().await?;
            given_up = self.db.upkeep().give_up(bad).await;
        }
        match given_up {
            Ok(_) => Ok(()),
            Err(held) => Err(err.context(held.message().to_owned())),
        }
    }
}
