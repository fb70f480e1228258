//! Every field of a task's options, and what a user namespace changes.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use gantry_api::Payload as _;
use gantry_api::containerd::linux::runc as runctypes;
use gantry_api::containerd::runc::v1::{CheckpointOptions, Options};
use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::types::Mount;
use prost::Message as _;
use prost_types::Any;
use serde_json::json;

use crate::harness::*;

fn program(path: &Path, script: &str) {
    std::fs::write(path, script).expect("written");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).expect("mode");
}

/// A runtime that notes how it was called and has runc do it, without systemd.
fn noting_runtime(daemon: &Daemon) -> (PathBuf, PathBuf) {
    let (path, log) = (daemon.dir.path().join("noting-runc"), daemon.dir.path().join("calls"));
    let script = format!(
        "#!/bin/bash\necho \"$*\" >>{}\nargs=()\nfor a; do\n\
         [ \"$a\" = --systemd-cgroup ] || args+=(\"$a\")\ndone\nexec runc \"${{args[@]}}\"\n",
        log.display()
    );
    program(&path, &script);
    (path, log)
}

#[test]
fn root_the_runtimes_flags_are_passed_on() {
    run(async {
        let daemon = Daemon::start();
        let (runtime, log) = noting_runtime(&daemon);
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let root = daemon.dir.path().join("records");
        let options = Options {
            binary_name: runtime.display().to_string(),
            root: root.display().to_string(),
            no_pivot_root: true,
            no_new_keyring: true,
            systemd_cgroup: true,
            ..Options::default()
        };
        let mut request = shim.request(&bundle);
        request.options = Some(Any::pack(&options));
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        let home = root.join("test").join(&bundle.id);
        assert!(home.join("state.json").is_file(), "records are below root and namespace");
        shim.finish(&bundle).await;
        assert!(!home.exists());
        let calls = std::fs::read_to_string(&log).expect("was made");
        let create = calls.lines().find(|call| call.contains(" create ")).expect("one");
        for flag in ["--no-pivot", "--no-new-keyring", "--systemd-cgroup"] {
            assert!(create.contains(flag), "{flag}: {create}");
        }
        let by_root = format!("--root {}/test ", root.display());
        assert!(calls.lines().all(|call| call.contains(&by_root)), "{calls}");
    });
}

/// A container that forks while it is to be frozen may need another try.
#[test]
fn root_a_runtime_that_could_not_freeze_is_asked_again() {
    run(async {
        let daemon = Daemon::start();
        let (runtime, tries) =
            (daemon.dir.path().join("busy-runc"), daemon.dir.path().join("tries"));
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *\" pause \"*)\n\
             echo try >>{tries}\n[ $(wc -l <{tries}) -gt 2 ] || {{ echo unable to freeze >&2; exit 1; }}\n\
             esac\nexec runc \"$@\"\n",
            tries = tries.display()
        );
        program(&runtime, &script);
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let binary_name = runtime.display().to_string();
        let mut request = shim.request(&bundle);
        request.options = Some(Any::pack(&Options { binary_name, ..Options::default() }));
        shim.create_with(request).await;
        shim.start(&bundle.id, "").await;
        let pause = api::PauseRequest { id: bundle.id.clone() };
        shim.task.pause(&context(), &pause).await.expect("paused at the third try");
        assert_eq!(std::fs::read_to_string(&tries).expect("was made"), "try\n".repeat(3));
        shim.finish(&bundle).await;
    });
}

/// Streams belong to whom the options name, also those of an old client's message.
#[test]
fn root_streams_have_the_owner_that_is_asked_for() {
    run(async {
        let daemon = Daemon::start();
        let new = Any::pack(&Options { io_uid: 1234, io_gid: 1235, ..Options::default() });
        let old = Any::pack(&runctypes::CreateOptions {
            io_uid: 1234,
            io_gid: 1235,
            ..Default::default()
        });
        for options in [new, old] {
            let bundle = daemon.bundle(&["sleep", "1000"]);
            let output = bundle.fifo("out");
            let shim = daemon.shim(&bundle).await;
            let mut request = shim.request(&bundle);
            (request.stdout, request.options) = (output, Some(options));
            let pid = shim.create_with(request).await;
            shim.start(&bundle.id, "").await;
            let stream = std::fs::metadata(format!("/proc/{pid}/fd/1")).expect("is open");
            assert_eq!(stream.gid(), 1235);
            // The runtime hands the streams of a process to the process's own user.
            assert!([0, 1234].contains(&stream.uid()), "{}", stream.uid());
            shim.finish(&bundle).await;
        }
    });
}

#[test]
fn root_the_shim_joins_the_cgroup_that_is_asked_for() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["true"]);
        let cgroup = format!("/{}-shim", bundle.id);
        let options = Options { shim_cgroup: cgroup.clone(), ..Options::default() };
        let out = daemon.start_with(&bundle, |command| {
            let input = daemon.dir.path().join("options");
            std::fs::write(&input, Any::pack(&options).encode_to_vec()).expect("written");
            command.stdin(Stdio::from(std::fs::File::open(input).expect("opens")));
        });
        let address = String::from_utf8(out.stdout).expect("text");
        let shim = daemon.connect(&address, &bundle).await;
        let own = std::fs::read_to_string(format!("/proc/{}/cgroup", shim.pid)).expect("lives");
        assert!(own.lines().any(|line| line.ends_with(&format!(":{cgroup}"))), "{own}");
        shim.shutdown(&bundle.id).await;
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup").expect("cgroups").flatten() {
            // Only where the hierarchy let itself be joined.
            let _ = std::fs::remove_dir(hierarchy.path().join(cgroup.trim_start_matches('/')));
        }
    });
}

/// A root that is another user's outside: the daemon hands over a mount with mapped ids.
#[test]
fn root_a_user_namespace_on_an_idmapped_root() {
    run(async {
        let daemon = Daemon::start();
        // Who is root inside must be able to come to the root filesystem.
        let open = std::fs::Permissions::from_mode(0o711);
        std::fs::set_permissions(daemon.dir.path(), open.clone()).expect("mode");
        let mut bundle = daemon.bundle(&["sh", "-c", "id -u; echo mine > /made; cat /made"]);
        let lower = bundle.path.join("image");
        std::fs::rename(bundle.path.join("rootfs"), &lower).expect("moved");
        std::fs::create_dir(bundle.path.join("rootfs")).expect("made");
        std::fs::set_permissions(&bundle.path, open).expect("mode");
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        bundle.spec["linux"]["uidMappings"] = map.clone();
        bundle.spec["linux"]["gidMappings"] = map;
        let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.push(json!({"type": "user"}));
        bundle.save();
        let output = bundle.fifo("out");
        let shim = daemon.shim(&bundle).await;
        let mut request = shim.request(&bundle);
        request.stdout = output.clone();
        request.rootfs = vec![Mount {
            r#type: "bind".into(),
            source: lower.display().to_string(),
            target: String::new(),
            options: ["rbind", "rw", "uidmap=0:200000:65536", "gidmap=0:200000:65536"]
                .map(str::to_owned)
                .to_vec(),
        }];
        let pid = shim.create_with(request).await;
        let reader = read_fifo(&output);
        let owner = std::fs::metadata(format!("/proc/{pid}")).expect("lives").uid();
        assert_eq!(owner, 200_000, "its root is nobody outside");
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 0);
        shim.finish(&bundle).await;
        assert_eq!(reader.await.expect("reads"), "0\nmine\n");
        let made = std::fs::metadata(lower.join("made")).expect("was made");
        assert_eq!(made.uid(), 0, "and on disk it is as in the image");
    });
}

/// The field that 1.x had and later versions dropped.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct OldOptions {
    #[prost(string, tag = "7")]
    root: String,
    #[prost(string, tag = "8")]
    criu_path: String,
    #[prost(string, tag = "10")]
    criu_image_path: String,
    #[prost(string, tag = "11")]
    criu_work_path: String,
}

/// With every way to name criu's paths: the processes go on where they were, on the client's FIFO.
#[test]
fn root_criu_is_told_where_everything_is() {
    run_for(10, async {
        let dir = std::env::var_os("GANTRY_CRIU").unwrap_or("/var/cache/gantry-criu".into());
        let criu = Path::new(&dir).join("criu");
        assert!(criu.is_file(), "criu is missing: run scripts/install-criu.sh");
        let daemon = Daemon::start();
        let (image, work) = (daemon.dir.path().join("image"), daemon.dir.path().join("work"));
        let options = |restore: bool| OldOptions {
            root: daemon.dir.path().join("runc").display().to_string(),
            criu_path: criu.display().to_string(),
            criu_image_path: if restore { image.display().to_string() } else { String::new() },
            criu_work_path: if restore { work.display().to_string() } else { String::new() },
        };
        let request = |shim: &Shim, bundle: &Bundle, restore: bool, output: &str| {
            let mut request = shim.request(bundle);
            let url = request.options.as_ref().expect("options").type_url.clone();
            let value = options(restore).encode_to_vec();
            request.options = Some(Any { type_url: url, value });
            request.stdout = output.to_owned();
            request
        };
        let count = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.02; done";
        let bundle = daemon.bundle(&["sh", "-c", count]);
        let output = bundle.fifo("out");
        let shim = daemon.shim(&bundle).await;
        shim.create_with(request(&shim, &bundle, false, &output)).await;
        let reader = read_fifo(&output);
        shim.start(&bundle.id, "").await;
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let how = CheckpointOptions { exit: true, file_locks: true, ..Default::default() };
        let checkpoint = api::CheckpointTaskRequest {
            id: bundle.id.clone(),
            path: image.display().to_string(),
            options: Some(Any::pack(&how)),
        };
        shim.task.checkpoint(&context(), &checkpoint).await.expect("checkpointed");
        assert_eq!(shim.wait(&bundle.id, "").await, 137);
        shim.delete(&bundle.id, "").await.expect("deleted");
        let before = reader.await.expect("reads");
        let last: u64 = before.lines().last().expect("a line").parse().expect("a number");
        assert!(last > 1);

        let output = bundle.fifo("again");
        let created = shim.create_with(request(&shim, &bundle, true, &output)).await;
        assert_eq!(created, 0, "there is no process before the start");
        let reader = read_fifo(&output);
        let pid = shim.start(&bundle.id, "").await;
        assert_ne!(pid, 0);
        assert!(work.join("restore.log").is_file(), "criu's log is in the work directory");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        shim.kill(&bundle.id, "", 9).await.expect("runs");
        shim.finish(&bundle).await;
        let after = reader.await.expect("reads");
        let first: u64 = after.lines().next().expect("a line").parse().expect("a number");
        assert!(first == last || first == last + 1, "{last} is followed by {first}");
    });
}
