//! Execs without the runtime are what they are with it.
//!
//! Each process is run twice in the same container, by the shim and by `runc exec`, and reports
//! everything about itself.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use gantry_api::containerd::task::v3 as api;
use prost_types::Any;
use serde_json::{Value, json};

use crate::harness::*;

/// Everything a process can tell about itself, without what must differ (its pid, its pipes).
const PROBE: &str = "
    exec 2>&1; id; pwd; umask; busybox env | busybox sort; ulimit -a
    busybox grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid|Umask|Sig[BC])' /proc/self/status
    busybox cat /proc/self/cgroup /proc/self/oom_score_adj
    for ns in cgroup ipc mnt net pid user uts; do busybox readlink /proc/self/ns/$ns; done
    for fd in 0 1 2 3 4 5; do test -e /proc/self/fd/$fd && echo open $fd; done
    set -- $(busybox cat /proc/$$/stat); test $1 = $6 && echo leads a session; echo tty $7
    busybox mkdir /tmp/made && echo made; busybox rmdir /tmp/made
    busybox hostname other && echo named; busybox kill -0 1 && echo may kill
    busybox chroot / busybox true && echo may chroot
";

/// What the shim logs when it leaves an exec to the runtime.
const ASKED: &str = "the runtime is asked";

/// A container whose execs are watched.
struct Watched {
    _daemon: Daemon,
    bundle: Bundle,
    shim: Shim,
    log: std::fs::File,
    root: PathBuf,
    execs: u32,
}

impl Watched {
    async fn start(change: impl FnOnce(&mut Value)) -> Self {
        let daemon = Daemon::start();
        let mut bundle = daemon.bundle(&["sleep", "1000"]);
        let passwd = "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n";
        let etc = bundle.path.join("rootfs/etc");
        std::fs::create_dir_all(&etc).expect("made");
        std::fs::write(etc.join("passwd"), passwd).expect("written");
        // Runtimes built with old Go raise the soft limit of what they run unless it is given.
        bundle.spec["process"]["rlimits"] =
            json!([{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}]);
        bundle.spec["process"]["oomScoreAdj"] = json!(500);
        change(&mut bundle.spec);
        bundle.save();
        let mut options = std::fs::OpenOptions::new();
        let log = options.read(true).write(true).open(bundle.fifo("log")).expect("a FIFO");
        rustix::io::ioctl_fionbio(&log, true).expect("does not wait");
        let out = daemon.start_with(&bundle, |command| {
            command.arg("-debug");
        });
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let address = String::from_utf8(out.stdout).expect("text");
        let shim = daemon.connect(&address, &bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        let root = daemon.dir.path().join("runc/test");
        Self { _daemon: daemon, bundle, shim, log, root, execs: 0 }
    }

    fn log(&mut self) -> String {
        let mut text = Vec::new();
        // Ends with EAGAIN.
        let _ = self.log.read_to_end(&mut text);
        String::from_utf8(text).expect("text")
    }

    /// Runs a process by the shim: its output, its exit code, and whether the runtime was asked.
    async fn here(&mut self, process: &Value) -> (String, u32, String) {
        self.log();
        self.execs += 1;
        let (id, exec) = (self.bundle.id.clone(), format!("e{}", self.execs));
        let file = self.bundle.path.join(&exec);
        let request = api::ExecProcessRequest {
            stdout: format!("file://{}", file.display()),
            stderr: format!("file://{}", file.display()),
            ..request(&id, &exec, process)
        };
        self.shim.exec_with(request).await.expect("added");
        self.shim.start(&id, &exec).await;
        let code = self.shim.wait(&id, &exec).await;
        self.shim.delete(&id, &exec).await.expect("deleted");
        let text = std::fs::read_to_string(&file).expect("written");
        (text, code, self.log())
    }

    /// Runs a process by the runtime.
    fn there(&self, process: &Value) -> (String, u32) {
        let file = self.bundle.path.join("process.json");
        std::fs::write(&file, process.to_string()).expect("written");
        let mut command = Command::new("sh");
        command.args(["-c", "exec runc --root \"$1\" exec --process \"$2\" \"$3\" 2>&1", "sh"]);
        command.arg(&self.root).arg(&file).arg(&self.bundle.id).stdin(Stdio::null());
        let out = command.output().expect("runs");
        let text = String::from_utf8(out.stdout).expect("text");
        (text, u32::try_from(out.status.code().expect("exits")).expect("positive"))
    }

    async fn same(&mut self, what: &str, process: &Value) {
        let (text, code, log) = self.here(process).await;
        assert!(!log.contains(ASKED), "{what}: {log}");
        let (expected, expected_code) = self.there(process);
        assert_eq!(text, expected, "{what}");
        assert_eq!(code, expected_code, "{what}");
    }

    async fn finish(self) {
        self.shim.finish(&self.bundle).await;
    }
}

fn request(id: &str, exec: &str, process: &Value) -> api::ExecProcessRequest {
    let mut request = exec_request(id, exec, &[]);
    let value = process.to_string().into_bytes();
    request.spec = request.spec.map(|any| Any { value, ..any });
    request
}

fn process(change: impl FnOnce(&mut Value)) -> Value {
    let all = ["CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_CHROOT", "CAP_SETUID"];
    let mut process = json!({
        "user": {"uid": 0, "gid": 0}, "args": ["sh", "-c", PROBE], "cwd": "/",
        "env": ["PATH=/nowhere:/bin", "A=1", "B=2", "A=3"],
        "capabilities": {"bounding": all, "effective": all, "permitted": all},
    });
    change(&mut process);
    process
}

#[test]
fn root_execs_are_what_the_runtime_makes_them() {
    run_for(20, async {
        let mut watched = Watched::start(|spec| {
            let namespaces = spec["linux"]["namespaces"].as_array_mut().expect("a list");
            namespaces.push(json!({"type": "cgroup"}));
        })
        .await;
        watched.same("root", &process(|_| {})).await;
        let user = process(|p| {
            p["user"] = json!({"uid": 1000, "gid": 1001, "additionalGids": [7, 9]});
            p["cwd"] = json!("/tmp");
            p["noNewPrivileges"] = json!(true);
        });
        watched.same("a user", &user).await;
        let ambient = process(|p| {
            p["user"] = json!({"uid": 2000, "gid": 2000});
            p["capabilities"]["ambient"] = json!(["CAP_KILL", "CAP_CHOWN"]);
            p["capabilities"]["inheritable"] = json!(["CAP_KILL"]);
            p["rlimits"] = json!([{"type": "RLIMIT_NPROC", "hard": 5000, "soft": 4000}]);
            p["env"] = json!(["PATH=/bin", "HOME="]);
        });
        watched.same("ambient capabilities, own limits", &ambient).await;
        let inherited = process(|p| {
            p["capabilities"] = json!(null);
            p["env"] = json!(["HOME=/elsewhere"]);
            p["args"][0] = json!("/bin/sh");
        });
        watched.same("the container's capabilities", &inherited).await;
        let code = process(|p| p["args"] = json!(["sh", "-c", "exit 77"]));
        watched.same("an exit code", &code).await;
        let killed = process(|p| p["args"] = json!(["sh", "-c", "kill -9 $$"]));
        watched.same("a signal", &killed).await;
        watched.finish().await;
    });
}

#[test]
fn root_execs_get_the_containers_seccomp_filter() {
    run_for(10, async {
        let filter = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"],
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 71},
                {"names": ["sethostname"], "action": "SCMP_ACT_ERRNO"},
                {"names": ["chroot"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 2,
                 "args": [{"index": 0, "value": 1, "op": "SCMP_CMP_EQ"}]},
            ],
        });
        for privileges in [false, true] {
            let filter = filter.clone();
            let mut watched = Watched::start(|spec| {
                spec["linux"]["seccomp"] = filter;
                spec["process"]["noNewPrivileges"] = json!(privileges);
            })
            .await;
            for own in [false, true] {
                let what = format!("no new privileges: {privileges} {own}");
                let probe = process(|p| p["noNewPrivileges"] = json!(own));
                watched.same(&what, &probe).await;
                let (text, _, _) = watched.here(&probe).await;
                assert!(text.contains("Seccomp:\t2\n"), "{text}");
                assert!(!text.contains("made\n") && !text.contains("may chroot"), "{text}");
            }
            watched.finish().await;
        }
    });
}

#[test]
fn root_what_is_not_understood_is_the_runtimes() {
    run_for(10, async {
        let mut watched = Watched::start(|_| {}).await;
        let umask = process(|p| {
            p["args"] = json!(["sh", "-c", "exit 3"]);
            p["user"]["umask"] = json!(0o77);
        });
        let (text, code, log) = watched.here(&umask).await;
        assert_eq!((text.as_str(), code), ("", 3));
        assert!(log.contains(ASKED), "{log}");
        let id = watched.bundle.id.clone();
        let missing = process(|p| p["args"] = json!(["nosuch"]));
        watched.shim.exec_with(request(&id, "missing", &missing)).await.expect("added");
        let err = watched.shim.try_start(&id, "missing").await.expect_err("no such program");
        assert_eq!(
            err.text(),
            "OCI runtime exec failed: exec failed: unable to start container process: exec: \
             \"nosuch\": executable file not found in $PATH"
        );
        let away = process(|p| p["cwd"] = json!("/no/such"));
        watched.shim.exec_with(request(&id, "away", &away)).await.expect("added");
        let err = watched.shim.try_start(&id, "away").await.expect_err("no such directory");
        assert!(err.text().contains("chdir to cwd (\"/no/such\")"), "{err}");
        watched.finish().await;
    });
}

#[test]
fn root_an_exec_has_a_terminal_of_its_own() {
    run_for(10, async {
        let mut watched = Watched::start(|_| {}).await;
        watched.log();
        let id = watched.bundle.id.clone();
        let script = "busybox tty; stty size; read line; echo got $line; stty size; exit 12";
        let typed = process(|p| {
            p["args"] = json!(["sh", "-c", script]);
            p["terminal"] = json!(true);
            p["consoleSize"] = json!({"height": 33, "width": 44});
            p["user"] = json!({"uid": 1000, "gid": 1000});
        });
        let (input, output) = (watched.bundle.fifo("in"), watched.bundle.fifo("out"));
        let text = read_fifo(&output);
        let request = api::ExecProcessRequest {
            stdin: input.clone(),
            stdout: output,
            terminal: true,
            ..request(&id, "tty", &typed)
        };
        watched.shim.exec_with(request).await.expect("added");
        watched.shim.start(&id, "tty").await;
        let size =
            api::ResizePtyRequest { id: id.clone(), exec_id: "tty".into(), width: 55, height: 66 };
        watched.shim.task.resize_pty(&context(), &size).await.expect("resized");
        std::io::Write::write_all(&mut write_fifo(&input), b"word\n").expect("written");
        assert_eq!(watched.shim.wait(&id, "tty").await, 12);
        watched.shim.delete(&id, "tty").await.expect("deleted");
        let text = text.await.expect("read");
        assert!(text.contains("/dev/pts/0"), "{text}");
        assert!(text.contains("got word"), "{text}");
        assert!(text.contains("66 55"), "{text}");
        let log = watched.log();
        assert!(!log.contains(ASKED), "{log}");
        watched.finish().await;
    });
}
