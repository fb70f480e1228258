//! `gantry.services.shims.v1`: the daemon's shims, for operators.

use gantry_api::gantry::services::shims::v1 as wire;
use gantry_api::gantry::services::shims::v1::shims_server::Shims;
use gantry_runtime::{Manager, ShimProcess, ShimStatus, UpgradeOptions, UpgradeOutcome};
use tonic::{Request, Response, Status};

use crate::call;

/// Shims of a runtime.
#[derive(Clone, Debug)]
pub struct ShimsService {
    manager: Manager,
}

impl ShimsService {
    /// Those of `manager`.
    pub fn new(manager: Manager) -> Self {
        Self { manager }
    }
}

#[tonic::async_trait]
impl Shims for ShimsService {
    async fn list(
        &self,
        request: Request<wire::ListShimsRequest>,
    ) -> Result<Response<wire::ListShimsResponse>, Status> {
        let namespace = call::namespace(request.metadata())?;
        let shims = self.manager.shims(namespace.as_ref()).await;
        let shims = shims.into_iter().map(to_wire).collect();
        Ok(Response::new(wire::ListShimsResponse { shims }))
    }

    async fn upgrade(
        &self,
        request: Request<wire::UpgradeShimsRequest>,
    ) -> Result<Response<wire::UpgradeShimsResponse>, Status> {
        let namespace = call::namespace(request.metadata())?;
        let r = request.into_inner();
        let options = UpgradeOptions {
            namespace,
            tasks: r.tasks,
            program: (!r.program.is_empty()).then(|| r.program.into()),
            force: r.force,
        };
        let outcomes = self.manager.upgrade(&options).await;
        let outcomes = outcomes.into_iter().map(|(shim, outcome)| outcome_to_wire(shim, outcome));
        Ok(Response::new(wire::UpgradeShimsResponse { outcomes: outcomes.collect() }))
    }
}

fn to_wire(shim: ShimProcess) -> wire::Shim {
    let status = match shim.status {
        ShimStatus::Foreign => wire::ShimStatus::Foreign,
        ShimStatus::Current => wire::ShimStatus::Current,
        ShimStatus::Outdated => wire::ShimStatus::Outdated,
        ShimStatus::Degraded => wire::ShimStatus::Degraded,
    };
    wire::Shim {
        namespace: shim.namespace.as_str().to_owned(),
        tasks: shim.tasks,
        pid: shim.pid,
        version: shim.version,
        program: shim.program.display().to_string(),
        address: shim.address,
        status: status.into(),
    }
}

fn outcome_to_wire(shim: ShimProcess, outcome: UpgradeOutcome) -> wire::Outcome {
    let (result, reason, previous_version) = match outcome {
        UpgradeOutcome::LeftAlone(why) => (wire::UpgradeResult::LeftAlone, why, String::new()),
        UpgradeOutcome::Upgraded(from) => (wire::UpgradeResult::Upgraded, String::new(), from),
        UpgradeOutcome::Failed(err) => (wire::UpgradeResult::Failed, err.text(), String::new()),
    };
    wire::Outcome { shim: Some(to_wire(shim)), result: result.into(), reason, previous_version }
}
