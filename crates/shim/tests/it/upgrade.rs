//! Live upgrades: a shim executes another program and everything goes on.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use gantry_api::containerd::runtime::sandbox::v1 as sandbox;
use gantry_api::containerd::runtime::sandbox::v1::sandbox_ttrpc::SandboxClient;
use gantry_api::containerd::task::v3 as api;
use gantry_api::gantry::shim::v1::shim_ttrpc::ShimClient;
use gantry_api::gantry::shim::v1::{InfoRequest, UpgradeRequest, UpgradeResponse};
use gantry_ttrpc::{Client, Result};
use serde_json::json;

use crate::harness::*;

static TOKENS: AtomicU32 = AtomicU32::new(0);

/// A copy of the shim's program, as a newer version would be.
fn newer(daemon: &Daemon, name: &str) -> PathBuf {
    let path = daemon.dir.path().join(name);
    std::fs::copy(BINARY, &path).expect("copied");
    path
}

async fn try_upgrade(shim: &Shim, program: &Path) -> Result<UpgradeResponse> {
    let client = ShimClient::new(Client::connect(&shim.address).expect("connects"));
    let token = format!("t{}", TOKENS.fetch_add(1, Ordering::Relaxed));
    let request = UpgradeRequest { program: program.display().to_string(), token };
    client.upgrade(&context(), &request).await
}

/// Upgrades, and checks that it is the same process with the other program.
async fn upgrade(shim: &Shim, program: &Path) {
    let answer = try_upgrade(shim, program).await.expect("upgraded");
    assert_eq!(answer.pid, shim.pid);
    assert_eq!(answer.previous_version, answer.version);
    // By the file: it is on a mount of its own, where it has no path.
    let file = |path: &Path| {
        let stat = std::fs::metadata(path).expect("it is there");
        (std::os::unix::fs::MetadataExt::dev(&stat), std::os::unix::fs::MetadataExt::ino(&stat))
    };
    assert_eq!(file(Path::new(&format!("/proc/{}/exe", shim.pid))), file(program));
}

/// Reads numbered lines in the background; fails on the first that is missing.
fn numbered(path: &str) -> tokio::task::JoinHandle<u32> {
    let path = path.to_owned();
    tokio::task::spawn_blocking(move || {
        let reader = BufReader::new(std::fs::File::open(path).expect("opens"));
        let mut next = 0;
        for line in reader.lines() {
            assert_eq!(line.expect("reads"), format!("line-{next}"));
            next += 1;
        }
        next
    })
}

const LINES: &str = "i=0; trap 'exit 7' TERM; \
    while :; do echo line-$i; echo line-$i >&2; i=$((i+1)); done";

#[test]
fn root_everything_goes_on() {
    run(async {
        let daemon = Daemon::start();
        let programs = [newer(&daemon, "one"), newer(&daemon, "two")];
        let bundle = daemon.bundle(&["sh", "-c", LINES]);
        let (out, err) = (bundle.fifo("out"), bundle.fifo("err"));
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        // One is handed over to the process, the other is copied.
        (request.stdout, request.stderr) = (out.clone(), err.clone());
        let pid = shim.create_with(request).await;
        let readers = [numbered(&out), numbered(&err)];
        shim.start(&bundle.id, "").await;
        // An exec that copies its input, and one that is only known.
        let (input, output) = (bundle.fifo("in"), bundle.fifo("echo"));
        let mut cat = exec_request(&bundle.id, "cat", &["cat"]);
        (cat.stdin, cat.stderr) = (input.clone(), output.clone());
        cat.spec.as_mut().expect("a spec").value =
            String::from_utf8(cat.spec.clone().expect("it").value)
                .expect("text")
                .replace("[\"cat\"]", "[\"sh\",\"-c\",\"cat >&2\"]")
                .into_bytes();
        shim.exec_with(cat).await.expect("added");
        let echoed = read_fifo(&output);
        shim.start(&bundle.id, "cat").await;
        let mut input = write_fifo(&input);
        shim.exec(&bundle.id, "later", &["sh", "-c", "exit 5"]).await.expect("added");
        let waiting = {
            let (task, id) = (shim.task.clone(), bundle.id.clone());
            tokio::spawn(async move {
                let request = api::WaitRequest { id, exec_id: String::new() };
                task.wait(&context(), &request).await
            })
        };
        for round in 0..3 {
            input.write_all(format!("word-{round} ").as_bytes()).expect("written");
            upgrade(&shim, &programs[round % 2]).await;
            let state = shim.state(&bundle.id, "").await.expect("answers on the same connection");
            assert_eq!(state.pid, pid);
            let exec = format!("e{round}");
            shim.exec(&bundle.id, &exec, &["sh", "-c", "exit 3"]).await.expect("added");
            shim.start(&bundle.id, &exec).await;
            assert_eq!(shim.wait(&bundle.id, &exec).await, 3);
            shim.delete(&bundle.id, &exec).await.expect("deleted");
        }
        shim.start(&bundle.id, "later").await;
        assert_eq!(shim.wait(&bundle.id, "later").await, 5);
        drop(input);
        let request =
            api::CloseIoRequest { id: bundle.id.clone(), exec_id: "cat".into(), stdin: true };
        shim.task.close_io(&context(), &request).await.expect("closed");
        assert_eq!(shim.wait(&bundle.id, "cat").await, 0);
        shim.delete(&bundle.id, "cat").await.expect("deleted");
        assert_eq!(echoed.await.expect("reads"), "word-0 word-1 word-2 ");
        shim.kill(&bundle.id, "", 15).await.expect("sent");
        let exit = waiting.await.expect("no panic").expect("a wait from before is answered");
        assert_eq!(exit.exit_status, 7);
        shim.finish(&bundle).await;
        for reader in readers {
            assert!(reader.await.expect("no line is missing") > 100);
        }
        let exits = daemon.events.exits();
        assert_eq!(exits.iter().filter(|exit| exit.id == bundle.id).count(), 1);
        daemon.events.until("/tasks/delete").await;
    });
}

#[test]
fn root_bad_programs_are_refused_and_nothing_changes() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        let text = daemon.dir.path().join("text");
        std::fs::write(&text, "no program").expect("written");
        for program in ["/bin/true", "/bin/false", "/nonexistent", "/tmp", "/bin/cat"] {
            let err = try_upgrade(&shim, Path::new(program)).await.expect_err(program);
            assert!(err.is_failed_precondition(), "{program}: {err}");
        }
        let err = try_upgrade(&shim, &text).await.expect_err("text");
        assert!(err.is_failed_precondition(), "{err}");
        let err = try_upgrade(&shim, Path::new("relative")).await.expect_err("relative");
        assert!(err.is_invalid_argument(), "{err}");
        // On a mount of its own the program has no path; it is the same file.
        let file = |path: &str| {
            let stat = std::fs::metadata(path).expect("is there");
            use std::os::unix::fs::MetadataExt as _;
            (stat.dev(), stat.ino())
        };
        assert_eq!(file(&format!("/proc/{}/exe", shim.pid)), file(BINARY));
        shim.exec(&bundle.id, "e1", &["true"]).await.expect("added");
        shim.start(&bundle.id, "e1").await;
        assert_eq!(shim.wait(&bundle.id, "e1").await, 0);
        shim.finish(&bundle).await;
    });
}

/// Exits before, while and after a program takes over are each told once, with their code.
#[test]
fn root_no_exit_is_lost() {
    const ROUNDS: u32 = 12;
    run_for(ROUNDS * 2, async {
        let daemon = Daemon::start();
        let program = newer(&daemon, "one");
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        for round in 0..ROUNDS {
            let exec = format!("e{round}");
            let script = format!("sleep 0.0{}; exit {}", round % 10, round + 1);
            shim.exec(&bundle.id, &exec, &["sh", "-c", &script]).await.expect("added");
            shim.start(&bundle.id, &exec).await;
            upgrade(&shim, &program).await;
            assert_eq!(shim.wait(&bundle.id, &exec).await, round + 1);
        }
        shim.finish(&bundle).await;
        daemon.events.until("/tasks/delete").await;
        let exits = daemon.events.exits();
        for round in 0..ROUNDS {
            let id = format!("e{round}");
            let codes: Vec<u32> =
                exits.iter().filter(|exit| exit.id == id).map(|exit| exit.exit_status).collect();
            assert_eq!(codes, [round + 1], "{id}");
        }
    });
}

#[test]
fn root_terminals_and_files_go_on() {
    run(async {
        let daemon = Daemon::start();
        let program = newer(&daemon, "one");
        let mut bundle = daemon.bundle(&["sh"]);
        bundle.spec["process"]["terminal"] = json!(true);
        bundle.save();
        let shim = daemon.shim(&bundle).await;
        let (input, output) = (bundle.fifo("in"), bundle.fifo("out"));
        let mut request = shim.request(&bundle);
        request.terminal = true;
        (request.stdin, request.stdout) = (input.clone(), output.clone());
        shim.create_with(request).await;
        let shown = read_fifo(&output);
        shim.start(&bundle.id, "").await;
        let log = bundle.path.join("log.txt");
        let mut logged = exec_request(
            &bundle.id,
            "logged",
            &["sh", "-c", "i=0; while :; do echo line-$i; i=$((i+1)); done"],
        );
        logged.stdout = format!("file://{}", log.display());
        shim.exec_with(logged).await.expect("added");
        shim.start(&bundle.id, "logged").await;
        for _ in 0..2 {
            upgrade(&shim, &program).await;
        }
        let request = api::ResizePtyRequest {
            id: bundle.id.clone(),
            exec_id: String::new(),
            width: 71,
            height: 17,
        };
        shim.task.resize_pty(&context(), &request).await.expect("resized");
        write_fifo(&input).write_all(b"stty size; exit 4\n").expect("written");
        assert_eq!(shim.wait(&bundle.id, "").await, 4);
        shim.finish(&bundle).await;
        let shown = shown.await.expect("reads");
        assert!(shown.contains("17 71"), "{shown}");
        let text = std::fs::read_to_string(&log).expect("reads");
        let lines: Vec<&str> = text.lines().collect();
        let whole = &lines[..lines.len() - 1];
        assert!(whole.len() > 100, "{}", whole.len());
        for (n, line) in whole.iter().enumerate() {
            assert_eq!(*line, format!("line-{n}"));
        }
    });
}

/// Events that no daemon has taken go along, and so does a pod; a kill for memory after the
/// upgrade is told.
#[test]
fn root_events_pods_and_memory() {
    run(async {
        let mut daemon = Daemon::start();
        let program = newer(&daemon, "one");
        let mut bundle = daemon.bundle(&["sleep", "1000"]);
        bundle.spec["linux"]["resources"] =
            json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
        bundle.save();
        let shim = daemon.shim(&bundle).await;
        let pods = SandboxClient::new(Client::connect(&shim.address).expect("connects"));
        let create =
            sandbox::CreateSandboxRequest { sandbox_id: "pod".into(), ..Default::default() };
        pods.create_sandbox(&context(), &create).await.expect("created");
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        daemon.events.until("/tasks/start").await;
        daemon.stop().await;
        shim.exec(&bundle.id, "away", &["sh", "-c", "exit 9"]).await.expect("added");
        shim.start(&bundle.id, "away").await;
        assert_eq!(shim.wait(&bundle.id, "away").await, 9);
        upgrade(&shim, &program).await;
        daemon.listen();
        daemon.events.until("/tasks/exit").await;
        assert_eq!(daemon.events.exits()[0].exit_status, 9);
        let request = sandbox::PingRequest { sandbox_id: "pod".into() };
        pods.ping_sandbox(&context(), &request).await.expect("the pod is still there");
        let hungry = ["sh", "-c", "x=x; while :; do x=$x$x; done"];
        shim.exec(&bundle.id, "hungry", &hungry).await.expect("added");
        shim.start(&bundle.id, "hungry").await;
        assert_eq!(shim.wait(&bundle.id, "hungry").await, 137);
        daemon.events.until("/tasks/oom").await;
        let client = ShimClient::new(Client::connect(&shim.address).expect("connects"));
        let info = client.info(&context(), &InfoRequest {}).await.expect("answers");
        assert_eq!(info.containers, [bundle.id.clone()]);
        let _ = shim.kill(&bundle.id, "", 9).await;
        shim.wait(&bundle.id, "").await;
        shim.delete(&bundle.id, "").await.expect("deleted");
        let request = sandbox::ShutdownSandboxRequest { sandbox_id: "pod".into() };
        let _ = pods.shutdown_sandbox(&context(), &request).await;
        shim.shutdown(&bundle.id).await;
    });
}
