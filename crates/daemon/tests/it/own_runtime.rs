//! A runtime of the embedder's own, through the whole daemon: a double that runs nothing and
//! keeps to the rules of tasks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::SystemTime;

use gantry_api::Payload as _;
use gantry_api::containerd::events as e;
use gantry_api::containerd::services::containers::v1 as containers;
use gantry_api::containerd::services::containers::v1::containers_client::ContainersClient;
use gantry_api::containerd::services::events::v1 as events;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::tasks::v1 as tasks;
use gantry_api::containerd::services::tasks::v1::tasks_client::TasksClient;
use gantry_api::containerd::v1::types::Status;
use gantry_core::{Any, Namespace};
use gantry_daemon::Daemon;
use gantry_errdefs::{Error, Result};
use gantry_runtime::plugin::{EventSink, Runtime, Task};
use gantry_runtime::{CreateOptions, ExecOptions, Exit, Io, ProcessInfo, State, Status as Is};
use tokio::sync::watch;
use tonic::Code;

use crate::harness::{config_in, ns};

/// A runtime that runs nothing: its processes end when they are killed.
#[derive(Default)]
struct Double {
    tasks: Mutex<HashMap<(String, String), Arc<DoubleTask>>>,
    sink: OnceLock<EventSink>,
    next_pid: AtomicU32,
}

struct DoubleTask {
    namespace: Namespace,
    id: String,
    bundle: PathBuf,
    runtime: String,
    sink: EventSink,
    processes: Mutex<HashMap<String, Process>>,
    next_pid: u32,
    updated: Mutex<Option<Any>>,
}

struct Process {
    pid: u32,
    io: Io,
    status: watch::Sender<Is>,
    exit: u32,
}

fn any<M: prost::Name>(message: &M) -> Any {
    let packed = prost_types::Any::pack(message);
    Any { type_url: packed.type_url, value: packed.value }
}

fn not_found(what: &str) -> Error {
    Error::not_found(format!("double: {what}"))
}

#[tonic::async_trait]
impl Runtime for Double {
    fn id(&self) -> &'static str {
        "double"
    }

    fn events(&self, sink: EventSink) {
        self.sink.set(sink).expect("called once");
    }

    async fn create(
        &self,
        namespace: &Namespace,
        id: &str,
        options: CreateOptions,
    ) -> Result<Arc<dyn Task>> {
        let sink = self.sink.get().expect("called before").clone();
        let pid = 1000 + 100 * self.next_pid.fetch_add(1, Ordering::SeqCst);
        let task = Arc::new(DoubleTask {
            namespace: namespace.clone(),
            id: id.to_owned(),
            bundle: PathBuf::from("/double"),
            runtime: options.runtime,
            sink: sink.clone(),
            processes: Mutex::default(),
            next_pid: pid + 1,
            updated: Mutex::default(),
        });
        task.add("", pid, options.io);
        let key = (namespace.to_string(), id.to_owned());
        self.tasks.lock().unwrap().insert(key, task.clone());
        let event = e::TaskCreate { container_id: id.to_owned(), pid, ..Default::default() };
        sink.publish(namespace, "/tasks/create", any(&event))?;
        Ok(task)
    }

    async fn get(&self, namespace: &Namespace, id: &str) -> Result<Arc<dyn Task>> {
        let key = (namespace.to_string(), id.to_owned());
        let found = self.tasks.lock().unwrap().get(&key).cloned();
        found.map(|task| task as Arc<dyn Task>).ok_or_else(|| not_found(id))
    }

    async fn tasks(&self, namespace: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>> {
        let all = self.tasks.lock().unwrap();
        let wanted = |t: &&Arc<DoubleTask>| namespace.is_none_or(|n| *n == t.namespace);
        Ok(all.values().filter(wanted).map(|t| t.clone() as Arc<dyn Task>).collect())
    }

    async fn delete(&self, namespace: &Namespace, id: &str) -> Result<Exit> {
        let key = (namespace.to_string(), id.to_owned());
        let task = self.tasks.lock().unwrap().get(&key).cloned().ok_or_else(|| not_found(id))?;
        let exit = task.delete_process("").await?;
        self.tasks.lock().unwrap().remove(&key);
        let (container_id, pid) = (id.to_owned(), exit.pid);
        let event =
            e::TaskDelete { container_id, pid, exit_status: exit.status, ..Default::default() };
        task.sink.publish(namespace, "/tasks/delete", any(&event))?;
        Ok(exit)
    }
}

impl DoubleTask {
    fn add(&self, exec: &str, pid: u32, io: Io) {
        let process = Process { pid, io, status: watch::Sender::new(Is::Created), exit: 0 };
        self.processes.lock().unwrap().insert(exec.to_owned(), process);
    }

    fn with<T>(&self, exec: &str, act: impl FnOnce(&mut Process) -> T) -> Result<T> {
        self.processes.lock().unwrap().get_mut(exec).map(act).ok_or_else(|| not_found(exec))
    }
}

#[tonic::async_trait]
impl Task for DoubleTask {
    fn id(&self) -> &str {
        &self.id
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn bundle(&self) -> &Path {
        &self.bundle
    }

    fn sandbox_id(&self) -> &str {
        ""
    }

    fn is_degraded(&self) -> bool {
        false
    }

    async fn pid(&self) -> Result<u32> {
        self.with("", |p| p.pid)
    }

    async fn state(&self, exec: &str) -> Result<State> {
        self.with(exec, |p| {
            let status = *p.status.borrow();
            let exited_at = (status == Is::Stopped).then(SystemTime::now);
            State { status, pid: p.pid, exit_status: p.exit, exited_at, io: p.io.clone() }
        })
    }

    async fn start(&self, exec: &str) -> Result<u32> {
        let pid = self.with(exec, |p| {
            p.status.send_replace(Is::Running);
            p.pid
        })?;
        if exec.is_empty() {
            let event = e::TaskStart { container_id: self.id.clone(), pid };
            self.sink.publish(&self.namespace, "/tasks/start", any(&event))?;
        }
        Ok(pid)
    }

    async fn kill(&self, exec: &str, signal: u32, _: bool) -> Result<()> {
        let pid = self.with(exec, |p| {
            p.exit = 128 + signal;
            p.status.send_replace(Is::Stopped);
            p.pid
        })?;
        let id = if exec.is_empty() { &self.id } else { exec }.to_owned();
        let event = e::TaskExit {
            container_id: self.id.clone(),
            id,
            pid,
            exit_status: 128 + signal,
            ..Default::default()
        };
        self.sink.publish(&self.namespace, "/tasks/exit", any(&event))
    }

    async fn exec(&self, exec: &str, options: ExecOptions) -> Result<()> {
        self.add(exec, self.next_pid, options.io);
        Ok(())
    }

    async fn delete_process(&self, exec: &str) -> Result<Exit> {
        let (status, exit) = self.with(exec, |p| {
            let exit = Exit { pid: p.pid, status: p.exit, exited_at: Some(SystemTime::now()) };
            (*p.status.borrow(), exit)
        })?;
        if status != Is::Stopped {
            return Err(Error::failed_precondition("double: it still runs"));
        }
        self.processes.lock().unwrap().remove(exec);
        Ok(exit)
    }

    async fn wait(&self, exec: &str) -> Result<Exit> {
        let mut status = self.with(exec, |p| p.status.subscribe())?;
        status.wait_for(|s| *s == Is::Stopped).await.map_err(|_| not_found(exec))?;
        self.with(exec, |p| Exit { pid: p.pid, status: p.exit, exited_at: None })
    }

    async fn resize(&self, exec: &str, _: u32, _: u32) -> Result<()> {
        self.with(exec, |_| ())
    }

    async fn close_io(&self, exec: &str, _: bool) -> Result<()> {
        self.with(exec, |_| ())
    }

    async fn pause(&self) -> Result<()> {
        self.with("", |p| p.status.send_replace(Is::Paused)).map(drop)
    }

    async fn resume(&self) -> Result<()> {
        self.with("", |p| p.status.send_replace(Is::Running)).map(drop)
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let all = self.processes.lock().unwrap();
        Ok(all.values().map(|p| ProcessInfo { pid: p.pid, info: None }).collect())
    }

    async fn checkpoint(&self, _: &Path, _: Option<Any>) -> Result<()> {
        Err(Error::unimplemented("double: checkpoint"))
    }

    async fn update(&self, resources: Option<Any>, _: HashMap<String, String>) -> Result<()> {
        *self.updated.lock().unwrap() = resources;
        Ok(())
    }

    async fn stats(&self) -> Result<Option<Any>> {
        Ok(Some(Any { type_url: format!("double/{}", self.runtime), value: vec![7] }))
    }
}

fn container() -> containers::CreateContainerRequest {
    let spec = prost_types::Any { type_url: "spec".into(), value: b"{}".to_vec() };
    containers::CreateContainerRequest {
        container: Some(containers::Container {
            id: "c".into(),
            runtime: Some(containers::container::Runtime {
                name: "any.name.v1".into(),
                options: None,
            }),
            spec: Some(spec),
            ..Default::default()
        }),
    }
}

#[tokio::test]
async fn tasks_run_by_a_runtime_of_the_embedders_own() {
    let dir = tempfile::tempdir().unwrap();
    let double = Arc::new(Double::default());
    let running = Daemon::builder(config_in(dir.path()))
        .runtime(double.clone())
        .start_embedded()
        .await
        .unwrap();
    let channel = running.channel();
    let mut service = TasksClient::new(channel.clone());
    let mut subscriber = EventsClient::new(channel.clone());
    let filters = vec!["topic~=|^/tasks/|".to_owned()];
    let stream = subscriber.subscribe(events::SubscribeRequest { filters }).await;
    let mut stream = stream.unwrap().into_inner();
    let subscribed = tokio::spawn(async move {
        let mut topics = Vec::new();
        while topics.last().map(String::as_str) != Some("/tasks/delete") {
            topics.push(stream.message().await.unwrap().unwrap().into_message().topic);
        }
        topics
    });
    let created = ContainersClient::new(channel).create(ns(container())).await.unwrap();
    assert!(created.get_ref().container.is_some());

    let id = || "c".to_owned();
    let request = tasks::CreateTaskRequest {
        container_id: id(),
        stdout: "/some/fifo".into(),
        ..Default::default()
    };
    let pid = service.create(ns(request.clone())).await.unwrap().into_inner().pid;
    assert_eq!(pid, 1000);
    assert_eq!(service.create(ns(request)).await.unwrap_err().code(), Code::AlreadyExists);
    let start = tasks::StartRequest { container_id: id(), exec_id: String::new() };
    assert_eq!(service.start(ns(start)).await.unwrap().get_ref().pid, pid);
    let get = tasks::GetRequest { container_id: id(), exec_id: String::new() };
    let state = service.get(ns(get.clone())).await.unwrap().into_inner().process.unwrap();
    assert_eq!((state.status(), state.stdout.as_str()), (Status::Running, "/some/fifo"));

    let exec =
        tasks::ExecProcessRequest { container_id: id(), exec_id: "e".into(), ..Default::default() };
    service.exec(ns(exec)).await.unwrap();
    let pids = tasks::ListPidsRequest { container_id: id() };
    assert_eq!(service.list_pids(ns(pids)).await.unwrap().get_ref().processes.len(), 2);
    service.pause(ns(tasks::PauseTaskRequest { container_id: id() })).await.unwrap();
    let state = service.get(ns(get)).await.unwrap().into_inner().process.unwrap();
    assert_eq!(state.status(), Status::Paused);
    service.resume(ns(tasks::ResumeTaskRequest { container_id: id() })).await.unwrap();
    let metrics = service.metrics(ns(tasks::MetricsRequest::default())).await.unwrap().into_inner();
    assert_eq!(metrics.metrics[0].data.as_ref().unwrap().type_url, "double/any.name.v1");
    let resources = Some(prost_types::Any { type_url: "r".into(), value: vec![1] });
    let update = tasks::UpdateTaskRequest { container_id: id(), resources, ..Default::default() };
    service.update(ns(update)).await.unwrap();
    let refused = tasks::CheckpointTaskRequest { container_id: id(), ..Default::default() };
    assert_eq!(service.checkpoint(ns(refused)).await.unwrap_err().code(), Code::Unimplemented);
    let list = service.list(ns(tasks::ListTasksRequest::default())).await.unwrap().into_inner();
    assert_eq!(list.tasks.len(), 1);

    let wait = tasks::WaitRequest { container_id: id(), exec_id: String::new() };
    let mut waiter = service.clone();
    let waiting = tokio::spawn(async move { waiter.wait(ns(wait)).await });
    let kill = tasks::KillRequest { container_id: id(), signal: 9, ..Default::default() };
    service.kill(ns(kill)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().get_ref().exit_status, 137);
    let delete = tasks::DeleteTaskRequest { container_id: id() };
    assert_eq!(service.delete(ns(delete)).await.unwrap().get_ref().exit_status, 137);
    let topics = subscribed.await.unwrap();
    assert_eq!(topics, ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"]);
    assert!(double.tasks.lock().unwrap().is_empty());
    running.shutdown().await;
}

/// What asks to be started again is, by the runtime that runs it.
#[tokio::test]
async fn the_restart_monitor_uses_the_embedders_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let double = Arc::new(Double::default());
    let running = Daemon::builder(config_in(dir.path()))
        .runtime(double.clone())
        .start_embedded()
        .await
        .unwrap();
    let channel = running.channel();
    let mut service = TasksClient::new(channel.clone());
    let mut wanted = container();
    let labels = [
        ("containerd.io/restart.status".to_owned(), "running".to_owned()),
        ("containerd.io/restart.policy".to_owned(), "always".to_owned()),
    ];
    wanted.container.as_mut().unwrap().labels.extend(labels);
    ContainersClient::new(channel).create(ns(wanted)).await.unwrap();
    let create = tasks::CreateTaskRequest { container_id: "c".into(), ..Default::default() };
    let first = service.create(ns(create)).await.unwrap().into_inner().pid;
    let start = tasks::StartRequest { container_id: "c".into(), exec_id: String::new() };
    service.start(ns(start)).await.unwrap();
    let kill = tasks::KillRequest { container_id: "c".into(), signal: 9, ..Default::default() };
    service.kill(ns(kill)).await.unwrap();
    let again = async {
        loop {
            let get = tasks::GetRequest { container_id: "c".into(), exec_id: String::new() };
            if let Ok(found) = service.get(ns(get)).await
                && let Some(process) = found.into_inner().process
                && process.pid != first
                && process.status() == Status::Running
            {
                return process.pid;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    let patience = std::time::Duration::from_secs(60);
    let pid = tokio::time::timeout(patience, again).await.expect("it is started again");
    assert_eq!(double.tasks.lock().unwrap().len(), 1, "{pid}");
    running.shutdown().await;
}
