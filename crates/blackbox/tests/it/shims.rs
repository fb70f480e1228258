//! Shims and daemons mixed: ours under Debian's containerd, Debian's under gantryd.

use gantry_testkit::{Daemon, Image, built_program, eventually, system_program};

use crate::rig::{Client, Rig};

/// What any daemon with any shim must do.
fn life(rig: &mut Rig, runtime: &str) {
    let image = rig.import(&Image::busybox(), "docker.io/library/busybox:1");
    let with = ["run", "--rm", "--runtime", runtime, &image];
    let out = rig.client.run(with.iter().copied().chain(["c1", "sh", "-c", "echo hi; exit 6"]));
    assert_eq!((out.stdout.as_str(), out.code), ("hi\n", 6), "{}", out.stderr);
    rig.client.ok(["run", "-d", "--runtime", runtime, &image, "c2", "sleep", "1000"]);
    let out = rig.client.run(["tasks", "exec", "--exec-id", "e1", "c2", "sh", "-c", "exit 7"]);
    assert_eq!(out.code, 7, "{}", out.stderr);
    rig.client.ok(["tasks", "pause", "c2"]);
    rig.client.ok(["tasks", "resume", "c2"]);
    assert!(rig.client.ok(["tasks", "metrics", "c2"]).contains("c2"));
    rig.daemon.restart();
    eventually("the task is found again", || {
        let list = rig.client.ok(["tasks", "ls"]);
        if list.contains("RUNNING") { Ok(()) } else { Err(list) }
    });
    rig.remove("c2");
    rig.daemon.assert_clean();
}

#[test]
fn root_our_shim_under_debian_containerd() {
    let shim = built_program("containerd-shim-runc-v2");
    let mut rig = Rig::with(Daemon::containerd().start(), Client::Ctr);
    life(&mut rig, shim.to_str().unwrap());
}

#[test]
fn root_debian_shim_under_gantryd() {
    let shim = system_program("containerd-shim-runc-v2");
    let mut rig = Rig::with(Daemon::gantryd().start(), Client::Ctr);
    life(&mut rig, shim.to_str().unwrap());
}

#[test]
fn root_old_runtime_names_are_served_by_our_shim() {
    let rig = Rig::with(Daemon::gantryd().start(), Client::Ctr);
    let image = rig.busybox();
    for (n, runtime) in
        ["io.containerd.runtime.v1.linux", "io.containerd.runc.v1"].iter().enumerate()
    {
        let id = format!("c{n}");
        let out = rig.client.run(["run", "--rm", "--runtime", runtime, &image, &id, "echo", "hi"]);
        assert_eq!((out.stdout.as_str(), out.code), ("hi\n", 0), "{runtime}: {}", out.stderr);
    }
    rig.daemon.assert_clean();
}

#[test]
fn root_an_unknown_runtime_is_named_in_the_error() {
    let rig = Rig::with(Daemon::gantryd().start(), Client::Ctr);
    let image = rig.busybox();
    let args = ["run", "--rm", "--runtime", "io.containerd.nobody.v9", &image, "c1", "true"];
    let error = rig.client.fail(args);
    assert!(error.contains("containerd-shim-nobody-v9"), "{error}");
    let _ = rig.client.run(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

#[test]
fn root_our_shim_is_started_by_one_exec_and_cannot_be_written_to() {
    let rig = Rig::with(Daemon::gantryd().start(), Client::Ctr);
    let image = rig.busybox();
    // A file of its own: what runs anywhere is busy, which is another refusal.
    let own = tempfile::tempdir().unwrap();
    let path = own.path().join("containerd-shim-runc-v2");
    std::fs::copy(built_program("containerd-shim-runc-v2"), &path).unwrap();
    let path = path.to_str().unwrap();
    rig.client.ok(["run", "-d", "--runtime", path, &image, "c1", "sleep", "1000"]);
    let children = format!("/proc/{0}/task", rig.daemon.pid());
    let children = std::fs::read_dir(children).unwrap().flat_map(|thread| {
        let list = thread.unwrap().path().join("children");
        let list = std::fs::read_to_string(list).unwrap_or_default();
        list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    });
    let children: Vec<String> = children.collect();
    let [shim] = &children[..] else { panic!("the daemon's children: {children:?}") };
    let name = std::fs::read_to_string(format!("/proc/{shim}/comm")).unwrap();
    assert_eq!(name, "containerd-shim\n");
    // As a container would do it that sees the process: keep the program open until nobody runs it.
    let program = std::fs::File::open(format!("/proc/{shim}/exe")).unwrap();
    rig.remove("c1");
    eventually("the shim's end", || {
        let alive = std::path::Path::new("/proc").join(shim).exists();
        if alive { Err("it lives".to_owned()) } else { Ok(()) }
    });
    let path = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&program));
    let refused = std::fs::OpenOptions::new().write(true).open(path).expect_err("read-only");
    const EROFS: i32 = 30;
    assert_eq!(refused.raw_os_error(), Some(EROFS));
    rig.daemon.assert_clean();
}
