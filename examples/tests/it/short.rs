//! The short examples as programs.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use gantry_testkit::{Daemon, Image, Registry, criu_dir};

fn short(daemon: &Daemon, verb: &str, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_short"));
    command.arg(verb).arg(daemon.address()).args(args);
    command.env("CONTAINERD_NAMESPACE", daemon.namespace());
    command
}

fn ok(output: Output) -> String {
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    text
}

#[test]
fn root_short_examples() {
    let daemon = Daemon::gantryd().start();
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    let mut events = short(&daemon, "events", &["2"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(events.stderr.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "subscribed\n");

    let text = ok(short(&daemon, "pull", &[&reference]).output().unwrap());
    assert!(text.contains("linux/"), "{text}");
    let run = ["sh", "-c", "echo out; echo err >&2; exit 5"];
    let output =
        short(&daemon, "run", &[&[reference.as_str()], &run[..]].concat()).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{output:?}");
    assert_eq!((&output.stdout[..], &output.stderr[..]), (&b"out\n"[..], &b"err\n"[..]));
    let seen = ok(events.wait_with_output().unwrap());
    assert!(seen.starts_with("/tasks/create") && seen.contains("\n/tasks/start"), "{seen}");

    // A container of another client's, with FIFOs that wait for whoever attaches.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let inside = runtime.enter();
    let client = gantry_client::Client::builder(daemon.address())
        .namespace(daemon.namespace())
        .build()
        .unwrap();
    let container = runtime.block_on(async {
        let image = client.image(&reference).await.unwrap();
        let fifos = gantry_client::FifoSet::create(None, "c", true, false).unwrap();
        let container = client
            .container_builder("c")
            .from_image(&image)
            .new_snapshot("c")
            .spec_option(|spec| spec.args(["sh", "-c", "cat; exit 9"]))
            .create()
            .await
            .unwrap();
        let task = container.new_task(fifos.stdio()).create().await.unwrap();
        task.start().await.unwrap();
        fifos.keep();
        container
    });
    let text = ok(short(&daemon, "exec", &["c", "echo", "from the exec"]).output().unwrap());
    assert_eq!(text, "from the exec\n");
    let mut attach = short(&daemon, "attach", &["c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    attach.stdin.take().unwrap().write_all(b"fed\n").unwrap();
    let output = attach.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(9), &b"fed\n"[..]));
    runtime.block_on(async {
        let task = container.task().await.unwrap();
        let stdio = task.state().await.unwrap().stdio;
        task.delete().await.unwrap();
        stdio.remove_fifos();
        container.delete(true).await.unwrap();
        client.images().delete(&reference, true).await.unwrap();
    });
    let wrong = short(&daemon, "exec", &["none", "true"]).output().unwrap();
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("not found"), "{wrong:?}");
    drop(inside);
    drop(runtime);
    daemon.assert_clean();
}

#[test]
fn root_short_checkpoint() {
    let daemon = Daemon::gantryd().path_first(&criu_dir()).start();
    let registry = Registry::start();
    let reference = Image::busybox().push(&registry, "busybox:1");
    ok(short(&daemon, "pull", &[&reference]).output().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = gantry_client::Client::builder(daemon.address())
            .namespace(daemon.namespace())
            .build()
            .unwrap();
        let image = client.image(&reference).await.unwrap();
        let container = client
            .container_builder("c")
            .from_image(&image)
            .new_snapshot("c")
            .spec_option(|spec| spec.args(["sleep", "1000"]))
            .create()
            .await
            .unwrap();
        let task = container.new_task(&gantry_client::Stdio::null()).create().await.unwrap();
        task.start().await.unwrap();
        let text = ok(short(&daemon, "checkpoint", &["c"]).output().unwrap());
        let name = text.trim();
        assert!(name.starts_with("containerd.io/checkpoint/c:"), "{name}");
        assert_eq!(task.wait().await.unwrap().code, 137);
        task.delete().await.unwrap();
        container.delete(true).await.unwrap();
        for name in [name, reference.as_str()] {
            client.images().delete(name, true).await.unwrap();
        }
    });
    drop(runtime);
    daemon.assert_clean();
}

#[test]
fn root_short_embedded() {
    let dir = tempfile::Builder::new().prefix("gke").tempdir().unwrap();
    let output =
        Command::new(env!("CARGO_BIN_EXE_short")).arg("embedded").arg(dir.path()).output().unwrap();
    assert!(ok(output).contains("io.containerd.snapshotter.v1 overlayfs"));
}
