//! Failpoints that `ctr` does not come to; the others are swept with it (`blackbox`, `failpoints`).

use std::io::Write as _;

use gantry_api::containerd::services::events::v1 as events;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::mounts::v1 as mounts;
use gantry_api::containerd::services::mounts::v1::mounts_client::MountsClient;
use gantry_api::containerd::services::tasks::v1 as tasks;
use gantry_failpoint::{LOG_ENV, PLAN_ENV};
use gantry_testkit::DaemonKind;
use serde_json::json;

use super::{World, bind};
use crate::harness::connect;

/// What happens at a point: the step fails, or is the last of its process.
const ACTIONS: [&str; 2] = ["error", "abort"];

impl World {
    /// Has the daemon, and the shims it starts, carry out a plan.
    async fn plan(&mut self, plan: &str) {
        self.daemon.stop();
        let log = self.daemon.dir().join("failpoints");
        let _ = std::fs::remove_file(&log);
        self.daemon.set_env(LOG_ENV, log.to_str().unwrap());
        self.daemon.set_env(PLAN_ENV, plan);
        self.again().await;
    }

    /// Ends the plan, and the daemon if it has survived; fails if nothing was carried out.
    async fn recover(&mut self, plan: &str) {
        let acted = std::fs::read_to_string(self.daemon.dir().join("failpoints"));
        let point = plan.split('=').next().unwrap();
        assert!(acted.is_ok_and(|text| text.contains(point)), "{plan} was not carried out");
        self.daemon.set_env(PLAN_ENV, "");
        self.daemon.kill9();
        self.again().await;
    }

    async fn again(&mut self) {
        self.daemon.start_again();
        self.channel = connect(&self.daemon.address().to_string_lossy()).await;
    }

    async fn create(&self, id: &str) -> Result<u32, tonic::Status> {
        let create = tasks::CreateTaskRequest {
            container_id: id.into(),
            rootfs: vec![bind(&self.root)],
            ..Default::default()
        };
        Ok(self.tasks().create(self.ask(create)).await?.into_inner().pid)
    }

    async fn start_task(&self, id: &str) {
        let start = tasks::StartRequest { container_id: id.into(), exec_id: String::new() };
        self.tasks().start(self.ask(start)).await.unwrap();
    }

    async fn delete(&self, id: &str) -> tasks::DeleteResponse {
        let wait = tasks::WaitRequest { container_id: id.into(), exec_id: String::new() };
        self.tasks().wait(self.ask(wait)).await.unwrap();
        let delete = tasks::DeleteTaskRequest { container_id: id.into() };
        self.tasks().delete(self.ask(delete)).await.unwrap().into_inner()
    }
}

/// An activation that is not on record is none: nothing of it is mounted, and its name is free.
#[tokio::test(flavor = "multi_thread")]
async fn root_a_mount_that_is_not_recorded_is_undone() {
    let mut world = World::start(DaemonKind::Gantryd).await;
    for action in ACTIONS {
        let plan = format!("mounts.record={action}");
        world.plan(&plan).await;
        let activate = || mounts::ActivateRequest {
            name: "m".into(),
            mounts: vec![bind(&world.root)],
            temporary: true,
            ..Default::default()
        };
        let client = || MountsClient::new(world.channel.clone());
        client().activate(world.ask(activate())).await.unwrap_err();
        if action == "error" {
            world.daemon.assert_clean();
        }
        world.recover(&plan).await;
        let mut client = MountsClient::new(world.channel.clone());
        let info = mounts::InfoRequest { name: "m".into() };
        assert_eq!(client.info(world.ask(info)).await.unwrap_err().code(), tonic::Code::NotFound);
        world.daemon.assert_clean();
        let activate = mounts::ActivateRequest {
            name: "m".into(),
            mounts: vec![bind(&world.root)],
            temporary: true,
            ..Default::default()
        };
        client.activate(world.ask(activate)).await.unwrap();
        let deactivate = mounts::DeactivateRequest { name: "m".into() };
        client.deactivate(world.ask(deactivate)).await.unwrap();
    }
    world.daemon.assert_clean();
}

/// A journal that has grown long is written anew; cut off there, the fact is still told, once to
/// whoever looks after the restart.
#[tokio::test(flavor = "multi_thread")]
async fn root_a_journal_that_is_not_written_anew_loses_no_fact() {
    let mut world = World::start(DaemonKind::Gantryd).await;
    for action in ACTIONS {
        let id = format!("long-{action}");
        world.record(&id, &["sleep", "1000"]).await;
        world.create(&id).await.unwrap();
        world.start_task(&id).await;
        // As after more than a thousand kills for memory.
        let told = world.daemon.bundle(&id).join("told");
        let mut told = std::fs::File::options().create(true).append(true).open(told).unwrap();
        (0..1100).for_each(|n| writeln!(told, "oom {n}").unwrap());
        let plan = format!("bundle.told-anew={action}");
        world.plan(&plan).await;
        let kill = tasks::KillRequest { container_id: id.clone(), signal: 9, ..Default::default() };
        // The daemon may be gone before it answers.
        let _ = world.tasks().kill(world.ask(kill)).await;
        let log = world.daemon.dir().join("failpoints");
        gantry_testkit::eventually("the journal is written", || {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            if text.contains("told-anew") { Ok(()) } else { Err(text) }
        });
        world.recover(&plan).await;
        let filters = vec![format!("event.container_id=={id}")];
        let subscribe = events::SubscribeRequest { filters };
        let mut client = EventsClient::new(world.channel.clone());
        let mut seen = client.subscribe(subscribe).await.unwrap().into_inner();
        assert_eq!(world.delete(&id).await.exit_status, 137);
        let mut topics = Vec::new();
        while topics.last().is_none_or(|topic| topic != "/tasks/delete") {
            topics.push(seen.message().await.unwrap().unwrap().into_message().topic);
        }
        if action == "abort" {
            assert_eq!(topics, ["/tasks/exit", "/tasks/delete"]);
        }
        world.forget(&id).await;
    }
    world.daemon.assert_clean();
}

/// A spec that asks for more than this machine gives is rewritten; when that fails, no container
/// is made, and the next attempt makes one.
#[tokio::test(flavor = "multi_thread")]
async fn root_a_spec_that_is_not_rewritten_leaves_no_task() {
    // Where it is missing already this changes nothing. Daemons and shims inherit it.
    let capability = rustix::thread::CapabilitySet::SYS_RESOURCE;
    rustix::thread::remove_capability_from_bounding_set(capability).unwrap();
    let mut world = World::start(DaemonKind::Gantryd).await;
    for action in ACTIONS {
        let id = format!("limits-{action}");
        let limits = json!([{ "type": "RLIMIT_NOFILE", "soft": 64, "hard": 1_u64 << 40 }]);
        world.record_with(&id, &["sh", "-c", "exit $(ulimit -n)"], limits).await;
        let plan = format!("shim.spec={action}");
        world.plan(&plan).await;
        world.create(&id).await.unwrap_err();
        world.recover(&plan).await;
        world.create(&id).await.unwrap();
        world.start_task(&id).await;
        assert_eq!(world.delete(&id).await.exit_status, 64);
        world.forget(&id).await;
    }
    world.daemon.assert_clean();
}
