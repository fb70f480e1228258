//! The doctor: what is orphaned or damaged. Only gantryd has one.

use std::path::PathBuf;
use std::time::Duration;

use gantry_api::gantry::services::doctor::v1 as wire;
use gantry_api::gantry::services::doctor::v1::doctor_client::DoctorClient;
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::status;

handle! {
    /// The doctor service.
    Doctor, doctor
}

/// What to look at.
#[derive(Clone, Debug, Default)]
pub struct ExamineOptions {
    /// Remove or repair what is found.
    pub fix: bool,
    /// Read every blob and compare its digest.
    pub deep: bool,
    /// How old a thing outside the daemon's directories must be to count.
    pub min_age: Duration,
    /// Where clients make the FIFOs of their tasks.
    pub fifo_dirs: Vec<PathBuf>,
}

/// One orphaned or damaged thing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is: blob, snapshot, mount, shim, bundle, cgroup, lease, ingest, fifo, socket.
    pub kind: String,
    /// Whose it is; empty when nobody's.
    pub namespace: String,
    /// Its digest, name, path or pid.
    pub id: String,
    /// `orphan` or `damaged`.
    pub state: String,
    /// Why it exists, or what is wrong with it.
    pub reason: String,
    /// What fixing does, or did.
    pub remedy: String,
    /// Whether that has been done.
    pub fixed: bool,
    /// Why it could not be done; empty when it was not tried.
    pub error: String,
}

/// What an examination found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Examination {
    /// Every orphaned or damaged thing.
    pub findings: Vec<Finding>,
    /// What the doctor cannot see.
    pub unseen: Vec<String>,
}

impl Doctor {
    /// Looks at everything, and mends it if asked to.
    ///
    /// # Errors
    /// Unimplemented by other daemons.
    pub async fn examine(&self, options: ExamineOptions) -> Result<Examination> {
        let request = wire::ExamineRequest {
            fix: options.fix,
            deep: options.deep,
            min_age_ms: u64::try_from(options.min_age.as_millis()).unwrap_or(u64::MAX),
            fifo_dirs: options.fifo_dirs.iter().map(|d| d.display().to_string()).collect(),
        };
        let answer = service!(self.client, DoctorClient)
            .examine(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        let findings = answer.findings.into_iter().map(|f| Finding {
            kind: f.kind,
            namespace: f.namespace,
            id: f.id,
            state: f.state,
            reason: f.reason,
            remedy: f.remedy,
            fixed: f.fixed,
            error: f.error,
        });
        Ok(Examination { findings: findings.collect(), unseen: answer.unseen })
    }
}
