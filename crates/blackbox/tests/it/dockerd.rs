//! Debian's dockerd on gantryd: the life of containers, and both daemons' restarts.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gantry_testkit::{Daemon, Image, eventually_within, system_program};

/// dockerd opens its store, looks at containerd's health and restores containers within this.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// dockerd in a directory of its own, without a network. Killed on drop.
struct Dockerd {
    dir: tempfile::TempDir,
    containerd: PathBuf,
    child: Option<Child>,
}

impl Dockerd {
    fn start(containerd: &Path) -> Self {
        let dir = tempfile::Builder::new().prefix("gdk").tempdir().unwrap();
        let mut dockerd = Self { dir, containerd: containerd.to_owned(), child: None };
        dockerd.spawn();
        dockerd
    }

    fn spawn(&mut self) {
        let dir = self.dir.path();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log"));
        let log = log.unwrap();
        let child = Command::new(system_program("dockerd"))
            .args(["--live-restore", "--bridge=none", "--iptables=false", "--ip6tables=false"])
            .args(["--storage-driver=overlay2", "--containerd"])
            .arg(&self.containerd)
            .arg("--data-root")
            .arg(dir.join("data"))
            .arg("--exec-root")
            .arg(dir.join("exec"))
            .arg("--pidfile")
            .arg(dir.join("pid"))
            .arg("-H")
            .arg(self.host())
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        eventually_within(START_TIMEOUT, "dockerd answers", || {
            let info = self.run(&["info", "--format", "{{.ServerVersion}}"]);
            if info.status.success() { Ok(()) } else { Err(self.log()) }
        });
    }

    /// Ends dockerd at once; its containers live on.
    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    fn host(&self) -> String {
        format!("unix://{}", self.dir.path().join("d.sock").display())
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new("timeout")
            .args(["-k", "5", "60"])
            .arg(system_program("docker"))
            .args(["-H", &self.host()])
            .args(args)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "docker {args:?}: {stderr}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn state(&self, name: &str) -> String {
        self.ok(&["inspect", "--format", "{{.State.Status}} {{.State.ExitCode}}", name])
    }

    fn until(&self, name: &str, state: &str) {
        eventually_within(START_TIMEOUT, &format!("{name} is {state}"), || {
            let now = self.state(name);
            if now.trim() == state { Ok(()) } else { Err(now) }
        });
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.kill();
        // The layers of containers that a failed test left are mounted below the data root.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |p: &&str| Path::new(p).starts_with(self.dir.path());
        for mount in table.lines().filter_map(|l| l.split(' ').nth(4)).filter(below) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}

#[test]
fn root_dockerd_lives_on_gantryd() {
    let mut daemon = Daemon::gantryd().start();
    let mut docker = Dockerd::start(&daemon.address());
    let archive = daemon.dir().join("image.tar");
    Image::busybox().write_docker_tar(&archive, "busybox:1");
    docker.ok(&["load", "-i", archive.to_str().unwrap()]);
    let run = ["run", "--network=none"];
    let with = |rest: &[&'static str]| run.iter().copied().chain(rest.iter().copied()).collect();

    let args: Vec<&str> = with(&["--rm", "busybox:1", "sh", "-c", "echo hi; exit 7"]);
    let output = docker.run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.stdout.as_slice(), output.status.code()),
        (&b"hi\n"[..], Some(7)),
        "{stderr}"
    );

    let old = "--runtime=io.containerd.runtime.v1.linux";
    let args: Vec<&str> = with(&["--rm", old, "busybox:1", "echo", "old"]);
    assert_eq!(docker.ok(&args), "old\n");

    let script = "echo started; while :; do sleep 0.1; done";
    let args: Vec<&str> = with(&["-d", "--name=c1", "busybox:1", "sh", "-c", script]);
    docker.ok(&args);
    assert_eq!(docker.ok(&["exec", "c1", "echo", "inside"]), "inside\n");
    assert_eq!(docker.run(&["exec", "c1", "sh", "-c", "exit 9"]).status.code(), Some(9));
    assert_eq!(docker.ok(&["logs", "c1"]), "started\n");
    assert!(docker.ok(&["top", "c1"]).contains("sleep 0.1"));
    assert!(docker.ok(&["stats", "--no-stream", "c1"]).contains("c1"));
    docker.ok(&["pause", "c1"]);
    assert_eq!(docker.state("c1").trim(), "paused 0");
    docker.ok(&["unpause", "c1"]);

    docker.kill();
    docker.spawn();
    assert_eq!(docker.state("c1").trim(), "running 0", "live-restore");
    assert_eq!(docker.ok(&["exec", "c1", "echo", "again"]), "again\n");

    daemon.kill9();
    daemon.start_again();
    eventually_within(START_TIMEOUT, "dockerd finds gantryd again", || {
        let output = docker.run(&["exec", "c1", "echo", "again"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.stdout == b"again\n" { Ok(()) } else { Err(stderr) }
    });
    docker.ok(&["kill", "c1"]);
    docker.until("c1", "exited 137");
    docker.ok(&["rm", "c1"]);

    let restarted = "test -e /once && sleep 1000; touch /once; exit 3";
    let always = "--restart=on-failure:3";
    let args: Vec<&str> = with(&["-d", "--name=c2", always, "busybox:1", "sh", "-c", restarted]);
    docker.ok(&args);
    eventually_within(START_TIMEOUT, "the container is restarted once", || {
        let count =
            docker.ok(&["inspect", "--format", "{{.RestartCount}} {{.State.Status}}", "c2"]);
        if count.trim() == "1 running" { Ok(()) } else { Err(count) }
    });
    docker.ok(&["rm", "-f", "c2"]);
    assert_eq!(docker.ok(&["ps", "-aq"]), "");
    docker.kill();
    daemon.assert_clean();
}
