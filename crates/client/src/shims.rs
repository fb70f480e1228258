//! Shims: the processes behind tasks. Only gantryd has this service.

use gantry_api::gantry::services::shims::v1 as wire;
use gantry_api::gantry::services::shims::v1::shims_client::ShimsClient;
use gantry_errdefs::Result;

use crate::client::{handle, service};
use crate::convert::{required, status};

handle! {
    /// The shims service. Its calls are about the client's namespace, or about all of them when
    /// that is empty.
    Shims, shims
}

/// What a shim is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShimStatus {
    /// Not gantry's, or older than live upgrades.
    Foreign,
    /// It runs what its program's path holds.
    Current,
    /// Its program was replaced since it started.
    Outdated,
    /// It does not answer.
    Degraded,
}

impl ShimStatus {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Foreign => "FOREIGN",
            Self::Current => "CURRENT",
            Self::Outdated => "OUTDATED",
            Self::Degraded => "DEGRADED",
        }
    }
}

/// A shim's process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimRecord {
    /// The namespace of its tasks.
    pub namespace: String,
    /// Its tasks.
    pub tasks: Vec<String>,
    /// Its pid; 0 when it does not answer.
    pub pid: u32,
    /// The version it says it has.
    pub version: String,
    /// The path of its program.
    pub program: String,
    /// Where it listens.
    pub address: String,
    /// What it is like.
    pub status: ShimStatus,
}

/// Which shims to upgrade, and to what.
#[derive(Clone, Debug, Default)]
pub struct ShimUpgradeOptions {
    /// Those of these tasks only; none are all.
    pub tasks: Vec<String>,
    /// Absolute path of the program; empty for each shim's own.
    pub program: String,
    /// Also those that run it already.
    pub force: bool,
}

/// What became of a shim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShimOutcome {
    /// It goes on as it was, for this reason.
    LeftAlone(String),
    /// It runs the program; its version before is given.
    Upgraded(String),
    /// It goes on as it was, as this failed.
    Failed(String),
}

impl Shims {
    /// The shims.
    ///
    /// # Errors
    /// Unimplemented of a daemon that is not gantryd.
    pub async fn list(&self) -> Result<Vec<ShimRecord>> {
        let answer = service!(self.client, ShimsClient)
            .list(self.client.request(wire::ListShimsRequest {}))
            .await
            .map_err(status)?
            .into_inner();
        Ok(answer.shims.into_iter().map(record).collect())
    }

    /// Has shims execute their program anew, in place: containers, their streams and their exits
    /// are none the wiser.
    ///
    /// # Errors
    /// Unimplemented of a daemon that is not gantryd. What fails for one shim is in its outcome.
    pub async fn upgrade(
        &self,
        options: ShimUpgradeOptions,
    ) -> Result<Vec<(ShimRecord, ShimOutcome)>> {
        let request = wire::UpgradeShimsRequest {
            tasks: options.tasks,
            program: options.program,
            force: options.force,
        };
        let answer = service!(self.client, ShimsClient)
            .upgrade(self.client.request(request))
            .await
            .map_err(status)?
            .into_inner();
        answer.outcomes.into_iter().map(outcome).collect()
    }
}

fn record(shim: wire::Shim) -> ShimRecord {
    let status = match shim.status() {
        wire::ShimStatus::Foreign => ShimStatus::Foreign,
        wire::ShimStatus::Current => ShimStatus::Current,
        wire::ShimStatus::Outdated => ShimStatus::Outdated,
        wire::ShimStatus::Degraded => ShimStatus::Degraded,
    };
    ShimRecord {
        namespace: shim.namespace,
        tasks: shim.tasks,
        pid: shim.pid,
        version: shim.version,
        program: shim.program,
        address: shim.address,
        status,
    }
}

fn outcome(outcome: wire::Outcome) -> Result<(ShimRecord, ShimOutcome)> {
    let result = outcome.result();
    let what = match result {
        wire::UpgradeResult::LeftAlone => ShimOutcome::LeftAlone(outcome.reason),
        wire::UpgradeResult::Upgraded => ShimOutcome::Upgraded(outcome.previous_version),
        wire::UpgradeResult::Failed => ShimOutcome::Failed(outcome.reason),
    };
    Ok((record(required(outcome.shim, "the shim")?), what))
}
