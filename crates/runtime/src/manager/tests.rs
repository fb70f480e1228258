//! The manager against fake shims: a script for the verbs, an in-process task service behind it.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use gantry_api::Payload as _;
use gantry_api::containerd::events::{TaskDelete, TaskExit};
use gantry_api::containerd::runtime::bootstrap::v1::BootstrapParams;
use gantry_api::containerd::services::events::ttrpc::v1::ForwardRequest;
use gantry_api::containerd::services::events::ttrpc::v1::events_ttrpc::Events as _;
use gantry_api::containerd::task::v2::task_ttrpc::{
    SERVICE as TASK_V2, Task as Service, TaskServer,
};
use gantry_api::containerd::task::v2::*;
use gantry_api::containerd::types::Envelope as WireEnvelope;
use gantry_events::{Event, NoFields, Subscription};
use gantry_ttrpc::{Context, Server};
use prost::Message as _;
use tokio::sync::Notify;

use super::*;
use crate::{Deadlines, EventService, Io, UNKNOWN_EXIT_STATUS};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/fake-shim.sh");

/// A task service that remembers what it was asked.
#[derive(Default)]
struct Fake {
    calls: Mutex<Vec<String>>,
    created: Mutex<Option<CreateTaskRequest>>,
    /// Answers nothing while set.
    frozen: AtomicBool,
    /// Fails to create while set.
    broken: AtomicBool,
    /// Milliseconds that creating takes.
    slow_millis: AtomicU32,
    exited: Notify,
}

impl Fake {
    async fn called(&self, what: &str) {
        self.calls.lock().expect("calls").push(what.to_owned());
        if self.frozen.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    fn calls(&self) -> Vec<String> {
        self.calls.lock().expect("calls").clone()
    }

    fn known(&self) -> Result<()> {
        match *self.created.lock().expect("created") {
            Some(_) => Ok(()),
            None => Err(Error::not_found("container not created")),
        }
    }
}

impl Service for Fake {
    async fn connect(&self, _: Context, _: ConnectRequest) -> Result<ConnectResponse> {
        self.called("connect").await;
        Ok(ConnectResponse { shim_pid: 0, task_pid: 42, version: String::new() })
    }

    async fn create(&self, ctx: Context, request: CreateTaskRequest) -> Result<CreateTaskResponse> {
        self.called("create").await;
        let slow = self.slow_millis.load(Ordering::SeqCst);
        tokio::select! {
            () = tokio::time::sleep(Duration::from_millis(slow.into())) => {}
            // Dead processes do not go on creating.
            () = ctx.done() => return Err(Error::canceled("create")),
        }
        if self.broken.load(Ordering::SeqCst) {
            return Err(Error::unknown("OCI runtime create failed: exec: \"x\": not in PATH"));
        }
        std::fs::write(Path::new(&request.bundle).join("init.pid"), "42").expect("written");
        *self.created.lock().expect("created") = Some(request);
        Ok(CreateTaskResponse { pid: 42 })
    }

    async fn start(&self, _: Context, _: StartRequest) -> Result<StartResponse> {
        self.called("start").await;
        Ok(StartResponse { pid: 42 })
    }

    async fn state(&self, ctx: Context, _: StateRequest) -> Result<StateResponse> {
        assert_eq!(ctx.get("containerd-namespace-ttrpc"), Some("default"));
        self.called("state").await;
        self.known()?;
        Ok(StateResponse { pid: 42, status: 2, stdout: "/out".into(), ..Default::default() })
    }

    async fn wait(&self, ctx: Context, _: WaitRequest) -> Result<WaitResponse> {
        self.called("wait").await;
        tokio::select! {
            () = self.exited.notified() => Ok(WaitResponse { exit_status: 3, exited_at: None }),
            () = ctx.done() => Err(Error::canceled("wait")),
        }
    }

    async fn kill(&self, _: Context, _: KillRequest) -> Result<()> {
        self.called("kill").await;
        self.exited.notify_one();
        Ok(())
    }

    async fn delete(&self, _: Context, _: DeleteRequest) -> Result<DeleteResponse> {
        self.called("delete").await;
        self.known()?;
        Ok(DeleteResponse { pid: 42, exit_status: 3, exited_at: None })
    }

    async fn shutdown(&self, _: Context, _: ShutdownRequest) -> Result<()> {
        self.called("shutdown").await;
        Ok(())
    }
}

/// A fake shim that listens.
struct Listening {
    fake: Arc<Fake>,
    stop: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl Listening {
    fn at(address: &str, fake: Arc<Fake>) -> Self {
        let parsed: gantry_ttrpc::Address = address.parse().expect("an address");
        let listener = parsed.listen().expect("listens");
        let listener = tokio::net::UnixListener::from_std(listener).expect("tokio");
        let service = TaskServer::named(Arc::clone(&fake), TASK_V2);
        let server = Server::builder().service(service).build();
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            tokio::select! {
                () = server.serve(listener, std::future::pending()) => {}
                _ = stopped => {}
            }
        });
        Self { fake, stop, serving }
    }

    /// Dies as by SIGKILL.
    async fn die(self) {
        drop(self.stop);
        self.serving.await.expect("no panic");
    }
}

/// Directories, a manager and the answers of the script.
struct Fixture {
    dir: tempfile::TempDir,
    exchange: Exchange,
    namespace: Namespace,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("dir");
        let exchange = Exchange::new(Arc::new(NoFields));
        let namespace = Namespace::new("default").expect("a name");
        let fixture = Self { dir, exchange, namespace };
        let exit = DeleteResponse { pid: 42, exit_status: 137, exited_at: None };
        fixture.write("exit", &exit.encode_to_vec());
        fixture.write("answer", fixture.address().as_bytes());
        fixture
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &[u8]) {
        std::fs::write(self.path(name), text).expect("written");
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    fn address(&self) -> String {
        format!("unix://{}", self.path("socket").display())
    }

    fn listen(&self) -> Listening {
        Listening::at(&self.address(), Arc::default())
    }

    fn manager(&self) -> Manager {
        let deadlines = Deadlines {
            load: Duration::from_secs(2),
            state: Duration::from_millis(200),
            shutdown: Duration::from_millis(200),
            connect_new: Duration::from_millis(500),
            ..Deadlines::default()
        };
        let config = Config {
            root: self.path("root"),
            state: self.path("state"),
            sandbox_root: self.path("sandbox-root"),
            sandbox_state: self.path("sandbox-state"),
            grpc_address: "/g".into(),
            ttrpc_address: "/g.ttrpc".into(),
            publish_binary: "/bin/true".into(),
            shim_dir: None,
            socket_dir: self.path("s"),
            version: "0".into(),
            debug: false,
            env: vec![("FAKE_DIR".into(), self.dir.path().display().to_string())],
            deadlines,
        };
        Manager::open(config, self.exchange.clone()).expect("opened")
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.path("state").join("default").join(id)
    }

    async fn create(&self, manager: &Manager, id: &str) -> Result<Arc<dyn Task>> {
        manager.create(&self.namespace, id, options()).await
    }

    fn events(&self) -> Subscription {
        let none: [&str; 0] = [];
        self.exchange.subscribe(&none).expect("subscribed")
    }
}

fn options() -> CreateOptions {
    CreateOptions {
        runtime: SCRIPT.into(),
        spec: Any { type_url: "spec".into(), value: b"{\"ociVersion\":\"1.0.2\"}".to_vec() },
        io: Io { stdout: "/out".into(), ..Io::default() },
        runtime_options: Some(Any { type_url: "o".into(), value: b"v".to_vec() }),
        ..CreateOptions::default()
    }
}

async fn next(events: &mut Subscription) -> Arc<Event> {
    tokio::time::timeout(Duration::from_secs(20), events.next())
        .await
        .expect("an event in time")
        .expect("a stream")
        .expect("not too slow")
}

/// Reads the exit and the deletion that the daemon publishes for `id`.
async fn read_death(events: &mut Subscription, id: &str) -> u32 {
    let exit = next(events).await;
    assert_eq!(exit.topic, "/tasks/exit");
    let exit = TaskExit::decode(exit.event.value.as_slice()).expect("an exit");
    assert_eq!((exit.container_id.as_str(), exit.id.as_str()), (id, id));
    let delete = next(events).await;
    assert_eq!(delete.topic, "/tasks/delete");
    let delete = TaskDelete::decode(delete.event.value.as_slice()).expect("a deletion");
    assert_eq!(delete.exit_status, exit.exit_status);
    exit.exit_status
}

async fn gone(manager: &Manager, f: &Fixture, id: &str) {
    for _ in 0..1000 {
        match manager.get(&f.namespace, id).await {
            Err(err) => {
                assert_eq!(err.text(), format!("task {id} not found"));
                assert!(err.is_not_found());
                return;
            }
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    }
    panic!("{id} is still there");
}

#[tokio::test]
async fn a_task_from_creation_to_deletion() {
    let f = Fixture::new();
    let (shim, manager) = (f.listen(), f.manager());
    let task = f.create(&manager, "c1").await.expect("created");
    let bundle = f.bundle("c1");
    assert_eq!(task.bundle(), bundle);
    assert_eq!(f.read("log"), format!("start default {}\n", bundle.display()));
    assert_eq!(
        std::fs::read(bundle.join("config.json")).expect("a spec"),
        b"{\"ociVersion\":\"1.0.2\"}"
    );
    let created = shim.fake.created.lock().expect("created").clone().expect("asked");
    assert_eq!(created.bundle, bundle.display().to_string());
    assert_eq!(created.options.expect("options").value, b"v");
    assert_eq!(task.pid().await.expect("a pid"), 42);
    assert_eq!(task.start("").await.expect("started"), 42);
    assert_eq!(task.state("").await.expect("a state").status, crate::Status::Running);
    task.kill("", 15, false).await.expect("killed");
    assert_eq!(task.wait("").await.expect("ended").status, 3);
    assert_eq!(manager.delete(&f.namespace, "c1").await.expect("deleted").status, 3);
    assert!(!bundle.exists());
    assert!(shim.fake.calls().contains(&"shutdown".to_owned()));
    gone(&manager, &f, "c1").await;
}

#[tokio::test]
async fn stdin_is_what_the_version_takes() {
    let f = Fixture::new();
    let (_shim, manager) = (f.listen(), f.manager());
    f.create(&manager, "old").await.expect("created");
    let stdin = std::fs::read(f.path("stdin")).expect("read");
    let any = prost_types::Any::decode(stdin.as_slice()).expect("options");
    assert_eq!((any.type_url.as_str(), any.value.as_slice()), ("o", &b"v"[..]));

    let f = Fixture::new();
    f.write("version", b"2.3.0");
    let (_shim, manager) = (f.listen(), f.manager());
    f.create(&manager, "new").await.expect("created");
    let stdin = std::fs::read(f.path("stdin")).expect("read");
    let params = BootstrapParams::decode(stdin.as_slice()).expect("parameters");
    assert_eq!((params.instance_id.as_str(), params.namespace.as_str()), ("new", "default"));
    let options = params.extensions[0].value.as_ref().expect("options");
    assert_eq!(options.value, b"v");
}

#[tokio::test]
async fn an_id_is_unique_until_deleted() {
    let f = Fixture::new();
    let (_shim, manager) = (f.listen(), f.manager());
    f.create(&manager, "c1").await.expect("created");
    let err = f.create(&manager, "c1").await.err().expect("taken");
    assert_eq!(err.text(), "task c1: already exists");
    manager.delete(&f.namespace, "c1").await.expect("deleted");
    assert!(manager.delete(&f.namespace, "c1").await.expect_err("gone").is_not_found());
    f.create(&manager, "c1").await.expect("created again");
    let bad = f.create(&manager, "../c").await.err().expect("a bad id");
    assert!(bad.is_invalid_argument());
}

#[tokio::test]
async fn a_shim_that_says_3_and_speaks_2_is_spoken_to_in_2() {
    let f = Fixture::new();
    let json = format!("{{\"version\":3,\"address\":\"{}\",\"protocol\":\"ttrpc\"}}", f.address());
    f.write("answer", json.as_bytes());
    let (_shim, manager) = (f.listen(), f.manager());
    let task = f.create(&manager, "c1").await.expect("created");
    assert_eq!(task.state("").await.expect("a state").pid, 42);
}

#[tokio::test]
async fn failures_keep_their_text_and_leave_nothing() {
    let f = Fixture::new();
    let (shim, manager) = (f.listen(), f.manager());
    shim.fake.broken.store(true, Ordering::SeqCst);
    let err = f.create(&manager, "c1").await.err().expect("fails");
    assert!(err.is_unknown());
    assert_eq!(
        err.text(),
        "failed to create shim task: OCI runtime create failed: exec: \"x\": not in PATH"
    );
    assert!(!f.bundle("c1").exists());
    assert!(shim.fake.calls().contains(&"shutdown".to_owned()));

    f.write("fail", b"no space left on device\n");
    let err = f.create(&manager, "c1").await.err().expect("fails");
    assert_eq!(
        err.text(),
        "failed to start shim: start failed: no space left on device: exit status 1"
    );
    assert!(!f.bundle("c1").exists());

    std::fs::remove_file(f.path("fail")).expect("removed");
    f.write("answer", b"unix:///no/such/socket");
    let err = f.create(&manager, "c1").await.err().expect("nobody listens");
    assert!(err.is_unavailable(), "{err}");
    assert!(!f.bundle("c1").exists());

    f.write("answer", f.address().as_bytes());
    shim.fake.broken.store(false, Ordering::SeqCst);
    f.create(&manager, "c1").await.expect("created after all");
}

/// What a shim sends when the first process of a task has ended.
fn exit_of(id: &str) -> ForwardRequest {
    let event = TaskExit { container_id: id.into(), id: id.into(), ..Default::default() };
    let envelope = WireEnvelope {
        namespace: "default".into(),
        topic: "/tasks/exit".into(),
        event: Some(prost_types::Any::pack(&event)),
        timestamp: None,
    };
    ForwardRequest { envelope: Some(envelope) }
}

#[tokio::test]
async fn the_death_of_a_shim_is_published_once_and_cleaned_up() {
    let f = Fixture::new();
    let (shim, manager, mut events) = (f.listen(), f.manager(), f.events());
    let task = f.create(&manager, "c1").await.expect("created");
    let waiting = tokio::spawn({
        let task = Arc::clone(&task);
        async move { task.wait("").await }
    });
    task.state("").await.expect("a state");
    shim.die().await;
    assert_eq!(read_death(&mut events, "c1").await, 137);
    assert_eq!(waiting.await.expect("no panic").expect("an exit").status, 137);
    gone(&manager, &f, "c1").await;
    assert!(!f.bundle("c1").exists());
    assert!(!f.path("socket").exists(), "the stale socket is removed");
    assert!(f.read("log").contains(&format!("delete default {}", f.bundle("c1").display())));
    assert!(task.state("").await.expect_err("dead").is_not_found());

    // The shim's own exit event, forwarded late, is old news; another task's is not.
    let service = EventService::new(manager.clone());
    service.forward(Context::new(), exit_of("c1")).await.expect("taken");
    service.forward(Context::new(), exit_of("other")).await.expect("taken");
    let exit = TaskExit::decode(next(&mut events).await.event.value.as_slice()).expect("an exit");
    assert_eq!(exit.container_id, "other");
}

#[tokio::test]
async fn a_cut_connection_is_not_a_death() {
    let f = Fixture::new();
    let (shim, manager, mut events) = (f.listen(), f.manager(), f.events());
    f.create(&manager, "c1").await.expect("created");
    let key = Key::new(&f.namespace, "c1");
    let before = manager.inner.table.ready(&key).expect("ready");
    before.cut();
    let mut after = Arc::clone(&before);
    while Arc::ptr_eq(&before, &after) {
        tokio::time::sleep(Duration::from_millis(5)).await;
        after = manager.inner.table.ready(&key).expect("never missing");
    }
    assert_eq!(Task::state(&*after, "").await.expect("a state").pid, 42);
    assert!(f.bundle("c1").exists());
    assert!(!f.read("log").contains("delete"));
    // The next death is a real one.
    shim.die().await;
    assert_eq!(read_death(&mut events, "c1").await, 137);
}

#[tokio::test]
async fn an_exit_that_the_shim_published_is_not_repeated() {
    let f = Fixture::new();
    let (shim, manager, mut events) = (f.listen(), f.manager(), f.events());
    f.create(&manager, "c1").await.expect("created");
    let service = EventService::new(manager.clone());
    for _ in 0..3 {
        // A shim that gets no answer in time sends again.
        service.forward(Context::new(), exit_of("c1")).await.expect("taken");
    }
    shim.die().await;
    assert_eq!(next(&mut events).await.topic, "/tasks/exit");
    assert_eq!(next(&mut events).await.topic, "/tasks/delete");
}

#[tokio::test]
async fn an_unknown_end_is_255() {
    let f = Fixture::new();
    std::fs::remove_file(f.path("exit")).expect("removed");
    let (shim, manager, mut events) = (f.listen(), f.manager(), f.events());
    f.create(&manager, "c1").await.expect("created");
    shim.die().await;
    assert_eq!(read_death(&mut events, "c1").await, UNKNOWN_EXIT_STATUS);
}

#[tokio::test]
async fn a_frozen_shim_holds_up_nobody_else() {
    let f = Fixture::new();
    let manager = f.manager();
    let frozen = f.listen();
    let stuck = f.create(&manager, "stuck").await.expect("created");
    let second = format!("unix://{}", f.path("second").display());
    f.write("answer", second.as_bytes());
    let _fine = Listening::at(&second, Arc::default());
    let fine = f.create(&manager, "fine").await.expect("created");

    frozen.fake.frozen.store(true, Ordering::SeqCst);
    let before = Instant::now();
    let (late, prompt) = tokio::join!(stuck.state(""), async {
        let state = fine.state("").await;
        (state, before.elapsed())
    });
    assert!(late.expect_err("frozen").is_deadline_exceeded());
    assert!(stuck.is_degraded() && !fine.is_degraded());
    prompt.0.expect("a state");
    assert!(prompt.1 < Duration::from_millis(150), "{:?}", prompt.1);
    assert_eq!(manager.tasks(None).await.expect("listed").len(), 2);

    frozen.fake.frozen.store(false, Ordering::SeqCst);
    stuck.state("").await.expect("thawed");
    assert!(!stuck.is_degraded());
}

#[tokio::test]
async fn tasks_are_found_again_after_a_restart() {
    let f = Fixture::new();
    let shim = f.listen();
    let first = f.manager();
    let held = f.create(&first, "c1").await.expect("created");
    first.close();
    held.start("").await.expect_err("closed");
    let second = f.manager();
    // Not found yet perhaps, but never missing.
    let task = second.get(&f.namespace, "c1").await.expect("found");
    assert_eq!(task.state("").await.expect("a state").pid, 42);
    second.loaded().await;
    assert_eq!(second.delete(&f.namespace, "c1").await.expect("deleted").status, 3);
    drop(shim);
}

#[tokio::test]
async fn restart_cleans_up_the_dead_keeps_the_silent_and_ends_the_empty() {
    let f = Fixture::new();
    let first = f.manager();
    let dead = f.listen();
    f.create(&first, "dead").await.expect("created");
    let silent_at = format!("unix://{}", f.path("silent").display());
    f.write("answer", silent_at.as_bytes());
    let silent = Listening::at(&silent_at, Arc::default());
    f.create(&first, "silent").await.expect("created");
    let empty_at = format!("unix://{}", f.path("empty").display());
    f.write("answer", empty_at.as_bytes());
    let empty = Listening::at(&empty_at, Arc::default());
    f.create(&first, "empty").await.expect("created");

    // A manager that is closed does not see these deaths.
    first.close();
    dead.die().await;
    silent.fake.frozen.store(true, Ordering::SeqCst);
    *empty.fake.created.lock().expect("created") = None;

    let mut events = f.events();
    let second = f.manager();
    assert_eq!(read_death(&mut events, "dead").await, 137);
    second.loaded().await;
    gone(&second, &f, "dead").await;
    gone(&second, &f, "empty").await;
    assert!(empty.fake.calls().contains(&"shutdown".to_owned()));
    let task = second.get(&f.namespace, "silent").await.expect("kept");
    assert!(task.is_degraded());
    assert!(f.bundle("silent").exists());
    assert!(!f.bundle("dead").exists() && !f.bundle("empty").exists());
}

#[tokio::test]
async fn a_shim_that_dies_while_creating_is_cleaned_up_after() {
    let f = Fixture::new();
    let (shim, manager) = (f.listen(), f.manager());
    shim.fake.slow_millis.store(60_000, Ordering::SeqCst);
    let fake = Arc::clone(&shim.fake);
    let die = async move {
        while !fake.calls().contains(&"create".to_owned()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        shim.die().await;
    };
    let (created, ()) = tokio::join!(f.create(&manager, "c1"), die);
    let err = created.err().expect("dead");
    // The fake one's last words; a real one has none.
    assert!(err.is_canceled(), "{err:?}");
    assert!(f.read("log").contains("delete default"));
    assert!(!f.bundle("c1").exists());
}

#[tokio::test]
async fn only_what_was_not_told_before_the_daemon_died_is_told_after() {
    // What the journal has, and what is left to tell.
    for (told, left) in [
        ("", vec!["exit e1", "exit c1", "delete c1"]),
        ("exit e1 7\n", vec!["exit c1", "delete c1"]),
        // The same exec id, of another process.
        ("exit e1 8\nexit\n", vec!["exit e1", "delete c1"]),
        ("exit e1 7\nexit\ndelete\n", vec![]),
    ] {
        let f = Fixture::new();
        let (shim, manager) = (f.listen(), f.manager());
        f.create(&manager, "c1").await.expect("created");
        manager.close();
        shim.die().await;
        std::fs::write(f.bundle("c1").join("told"), told).expect("written");
        let record = r#"{"version":1,"container_id":"c1","exec_id":"e1","pid":7,"exit_status":3,
            "exited_at_s":10,"exited_at_ns":20}"#;
        std::fs::write(f.bundle("c1").join("exit-e1.json"), record).expect("written");
        let mut live = f.events();
        let second = f.manager();
        second.loaded().await;
        gone(&second, &f, "c1").await;
        assert!(f.read("log").contains("delete default"));
        // Whoever subscribes soon after the start has missed nothing.
        let mut late = f.events();
        for events in [&mut live, &mut late] {
            let mut seen = Vec::new();
            while let Ok(Some(envelope)) =
                tokio::time::timeout(Duration::from_millis(50), events.next()).await
            {
                let event = envelope.expect("an event").event.value.clone();
                seen.push(match TaskExit::decode(event.as_slice()) {
                    Ok(exit) if !exit.id.is_empty() => format!("exit {}", exit.id),
                    _ => "delete c1".to_owned(),
                });
            }
            assert_eq!(seen, left, "told {told:?}");
        }
    }
}

#[tokio::test]
async fn a_deletion_that_the_shim_does_not_tell_is_told() {
    let f = Fixture::new();
    let (shim, manager, mut events) = (f.listen(), f.manager(), f.events());
    f.create(&manager, "c1").await.expect("created");
    manager.delete(&f.namespace, "c1").await.expect("deleted");
    assert_eq!(read_death(&mut events, "c1").await, 3);
    drop(shim);
}

#[tokio::test]
async fn a_creation_nobody_waits_for_is_undone() {
    let f = Fixture::new();
    let (shim, manager) = (f.listen(), f.manager());
    shim.fake.slow_millis.store(200, Ordering::SeqCst);
    let creating = f.create(&manager, "c1");
    let given_up = tokio::time::timeout(Duration::from_millis(100), creating).await;
    assert!(given_up.is_err(), "still creating");
    for _ in 0..1000 {
        if !f.bundle("c1").exists() && shim.fake.calls().contains(&"shutdown".to_owned()) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(shim.fake.calls().contains(&"kill".to_owned()));
    gone(&manager, &f, "c1").await;
    shim.fake.slow_millis.store(0, Ordering::SeqCst);
    f.create(&manager, "c1").await.expect("the id is free");
}
