//! dockerd with a containerd of its own, which is gantryd under that name.

use std::os::unix::fs::symlink;

use gantry_testkit::{built_program, eventually_within};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

use super::{Dockerd, Engine, START_TIMEOUT};

fn pid_of_containerd(docker: &Dockerd) -> Pid {
    let file = docker.dir.path().join("exec/containerd/containerd.pid");
    let pid = std::fs::read_to_string(file).unwrap().trim().parse().unwrap();
    Pid::from_raw(pid).unwrap()
}

#[test]
fn root_docker_manages_gantryd() {
    let programs = tempfile::tempdir().unwrap();
    symlink(built_program("gantryd"), programs.path().join("containerd")).unwrap();
    let shim = "containerd-shim-runc-v2";
    symlink(built_program(shim), programs.path().join(shim)).unwrap();
    let mut docker = Dockerd::with(Engine::Own(programs.path().to_owned()), false);
    docker.load();
    let first = pid_of_containerd(&docker);
    let exe = std::fs::read_link(format!("/proc/{}/exe", first.as_raw_nonzero())).unwrap();
    assert_eq!(exe, built_program("gantryd").canonicalize().unwrap());

    let output = docker.run_image(&["--rm"], &["sh", "-c", "echo managed; exit 8"]);
    assert_eq!((output.stdout.as_slice(), output.status.code()), (&b"managed\n"[..], Some(8)));
    docker.detached("c1", &[], &["sleep", "1000"]);

    // It dies, dockerd starts it again, and the container is still there.
    kill_process(first, Signal::KILL).unwrap();
    eventually_within(START_TIMEOUT, "dockerd has started it again", || {
        let output = docker.run(&["exec", "c1", "echo", "back"]);
        let now = pid_of_containerd(&docker);
        if output.stdout == b"back\n" && now != first {
            Ok(())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    });
    docker.ok(&["kill", "c1"]);
    docker.until("c1", "exited 137");
    docker.ok(&["rm", "c1"]);

    // dockerd takes it along when it ends.
    let last = pid_of_containerd(&docker);
    docker.stop();
    eventually_within(START_TIMEOUT, "gantryd has ended", || match test_kill_process(last) {
        Ok(()) => Err("it still runs".to_owned()),
        Err(_) => Ok(()),
    });
}
