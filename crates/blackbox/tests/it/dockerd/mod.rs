//! Debian's dockerd on gantryd: the life of containers, and both daemons' restarts.

mod life;
mod managed;
mod policies;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use gantry_testkit::{Image, eventually_within, system_program};

/// dockerd opens its store, looks at containerd's health and restores containers within this.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Whose containerd dockerd uses.
enum Engine {
    /// One that runs already, at this address.
    At(PathBuf),
    /// One of its own, from this directory, which comes first on its PATH.
    Own(PathBuf),
}

/// dockerd in a directory of its own, without a network. Killed on drop.
struct Dockerd {
    dir: tempfile::TempDir,
    engine: Engine,
    live_restore: bool,
    child: Option<Child>,
}

impl Dockerd {
    fn start(containerd: &Path) -> Self {
        Self::with(Engine::At(containerd.to_owned()), true)
    }

    fn with(engine: Engine, live_restore: bool) -> Self {
        let dir = tempfile::Builder::new().prefix("gdk").tempdir().unwrap();
        let mut dockerd = Self { dir, engine, live_restore, child: None };
        dockerd.spawn();
        dockerd
    }

    fn spawn(&mut self) {
        let dir = self.dir.path();
        let log = std::fs::OpenOptions::new().create(true).append(true).open(dir.join("log"));
        let log = log.unwrap();
        let mut command = Command::new(system_program("dockerd"));
        command
            .args(["--bridge=none", "--iptables=false", "--ip6tables=false"])
            .arg("--storage-driver=overlay2")
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
            .stderr(log);
        if self.live_restore {
            command.arg("--live-restore");
        }
        match &self.engine {
            Engine::At(address) => {
                command.arg("--containerd").arg(address);
            }
            Engine::Own(programs) => {
                let path = std::env::var("PATH").unwrap_or_default();
                command.env("PATH", format!("{}:{path}", programs.display()));
            }
        }
        self.child = Some(command.spawn().unwrap());
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

    /// Asks dockerd to end, and waits until it has.
    fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        eventually_within(START_TIMEOUT, "dockerd ends", || match child.try_wait().unwrap() {
            Some(_) => Ok(()),
            None => Err(self.log()),
        });
    }

    /// Loads the busybox image as `busybox:1`.
    fn load(&self) {
        let archive = self.dir.path().join("image.tar");
        Image::busybox().write_docker_tar(&archive, "busybox:1");
        self.ok(&["load", "-i", archive.to_str().unwrap()]);
    }

    /// `docker run` of the image without a network.
    fn run_image(&self, options: &[&str], command: &[&str]) -> Output {
        let mut args = vec!["run", "--network=none"];
        args.extend(options);
        args.push("busybox:1");
        args.extend(command);
        self.run(&args)
    }

    /// Starts a container of the image in the background.
    fn detached(&self, name: &str, options: &[&str], command: &[&str]) {
        let name = format!("--name={name}");
        let mut all = vec!["-d", name.as_str()];
        all.extend(options);
        let output = self.run_image(&all, command);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{command:?}: {stderr}\n{}", self.log());
    }

    /// What happened to a container so far. Its name must not look like the start of an ID, or
    /// docker shows those containers as well.
    fn events(&self, name: &str) -> Vec<String> {
        let (only, now) = (format!("container={name}"), soon());
        let all = ["events", "--since", "1h", "--until", &now, "--format", "{{.Action}}"];
        let args: Vec<&str> = all.into_iter().chain(["--filter", &only]).collect();
        self.ok(&args).lines().map(str::to_owned).collect()
    }

    fn inspect(&self, name: &str, format: &str) -> String {
        self.ok(&["inspect", "--format", format, name]).trim().to_owned()
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

/// The second that follows this one, as `docker events --until` takes it.
fn soon() -> String {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    (since.as_secs() + 1).to_string()
}

impl Dockerd {
    /// Kills what dockerd started and a failed test left: all of it names our directory.
    fn kill_own(&self) {
        let dir = self.dir.path().to_string_lossy().into_owned();
        let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        for pid in entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok()) {
            let raw = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&raw).contains(&dir)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.kill();
        if let Engine::Own(_) = self.engine {
            self.kill_own();
        }
        // The layers of containers that a failed test left are mounted below the data root.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |p: &&str| Path::new(p).starts_with(self.dir.path());
        for mount in table.lines().filter_map(|l| l.split(' ').nth(4)).filter(below) {
            let _ = Command::new("umount").args(["-l", mount]).status();
        }
    }
}
