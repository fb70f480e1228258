//! The shim as a pod.

use gantry_api::containerd::runtime::sandbox::v1 as api;
use gantry_api::containerd::runtime::sandbox::v1::sandbox_ttrpc::SandboxClient;
use gantry_ttrpc::Client;

use crate::harness::*;

#[test]
fn root_a_sandbox_lives_until_it_is_shut_down_and_takes_its_containers_along() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let pod = SandboxClient::new(Client::connect(&shim.address).expect("listens"));
        let sandbox_id = "pod".to_owned();
        let ping = api::PingRequest { sandbox_id: sandbox_id.clone() };
        let err = pod.ping_sandbox(&context(), &ping).await.expect_err("there is none yet");
        assert!(err.is_not_found());
        let create =
            api::CreateSandboxRequest { sandbox_id: sandbox_id.clone(), ..Default::default() };
        pod.create_sandbox(&context(), &create).await.expect("created");
        let again = pod.create_sandbox(&context(), &create).await;
        assert!(again.expect_err("there is one").is_already_exists());
        let start = api::StartSandboxRequest { sandbox_id: sandbox_id.clone() };
        let started = pod.start_sandbox(&context(), &start).await.expect("started");
        assert_eq!(started.pid, shim.pid);
        let status = api::SandboxStatusRequest { sandbox_id: sandbox_id.clone(), verbose: true };
        let told = pod.sandbox_status(&context(), &status).await.expect("told");
        assert_eq!(told.state, "SANDBOX_READY");
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        let stop = api::StopSandboxRequest { sandbox_id: sandbox_id.clone(), timeout_secs: 1 };
        pod.stop_sandbox(&context(), &stop).await.expect("stopped");
        let wait = api::WaitSandboxRequest { sandbox_id: sandbox_id.clone() };
        assert_eq!(pod.wait_sandbox(&context(), &wait).await.expect("ended").exit_status, 0);
        let told = pod.sandbox_status(&context(), &status).await.expect("told");
        assert_eq!(told.state, "SANDBOX_NOTREADY");
        assert_eq!(shim.wait(&bundle.id, "").await, 137);
        shim.delete(&bundle.id, "").await.expect("deleted");
        // The task service's own end is not the pod's.
        let end = gantry_api::containerd::task::v3::ShutdownRequest::default();
        shim.task.shutdown(&context(), &end).await.expect("ignored");
        pod.ping_sandbox(&context(), &ping).await.expect("lives");
        let shutdown = api::ShutdownSandboxRequest { sandbox_id };
        // It may be gone before it has answered.
        let _ = pod.shutdown_sandbox(&context(), &shutdown).await;
        shim.shutdown(&bundle.id).await;
        assert_no_cgroup(&bundle.id);
    });
}
