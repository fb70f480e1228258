//! `containerd.services.tasks.v1`, with real shims and runc.

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::ProcessDetails;
use gantry_api::containerd::services::tasks::v1 as wire;
use gantry_api::containerd::v1::types::{Process, Status as Is};
use gantry_testkit::{DaemonKind, built_program};
use serde_json::json;
use tonic::Code::{
    AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, Unknown as UnknownCode,
};
use tonic::Status;

use super::{World, bind, fails, json_any};

/// SIGKILL, and the exit status of what it ends.
const KILL: u32 = 9;
const KILLED: u32 = 128 + KILL;

/// The calls on one task and its execs, short.
struct Task<'w> {
    world: &'w World,
    id: &'static str,
}

impl Task<'_> {
    async fn create(&self) -> Result<u32, Status> {
        let create = wire::CreateTaskRequest {
            container_id: self.id.into(),
            rootfs: vec![bind(&self.world.root)],
            ..Default::default()
        };
        let created = self.world.tasks().create(self.world.ask(create)).await?.into_inner();
        assert_eq!(created.container_id, self.id);
        Ok(created.pid)
    }

    async fn start(&self, exec: &str) -> Result<u32, Status> {
        let start = wire::StartRequest { container_id: self.id.into(), exec_id: exec.into() };
        Ok(self.world.tasks().start(self.world.ask(start)).await?.into_inner().pid)
    }

    async fn get(&self, exec: &str) -> Result<Process, Status> {
        let get = wire::GetRequest { container_id: self.id.into(), exec_id: exec.into() };
        let got = self.world.tasks().get(self.world.ask(get)).await?.into_inner();
        Ok(got.process.expect("a process"))
    }

    async fn kill(&self, exec: &str, all: bool) -> Result<(), Status> {
        let (container_id, exec_id) = (self.id.into(), exec.into());
        let kill = wire::KillRequest { container_id, exec_id, signal: KILL, all };
        self.world.tasks().kill(self.world.ask(kill)).await.map(|_| ())
    }

    async fn wait(&self, exec: &str) -> Result<u32, Status> {
        let wait = wire::WaitRequest { container_id: self.id.into(), exec_id: exec.into() };
        let ended = self.world.tasks().wait(self.world.ask(wait)).await?.into_inner();
        assert!(ended.exited_at.is_some_and(|at| at.seconds > 0), "when it ended");
        Ok(ended.exit_status)
    }

    async fn delete(&self) -> Result<wire::DeleteResponse, Status> {
        let delete = wire::DeleteTaskRequest { container_id: self.id.into() };
        Ok(self.world.tasks().delete(self.world.ask(delete)).await?.into_inner())
    }

    async fn delete_exec(&self, exec: &str) -> Result<wire::DeleteResponse, Status> {
        let (container_id, exec_id) = (self.id.into(), exec.into());
        let delete = wire::DeleteProcessRequest { container_id, exec_id };
        Ok(self.world.tasks().delete_process(self.world.ask(delete)).await?.into_inner())
    }

    async fn exec(&self, exec: &str, args: &[&str]) -> Result<(), Status> {
        let process = json!({ "args": args, "cwd": "/", "env": ["PATH=/bin"],
            "user": { "uid": 0, "gid": 0 } });
        let request = wire::ExecProcessRequest {
            container_id: self.id.into(),
            exec_id: exec.into(),
            spec: Some(json_any("Process", &process)),
            ..Default::default()
        };
        self.world.tasks().exec(self.world.ask(request)).await.map(|_| ())
    }

    async fn resize(&self, exec: &str) -> Result<(), Status> {
        let (container_id, exec_id) = (self.id.into(), exec.into());
        let resize = wire::ResizePtyRequest { container_id, exec_id, width: 80, height: 25 };
        self.world.tasks().resize_pty(self.world.ask(resize)).await.map(|_| ())
    }

    async fn close(&self, exec: &str, stdin: bool) -> Result<(), Status> {
        let (container_id, exec_id) = (self.id.into(), exec.into());
        let close = wire::CloseIoRequest { container_id, exec_id, stdin };
        self.world.tasks().close_io(self.world.ask(close)).await.map(|_| ())
    }

    async fn pause(&self) -> Result<(), Status> {
        let pause = wire::PauseTaskRequest { container_id: self.id.into() };
        self.world.tasks().pause(self.world.ask(pause)).await.map(|_| ())
    }

    async fn resume(&self) -> Result<(), Status> {
        let resume = wire::ResumeTaskRequest { container_id: self.id.into() };
        self.world.tasks().resume(self.world.ask(resume)).await.map(|_| ())
    }

    async fn pids(&self) -> Result<Vec<(u32, Option<String>)>, Status> {
        let list = wire::ListPidsRequest { container_id: self.id.into() };
        let found = self.world.tasks().list_pids(self.world.ask(list)).await?.into_inner();
        let exec_of = |info: &prost_types::Any| {
            info.unpack::<ProcessDetails>().unwrap().map(|details| details.exec_id)
        };
        let processes = found.processes.iter();
        Ok(processes.map(|p| (p.pid, p.info.as_ref().and_then(exec_of))).collect())
    }

    async fn update(&self) -> Result<(), Status> {
        let resources = json_any("LinuxResources", &json!({ "memory": { "limit": 64 << 20 } }));
        let container_id = self.id.into();
        let resources = Some(resources);
        let update = wire::UpdateTaskRequest { container_id, resources, ..Default::default() };
        self.world.tasks().update(self.world.ask(update)).await.map(|_| ())
    }

    async fn metrics(&self, filter: &str) -> Result<Vec<String>, Status> {
        let ask = wire::MetricsRequest { filters: vec![filter.into()] };
        let found = self.world.tasks().metrics(self.world.ask(ask)).await?.into_inner().metrics;
        assert!(found.iter().all(|metric| {
            let kind = metric.data.as_ref().map_or("", |data| data.type_url.as_str());
            metric.timestamp.is_some() && kind.starts_with("io.containerd.cgroups.v")
        }));
        Ok(found.into_iter().map(|metric| metric.id).collect())
    }
}

async fn nothing_there(task: &Task<'_>, what: &str) {
    let fails = |name: &str, result: Result<(), Status>| {
        fails(&format!("{name}, {what}"), result, NotFound, "not found");
    };
    fails("get", task.get("").await.map(drop));
    fails("start", task.start("").await.map(drop));
    fails("kill", task.kill("", false).await);
    fails("wait", task.wait("").await.map(drop));
    fails("delete", task.delete().await.map(drop));
    fails("exec", task.exec("e", &["true"]).await);
    fails("pause", task.pause().await);
    fails("resume", task.resume().await);
    fails("pids", task.pids().await.map(drop));
    fails("update", task.update().await);
    fails("resize", task.resize("").await);
    fails("close", task.close("", true).await);
}

async fn the_life_of_a_task(kind: DaemonKind) {
    let world = World::start(kind).await;
    let task = Task { world: &world, id: "c1" };
    nothing_there(&task, "without a container").await;
    world.record("c1", &["sleep", "1000"]).await;
    nothing_there(&task, "without a task").await;

    let pid = task.create().await.unwrap();
    assert!(pid > 0, "there before the start");
    fails("a second task", task.create().await, AlreadyExists, "already exists");
    let created = task.get("").await.unwrap();
    assert_eq!((created.status(), created.pid, created.id.as_str()), (Is::Created, pid, "c1"));
    assert_eq!(created.container_id, "");
    // containerd has Go's zero time there, in the year 1.
    assert!(created.exited_at.is_none_or(|at| at.seconds < 0));
    task.resize("").await.expect("no terminal, nothing to do");
    task.close("", false).await.expect("nothing to do");
    assert_eq!(task.start("").await.unwrap(), pid);
    fails("a second start", task.start("").await, UnknownCode, "cannot start a running");
    assert_eq!(task.get("").await.unwrap().status(), Is::Running);
    fails("its exec", task.get("none").await, NotFound, "not found");

    running(&task, pid).await;
    execs(&task).await;

    fails("delete", task.delete().await, UnknownCode, "cannot delete a running");
    task.exec("late", &["true"]).await.unwrap();
    // All who wait are told, and who comes late as well.
    let (first, second) = (task.wait(""), task.wait(""));
    let (first, second, killed) = tokio::join!(first, second, task.kill("", true));
    killed.unwrap();
    assert_eq!((first.unwrap(), second.unwrap()), (KILLED, KILLED));
    assert_eq!(task.wait("").await.unwrap(), KILLED);
    stopped(&task, pid).await;
    let end = task.delete().await.unwrap();
    assert_eq!((end.pid, end.exit_status), (pid, KILLED));
    assert!(end.exited_at.is_some_and(|at| at.seconds > 0));
    nothing_there(&task, "after its deletion").await;
    // The same id again.
    task.create().await.unwrap();
    task.kill("", false).await.expect("what was only created can be killed");
    assert_eq!(task.wait("").await.unwrap(), KILLED);
    task.delete().await.unwrap();
    world.forget("c1").await;
    world.daemon.assert_clean();
}

async fn running(task: &Task<'_>, pid: u32) {
    assert!(task.pids().await.unwrap().iter().any(|(found, exec)| *found == pid && exec.is_none()));
    let list = wire::ListTasksRequest { filter: "id==nothing".into() };
    let list = task.world.tasks().list(task.world.ask(list)).await.unwrap().into_inner().tasks;
    assert_eq!(list.len(), 1, "the filter is ignored: {list:?}");
    assert_eq!((list[0].id.as_str(), list[0].pid), ("c1", pid));
    assert_eq!(task.metrics("id==c1").await.unwrap(), ["c1"]);
    assert_eq!(task.metrics("id==c2").await.unwrap(), Vec::<String>::new());
    let own = format!("namespace=={}", task.world.daemon.namespace());
    assert_eq!(task.metrics(&own).await.unwrap(), ["c1"]);
    fails("a bad filter", task.metrics("id==").await, UnknownCode, "");
    task.update().await.unwrap();

    task.pause().await.unwrap();
    assert_eq!(task.get("").await.unwrap().status(), Is::Paused);
    fails("a second pause", task.pause().await, UnknownCode, "");
    fails("exec", task.exec("e", &["true"]).await, UnknownCode, "");
    task.resume().await.unwrap();
    assert_eq!(task.get("").await.unwrap().status(), Is::Running);
    fails("a second resume", task.resume().await, UnknownCode, "");
}

async fn execs(task: &Task<'_>) {
    fails("no id", task.exec("", &["true"]).await, InvalidArgument, "");
    fails("a bad id", task.exec("a/b", &["true"]).await, InvalidArgument, "a/b");
    task.exec("e1", &["sleep", "1000"]).await.unwrap();
    fails("its id again", task.exec("e1", &["true"]).await, AlreadyExists, "already exists");
    let added = task.get("e1").await.unwrap();
    assert_eq!((added.status(), added.id.as_str(), added.pid), (Is::Created, "e1", 0));
    fails("kill", task.kill("e1", false).await, FailedPrecondition, "process not created");
    let pid = task.start("e1").await.unwrap();
    assert_eq!(task.get("e1").await.unwrap().pid, pid);
    fails("a second start", task.start("e1").await, UnknownCode, "cannot start a running");
    fails("delete", task.delete_exec("e1").await, UnknownCode, "cannot delete a running");
    let known = (pid, Some("e1".to_owned()));
    assert!(task.pids().await.unwrap().contains(&known), "{known:?}");
    task.kill("e1", false).await.unwrap();
    assert_eq!(task.wait("e1").await.unwrap(), KILLED);
    assert_eq!(task.wait("e1").await.unwrap(), KILLED, "again");
    let ended = task.get("e1").await.unwrap();
    assert_eq!((ended.status(), ended.exit_status, ended.pid), (Is::Stopped, KILLED, pid));
    fails("kill", task.kill("e1", false).await, NotFound, "process already finished");
    fails("start", task.start("e1").await, UnknownCode, "cannot start a stopped");
    fails("resize", task.resize("e1").await, UnknownCode, "cannot resize a stopped");
    let end = task.delete_exec("e1").await.unwrap();
    assert_eq!((end.pid, end.exit_status, end.id.as_str()), (pid, KILLED, "e1"));
    fails("delete again", task.delete_exec("e1").await, NotFound, "not found");
    fails("get", task.get("e1").await, NotFound, "not found");
    fails("wait", task.wait("e1").await, NotFound, "not found");
    // One that was never started, and one that cannot be.
    task.exec("e1", &["true"]).await.expect("the id is free again");
    task.delete_exec("e1").await.unwrap();
    task.exec("e2", &["/no/such/program"]).await.unwrap();
    fails("no program", task.start("e2").await, UnknownCode, "no such file or directory");
    task.delete_exec("e2").await.expect("what failed to start can be deleted");
}

async fn stopped(task: &Task<'_>, pid: u32) {
    let ended = task.get("").await.unwrap();
    assert_eq!((ended.status(), ended.exit_status, ended.pid), (Is::Stopped, KILLED, pid));
    assert!(ended.exited_at.is_some_and(|at| at.seconds > 0));
    fails("kill", task.kill("", false).await, NotFound, "process already finished");
    fails("start", task.start("").await, UnknownCode, "cannot start a stopped");
    fails("exec", task.exec("e3", &["true"]).await, UnknownCode, "cannot exec in a stopped state");
    // Daemons before 2.0 have whatever runc says.
    let code = if task.world.is_gantryd() { FailedPrecondition } else { UnknownCode };
    fails("start of an exec", task.start("late").await, code, "");
    fails("pause", task.pause().await, UnknownCode, "cannot pause a stopped");
    fails("resume", task.resume().await, UnknownCode, "cannot resume a stopped");
    fails("update", task.update().await, UnknownCode, "cannot update a stopped");
}

async fn what_cannot_be_run(kind: DaemonKind) {
    let world = World::start(kind).await;
    world.record("c1", &["/no/such/program"]).await;
    let task = Task { world: &world, id: "c1" };
    let words = "exec: \"/no/such/program\": stat /no/such/program: no such file or directory";
    fails("create", task.create().await, UnknownCode, words);
    nothing_there(&task, "after it could not be made").await;
    // Nothing of the first try is in the way of a second.
    fails("create again", task.create().await, UnknownCode, words);
    world.forget("c1").await;
    world.record("c1", &["true"]).await;
    let odd = wire::CreateTaskRequest {
        container_id: "c1".into(),
        rootfs: vec![bind(&world.root)],
        options: Some(prost_types::Any { type_url: "some.other.Options".into(), value: vec![] }),
        ..Default::default()
    };
    let refused = world.tasks().create(world.ask(odd)).await;
    if world.is_gantryd() {
        fails("options of another runtime", refused, InvalidArgument, "some.other.Options");
    } else {
        assert!(refused.is_err());
    }
    nothing_there(&task, "after options that do not fit").await;
    task.create().await.unwrap();
    task.start("").await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), 0);
    task.delete().await.unwrap();
    world.forget("c1").await;
    world.daemon.assert_clean();
}

/// The container's record names a runtime that nobody has; its task brings one.
async fn a_runtime_of_the_tasks_own(kind: DaemonKind) {
    let world = World::start(kind).await;
    world.record_of("c1", "io.containerd.nobody.v9", &["sleep", "1000"]).await;
    let task = Task { world: &world, id: "c1" };
    let refused = task.create().await;
    assert!(refused.is_err(), "{refused:?}");
    let shim = world.daemon.dir().join("a shim of one's own");
    std::fs::copy(built_program("containerd-shim-runc-v2"), &shim).unwrap();
    let create = wire::CreateTaskRequest {
        container_id: "c1".into(),
        rootfs: vec![bind(&world.root)],
        runtime_path: shim.to_str().unwrap().into(),
        ..Default::default()
    };
    world.tasks().create(world.ask(create)).await.unwrap();
    task.start("").await.unwrap();
    task.exec("e1", &["true"]).await.unwrap();
    task.start("e1").await.unwrap();
    assert_eq!(task.wait("e1").await.unwrap(), 0);
    task.kill("", false).await.unwrap();
    assert_eq!(task.wait("").await.unwrap(), KILLED);
    task.delete().await.unwrap();
    world.forget("c1").await;
    world.daemon.assert_clean();
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_runtime_of_the_tasks_own_on_gantryd() {
    a_runtime_of_the_tasks_own(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_a_runtime_of_the_tasks_own_on_containerd() {
    a_runtime_of_the_tasks_own(DaemonKind::Containerd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_the_life_of_a_task_on_gantryd() {
    the_life_of_a_task(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_the_life_of_a_task_on_containerd() {
    the_life_of_a_task(DaemonKind::Containerd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_cannot_be_run_on_gantryd() {
    what_cannot_be_run(DaemonKind::Gantryd).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn root_what_cannot_be_run_on_containerd() {
    what_cannot_be_run(DaemonKind::Containerd).await;
}
