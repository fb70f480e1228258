//! The engine as a program: its commands, its restarts, and what is left when it is killed.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use gantry_client::Client;
use gantry_testkit::{Daemon, DaemonKind, Image, eventually};

const IMAGE: &str = "example.com/b:1";

struct Engine<'a> {
    daemon: &'a Daemon,
    dir: &'a Path,
    child: Option<Child>,
}

impl<'a> Engine<'a> {
    fn new(daemon: &'a Daemon, dir: &'a Path) -> Self {
        Self { daemon, dir, child: None }
    }

    fn serve(&mut self) {
        let child = Command::new(env!("CARGO_BIN_EXE_engine"))
            .arg(self.dir)
            .arg("serve")
            .arg(self.daemon.address())
            .arg(self.daemon.namespace())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually("the engine serves", || {
            let output = self.ask("ps", &[]);
            if output.status.success() { Ok(()) } else { Err(format!("{output:?}")) }
        });
    }

    fn kill9(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn ask(&self, verb: &str, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_engine"))
            .arg(self.dir)
            .arg(verb)
            .args(args)
            .output()
            .unwrap()
    }

    fn ok(&self, verb: &str, args: &[&str]) -> String {
        let output = self.ask(verb, args);
        assert!(output.status.success(), "{verb} {args:?}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn until(&self, verb: &str, args: &[&str], text: &str) {
        eventually(text, || {
            let shown = self.ok(verb, args);
            if shown.contains(text) { Ok(()) } else { Err(shown) }
        });
    }
}

impl Drop for Engine<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn load(daemon: &Daemon, dir: &Path) {
    let archive = dir.join("busybox.tar");
    Image::busybox().write_oci_tar(&archive, IMAGE);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client =
            Client::builder(daemon.address()).namespace(daemon.namespace()).build().unwrap();
        let archive = tokio::fs::File::open(&archive).await.unwrap();
        let options = gantry_client::ImportOptions { all_platforms: true, ..Default::default() };
        client.import(archive, options).await.unwrap();
    });
}

fn story(kind: DaemonKind) {
    let mut daemon = match kind {
        DaemonKind::Gantryd => Daemon::gantryd().start(),
        DaemonKind::Containerd => Daemon::containerd().start(),
    };
    let dir = tempfile::Builder::new().prefix("gkg").tempdir().unwrap();
    load(&daemon, dir.path());
    let state = dir.path().join("engine");
    std::fs::create_dir(&state).unwrap();
    {
        let mut engine = Engine::new(&daemon, &state);
        engine.serve();
        whole_life(&mut engine);
    }
    {
        let mut engine = Engine::new(&daemon, &state);
        engine.serve();
        let script = "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.2; done";
        engine.ok("create", &["d", IMAGE, "--", "sh", "-c", script]);
        engine.ok("start", &["d"]);
        engine.until("logs", &["d"], "line 2");
        engine.kill9();
    }
    // Both were killed; the container was not, and its log has no gap.
    daemon.kill9();
    daemon.start_again();
    let mut engine = Engine::new(&daemon, &state);
    engine.serve();
    engine.until("logs", &["d"], "line 12\n");
    let log = engine.ok("logs", &["d"]);
    for (n, line) in log.lines().enumerate() {
        assert_eq!(line, format!("line {}", n + 1), "{log}");
    }
    engine.ok("stop", &["d"]);
    engine.ok("rm", &["d"]);
    assert_eq!(engine.ok("ps", &[]), "");
    drop(engine);
    daemon.ctr().ok(["images", "rm", "--sync", IMAGE]);
    daemon.assert_clean();
}

fn whole_life(engine: &mut Engine<'_>) {
    // A life in order.
    engine.ok("create", &["a", IMAGE, "--", "sh", "-c", "echo up; sleep 1000"]);
    assert!(!engine.ask("create", &["a", IMAGE, "--", "true"]).status.success());
    engine.ok("start", &["a"]);
    engine.until("logs", &["a"], "up\n");
    let output = engine.ask("exec", &["a", "--", "sh", "-c", "echo in; exit 6"]);
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(6), &b"in\n"[..]));
    assert!(engine.ok("ps", &[]).contains("running"));
    assert!(!engine.ask("rm", &["a"]).status.success(), "it runs");

    // One that fails twice more, and one that always comes back.
    let events = Command::new(env!("CARGO_BIN_EXE_engine"))
        .arg(engine.dir)
        .arg("events")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let fails = ["b", IMAGE, "--restart", "on-failure:2", "--", "sh", "-c", "echo try; exit 3"];
    engine.ok("create", &fails);
    engine.ok("start", &["b"]);
    engine.until("ps", &[], "restarts=2 exited 3");
    // The log is written beside the events.
    engine.until("logs", &["b"], "try\ntry\ntry\n");
    engine.ok("create", &["c", IMAGE, "--restart", "always", "--", "sh", "-c", "sleep 0.2"]);
    engine.ok("start", &["c"]);
    engine.until("ps", &[], "c example.com/b:1 restarts=2");

    // Killed: what runs is taken up again, what should run is started.
    let pid_of = |text: &str| text.lines().next().unwrap().rsplit(' ').next().unwrap().to_owned();
    let before = pid_of(&engine.ok("ps", &[]));
    engine.kill9();
    engine.serve();
    assert_eq!(pid_of(&engine.ok("ps", &[])), before, "the same process");
    engine.until("ps", &[], "c example.com/b:1 restarts=3");
    let output = engine.ask("exec", &["a", "--", "echo", "still in"]);
    assert_eq!(&output.stdout[..], b"still in\n", "{output:?}");
    engine.ok("stop", &["a"]);
    engine.until("ps", &[], "restarts=0 exited 1");
    let mut events = events;
    let _ = events.kill();
    let seen = events.wait_with_output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.contains("b start b\n") && seen.contains("b exit b\n"), "{seen}");
    // One that always comes back must be stopped while it is there.
    eventually("c is stopped", || {
        let _ = engine.ask("stop", &["c"]);
        let shown = engine.ok("ps", &[]);
        let line = shown.lines().find(|l| l.starts_with("c ")).unwrap_or_default().to_owned();
        let removed = engine.ask("rm", &["c"]).status.success();
        if removed { Ok(()) } else { Err(line) }
    });
    engine.ok("rm", &["a"]);
    engine.ok("rm", &["b"]);
}

#[test]
fn root_engine_on_gantryd() {
    story(DaemonKind::Gantryd);
}

#[test]
fn root_engine_on_containerd() {
    story(DaemonKind::Containerd);
}
