//! Daemons that come and go, and shims that die.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use gantry_api::containerd::task::v2::DeleteResponse;
use gantry_api::containerd::v1::types::Status;
use prost::Message as _;

use crate::harness::*;

#[test]
fn root_events_wait_for_a_daemon_that_is_away() {
    run(async {
        let mut daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        daemon.events.until("/tasks/create").await;
        daemon.stop().await;
        shim.start(&bundle.id, "").await;
        shim.kill(&bundle.id, "", 9).await.expect("killed");
        assert_eq!(shim.wait(&bundle.id, "").await, 137);
        tokio::time::sleep(Duration::from_millis(100)).await;
        daemon.listen();
        daemon.events.until("/tasks/exit").await;
        // A client of the new daemon finds everything as it is.
        let again = daemon.connect(&shim.address, &bundle).await;
        let state = again.state(&bundle.id, "").await.expect("there");
        assert_eq!((state.status(), state.exit_status), (Status::Stopped, 137));
        shim.finish(&bundle).await;
        let order = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
        assert_eq!(daemon.events.topics(), order);
    });
}

#[test]
fn root_delete_cleans_up_after_a_dead_shim() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        // The verb is not told of another root than runc's own: the bundle remembers it.
        let pid = shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        kill_shim(shim.pid).await;
        let out = daemon.delete_verb(&bundle);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let response = DeleteResponse::decode(out.stdout.as_slice()).expect("decodes");
        assert_eq!((response.pid, response.exit_status), (pid, 137));
        let exe = PathBuf::from(format!("/proc/{pid}/exe"));
        eventually("the container's end", || std::fs::read_link(&exe).is_err().then_some(())).await;
        assert_no_cgroup(&bundle.id);
    });
}

#[test]
fn root_delete_knows_the_exit_a_dead_shim_recorded() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "exit 9"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 9);
        kill_shim(shim.pid).await;
        let out = daemon.delete_verb(&bundle);
        let response = DeleteResponse::decode(out.stdout.as_slice()).expect("decodes");
        assert_eq!(response.exit_status, 9);
        assert_no_cgroup(&bundle.id);
    });
}

#[test]
fn root_a_shim_with_a_container_does_not_mind_being_asked_to_go() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        let sent = Command::new("kill").arg(shim.pid.to_string()).status().expect("kill runs");
        assert!(sent.success());
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(shim.state(&bundle.id, "").await.is_ok());
        shim.finish(&bundle).await;
    });
}

async fn kill_shim(pid: u32) {
    let sent = Command::new("kill").args(["-9", &pid.to_string()]).status().expect("kill runs");
    assert!(sent.success());
    let exe = PathBuf::from(format!("/proc/{pid}/exe"));
    eventually("the shim's end", || std::fs::read_link(&exe).is_err().then_some(())).await;
}
