//! `gantry.services.doctor.v1`.

use std::time::Duration;

use gantry_api::gantry::services::doctor::v1 as wire;
use gantry_api::gantry::services::doctor::v1::doctor_server::Doctor;
use gantry_doctor::{Finding, Request as Examine};
use tonic::{Request, Response, Status};

/// Tells what is orphaned or damaged, and mends it.
#[derive(Clone, Debug)]
pub struct DoctorService {
    doctor: gantry_doctor::Doctor,
}

impl DoctorService {
    /// A service over `doctor`.
    pub fn new(doctor: gantry_doctor::Doctor) -> Self {
        Self { doctor }
    }
}

#[tonic::async_trait]
impl Doctor for DoctorService {
    async fn examine(
        &self,
        request: Request<wire::ExamineRequest>,
    ) -> Result<Response<wire::ExamineResponse>, Status> {
        let request = request.into_inner();
        let report = self
            .doctor
            .examine(&Examine {
                fix: request.fix,
                deep: request.deep,
                min_age: Duration::from_millis(request.min_age_ms),
                fifo_dirs: request.fifo_dirs.into_iter().map(Into::into).collect(),
            })
            .await?;
        Ok(Response::new(wire::ExamineResponse {
            findings: report.findings.into_iter().map(to_wire).collect(),
            unseen: report.unseen,
        }))
    }
}

fn to_wire(finding: Finding) -> wire::Finding {
    wire::Finding {
        kind: finding.kind.to_owned(),
        namespace: finding.namespace,
        id: finding.id,
        state: finding.state.as_str().to_owned(),
        reason: finding.reason,
        remedy: finding.remedy.to_owned(),
        fixed: finding.fixed,
        error: finding.error,
    }
}
