//! The program itself: arguments, signals, one daemon per root.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

const PROGRAM: &str = env!("CARGO_BIN_EXE_gantryd");

fn run(args: &[&str]) -> Output {
    Command::new(PROGRAM).args(args).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A daemon that is killed when the test ends, however it ends.
struct Spawned(Child);

impl Spawned {
    fn start(dir: &Path) -> Self {
        let child = Command::new(PROGRAM)
            .args(["--root", dir.join("root").to_str().unwrap()])
            .args(["--state", dir.join("state").to_str().unwrap()])
            .args(["--address", dir.join("s").to_str().unwrap()])
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let spawned = Self(child);
        let end = Instant::now() + Duration::from_secs(30);
        while std::os::unix::net::UnixStream::connect(dir.join("s")).is_err() {
            assert!(Instant::now() < end, "the daemon does not serve");
            std::thread::sleep(Duration::from_millis(20));
        }
        spawned
    }
}

impl Drop for Spawned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn prints_configurations() {
    let default = run(&["config", "default"]);
    assert!(default.status.success());
    let default: toml::Table = text(&default.stdout).parse().unwrap();
    assert_eq!(default["root"].as_str(), Some("/var/lib/gantry"));

    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("c.toml");
    std::fs::write(&file, "root = \"/x\"\n[grpc]\naddress = \"/y\"\n").unwrap();
    let file = file.to_str().unwrap();
    let dump = run(&["--config", file, "--root", "/z", "config", "dump"]);
    let dump: toml::Table = text(&dump.stdout).parse().unwrap();
    assert_eq!(dump["root"].as_str(), Some("/z"), "flags win");
    let migrated: toml::Table =
        text(&run(&["-c", file, "config", "migrate"]).stdout).parse().unwrap();
    assert_eq!(migrated["version"].as_integer(), Some(4));
    let grpc = &migrated["plugins"]["io.containerd.server.v1.grpc"];
    assert_eq!(grpc["address"].as_str(), Some("/y"));
}

#[test]
fn a_named_file_must_exist() {
    let out = run(&["--config", "/nonexistent/x.toml", "config", "dump"]);
    assert!(!out.status.success());
    assert!(text(&out.stderr).contains("/nonexistent/x.toml"), "{}", text(&out.stderr));
}

#[test]
fn a_term_signal_ends_it_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = Spawned::start(dir.path());
    let pid = rustix::process::Pid::from_child(&daemon.0);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    let status = daemon.0.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(!dir.path().join("s").exists());
}

#[test]
fn the_root_has_one_daemon_even_after_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = Spawned::start(dir.path());
    let mut second = Command::new(PROGRAM)
        .args(["--root", dir.path().join("root").to_str().unwrap()])
        .args(["--state", dir.path().join("state2").to_str().unwrap()])
        .args(["--address", dir.path().join("s2").to_str().unwrap()])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert!(second.try_wait().unwrap().is_none(), "it waits for the first");
    assert!(!dir.path().join("s2").exists());
    first.0.kill().unwrap();
    first.0.wait().unwrap();
    let end = Instant::now() + Duration::from_secs(20);
    while std::os::unix::net::UnixStream::connect(dir.path().join("s2")).is_err() {
        assert!(Instant::now() < end, "the second does not take over");
        std::thread::sleep(Duration::from_millis(50));
    }
    second.kill().unwrap();
    second.wait().unwrap();
}
