//! State, Pids, Wait.

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::ProcessDetails;
use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::v1::types::ProcessInfo;
use gantry_errdefs::{Error, Result};
use gantry_ttrpc::Context;
use prost_types::Any;

use super::Shim;
use crate::clock;

impl Shim {
    pub(super) fn query_state(&self, request: &api::StateRequest) -> Result<api::StateResponse> {
        let (container, process) = self.process(&request.id, &request.exec_id)?;
        let exit = process.exit();
        let streams = &process.streams;
        let id = if request.exec_id.is_empty() { &request.id } else { &request.exec_id };
        Ok(api::StateResponse {
            id: id.clone(),
            bundle: container.bundle.display().to_string(),
            pid: process.pid(),
            status: process.stage().status().into(),
            stdin: streams.stdin.clone(),
            stdout: streams.stdout.clone(),
            stderr: streams.stderr.clone(),
            terminal: streams.terminal,
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)),
            exec_id: request.exec_id.clone(),
        })
    }

    pub(super) async fn query_pids(&self, id: &str) -> Result<api::PidsResponse> {
        let container = self.container(id)?;
        if container.init.pid() == 0 {
            return Err(Error::failed_precondition(format!("container {id} is not created")));
        }
        let execs: Vec<(u32, String)> = container
            .execs_now()
            .iter()
            .map(|exec| (exec.pid(), exec.exec_id.clone()))
            .filter(|(pid, _)| *pid != 0)
            .collect();
        let info = |pid: u32| {
            let (_, exec_id) = execs.iter().find(|(exec, _)| *exec == pid)?;
            Some(Any::pack(&ProcessDetails { exec_id: exec_id.clone() }))
        };
        let pids = container.pids().await?;
        let processes = pids.into_iter().map(|pid| ProcessInfo { pid, info: info(pid) }).collect();
        Ok(api::PidsResponse { processes })
    }

    pub(super) async fn wait_process(
        &self,
        ctx: &Context,
        request: &api::WaitRequest,
    ) -> Result<api::WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let exit = tokio::select! {
            exit = process.wait() => exit,
            () = ctx.done() => return Err(Error::new(
                gantry_errdefs::Class::Canceled,
                format!("wait for {}", request.id),
            )),
        };
        Ok(api::WaitResponse {
            exit_status: exit.map_or(0, |exit| exit.status),
            exited_at: exit.map(|exit| clock::timestamp(exit.at)),
        })
    }
}
