//! The life of containers and execs.

use gantry_api::Payload as _;
use gantry_api::containerd::runc::v1::ProcessDetails;
use gantry_api::containerd::task::v3 as api;
use gantry_api::containerd::v1::types::Status;
use gantry_api::io::containerd::cgroups;
use gantry_errdefs::Class;
use prost_types::Any;

use crate::harness::*;

#[test]
fn root_a_container_runs_and_its_exit_is_told_everywhere() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sh", "-c", "exit 7"]);
        let shim = daemon.shim(&bundle).await;
        let pid = shim.create(&bundle).await;
        let state = shim.state(&bundle.id, "").await.expect("there");
        assert_eq!((state.status(), state.pid), (Status::Created, pid));
        assert_eq!(shim.start(&bundle.id, "").await, pid);
        assert_eq!(shim.wait(&bundle.id, "").await, 7);
        let record = bundle.path.join(format!("exit-{}.json", bundle.id));
        let text = std::fs::read_to_string(record).expect("written before Wait returned");
        assert!(text.contains("\"exit_status\":7"), "{text}");
        assert_eq!(shim.wait(&bundle.id, "").await, 7, "also when asked again");
        let state = shim.state(&bundle.id, "").await.expect("there");
        assert_eq!((state.status(), state.exit_status), (Status::Stopped, 7));
        let gone = shim.kill(&bundle.id, "", 15).await.expect_err("has ended");
        assert_eq!(gone.text(), "process already finished: not found");
        let deleted = shim.delete(&bundle.id, "").await.expect("deleted");
        assert_eq!((deleted.pid, deleted.exit_status), (pid, 7));
        assert!(shim.delete(&bundle.id, "").await.expect_err("twice").is_not_found());
        daemon.events.until("/tasks/delete").await;
        let order = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
        assert_eq!(daemon.events.topics(), order);
        shim.shutdown(&bundle.id).await;
        assert_no_cgroup(&bundle.id);
    });
}

#[test]
fn root_errors_are_those_that_clients_know() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        assert!(shim.start_err(id).await.is_not_found());
        shim.create(&bundle).await;
        let again = shim.task.create(&context(), &shim.request(&bundle)).await;
        assert!(again.expect_err("exists").is_already_exists());
        let pause = api::PauseRequest { id: id.into() };
        let err = shim.task.pause(&context(), &pause).await.expect_err("not running");
        assert_eq!(err.text(), "cannot pause task in created state");
        shim.start(id, "").await;
        let err = shim.try_start(id, "").await.expect_err("runs");
        assert_eq!(
            (err.class(), err.text().as_str()),
            (Class::Unknown, "cannot start a running process")
        );
        let err = shim.delete(id, "").await.expect_err("runs");
        assert_eq!(err.text(), "cannot delete a running process");
        shim.exec(id, "e", &["true"]).await.expect("added");
        let err = shim.exec(id, "e", &["true"]).await.expect_err("added twice");
        assert!(err.is_already_exists());
        let err = shim.kill(id, "e", 9).await.expect_err("not started");
        assert!(err.is_failed_precondition(), "{err}");
        shim.task.pause(&context(), &pause).await.expect("paused");
        assert_eq!(shim.state(id, "").await.expect("there").status(), Status::Paused);
        let err = shim.exec(id, "f", &["true"]).await.expect_err("paused");
        assert_eq!(err.text(), "cannot exec in a paused state");
        let resume = api::ResumeRequest { id: id.into() };
        shim.task.resume(&context(), &resume).await.expect("resumed");
        let err = shim.task.resume(&context(), &resume).await.expect_err("runs");
        assert_eq!(err.text(), "cannot resume a running process");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_a_paused_container_can_be_killed() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        let pause = api::PauseRequest { id: bundle.id.clone() };
        shim.task.pause(&context(), &pause).await.expect("paused");
        shim.kill(&bundle.id, "", 9).await.expect("killed");
        assert_eq!(shim.wait(&bundle.id, "").await, 137);
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_the_runtimes_own_words_are_passed_on() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["nosuchprogram"]);
        let shim = daemon.shim(&bundle).await;
        let request = shim.request(&bundle);
        let err = shim.task.create(&context(), &request).await.expect_err("no such program");
        let text = err.text();
        assert!(text.starts_with("OCI runtime create failed: runc create failed: "), "{text}");
        assert!(text.contains("executable file not found in $PATH"), "{text}");
        let mut request = shim.request(&bundle);
        let options = gantry_api::containerd::runc::v1::Options {
            binary_name: "/nonexistent/runc".into(),
            ..Default::default()
        };
        request.options = Some(Any::pack(&options));
        let err = shim.task.create(&context(), &request).await.expect_err("no such runtime");
        assert!(err.text().contains("/nonexistent/runc"), "{err}");
        shim.shutdown(&bundle.id).await;
        assert_no_cgroup(&bundle.id);
    });
}

#[test]
fn root_execs_have_lives_of_their_own() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        let init = shim.create(&bundle).await;
        shim.start(id, "").await;
        shim.exec(id, "short", &["sh", "-c", "exit 5"]).await.expect("added");
        shim.start(id, "short").await;
        assert_eq!(shim.wait(id, "short").await, 5);
        shim.exec(id, "long", &["sleep", "1000"]).await.expect("added");
        let long = shim.start(id, "long").await;
        let pids = shim.task.pids(&context(), &api::PidsRequest { id: id.into() }).await;
        let mut pids = pids.expect("pids").processes;
        pids.sort_by_key(|p| p.pid != init);
        assert_eq!((pids[0].pid, &pids[0].info), (init, &None));
        let details = pids[1].info.as_ref().expect("an exec").unpack::<ProcessDetails>();
        assert_eq!(pids[1].pid, long);
        assert_eq!(details.expect("decodes").expect("details").exec_id, "long");
        shim.exec(id, "bad", &["nosuch"]).await.expect("added");
        let err = shim.try_start(id, "bad").await.expect_err("no such program");
        assert!(err.text().starts_with("OCI runtime exec failed: "), "{err}");
        shim.wait(id, "bad").await;
        shim.delete(id, "bad").await.expect("deleted");
        assert_eq!(shim.delete(id, "short").await.expect("deleted").exit_status, 5);
        assert!(shim.state(id, "short").await.expect_err("deleted").is_not_found());
        shim.kill(id, "", 9).await.expect("killed");
        assert_eq!(shim.wait(id, "").await, 137);
        assert_eq!(shim.wait(id, "long").await, 137);
        let err = shim.exec(id, "late", &["true"]).await.expect_err("stopped");
        assert_eq!(err.text(), "cannot exec in a stopped state");
        shim.finish(&bundle).await;
        let exits = daemon.events.exits();
        let order: Vec<&str> = exits.iter().map(|exit| exit.id.as_str()).collect();
        assert_eq!(order, ["short", "long", id], "the init's exit is the last");
        assert!(exits.iter().all(|exit| exit.container_id == id));
    });
}

#[test]
fn root_an_exec_that_ends_at_once_is_never_lost() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        shim.create(&bundle).await;
        shim.start(id, "").await;
        for n in 0..30 {
            let exec = format!("e{n}");
            shim.exec(id, &exec, &["sh", "-c", &format!("exit {n}")]).await.expect("added");
            shim.start(id, &exec).await;
            assert_eq!(shim.wait(id, &exec).await, n);
            shim.delete(id, &exec).await.expect("deleted");
        }
        shim.finish(&bundle).await;
        assert_eq!(daemon.events.exits().len(), 31);
    });
}

#[test]
fn root_running_out_of_memory_is_told_before_the_exit() {
    run(async {
        let daemon = Daemon::start();
        let mut bundle = daemon.bundle(&["sh", "-c", "x=a; while true; do x=$x$x; done"]);
        bundle.spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 12_000_000});
        bundle.save();
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.start(&bundle.id, "").await;
        assert_eq!(shim.wait(&bundle.id, "").await, 137);
        shim.finish(&bundle).await;
        let topics = daemon.events.topics();
        let at = |topic: &str| topics.iter().position(|t| t == topic).expect("was told");
        assert!(at("/tasks/oom") < at("/tasks/exit"), "{topics:?}");
        assert_eq!(daemon.events.ooms().len(), 1);
    });
}

#[test]
fn root_stats_and_update() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.clone();
        shim.create(&bundle).await;
        shim.start(&id, "").await;
        let update = api::UpdateTaskRequest {
            id: id.clone(),
            resources: Some(Any {
                type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
                value: br#"{"memory":{"limit":50003968},"pids":{"limit":33}}"#.to_vec(),
            }),
            ..Default::default()
        };
        shim.task.update(&context(), &update).await.expect("updated");
        let stats = shim.task.stats(&context(), &api::StatsRequest { id: id.clone() }).await;
        let stats = stats.expect("stats").stats.expect("an Any");
        if let Some(v1) = stats.unpack::<cgroups::v1::Metrics>().expect("decodes") {
            let memory = v1.memory.expect("memory").usage.expect("usage");
            assert!(memory.usage > 0);
            assert_eq!(memory.limit, 50_003_968);
            assert_eq!(v1.pids.expect("pids").limit, 33);
            assert!(v1.cpu.expect("cpu").usage.expect("usage").total > 0);
        } else {
            let v2 = stats.unpack::<cgroups::v2::Metrics>().expect("decodes").expect("v2");
            assert_eq!(v2.memory.expect("memory").usage_limit, 50_003_968);
        }
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_without_a_pid_namespace_the_rest_is_killed_with_the_init() {
    run(async {
        let daemon = Daemon::start();
        let mut bundle = daemon.bundle(&["sh", "-c", "sleep 1000 & sleep 1000 & wait"]);
        let namespaces = bundle.spec["linux"]["namespaces"].as_array_mut().expect("a list");
        namespaces.retain(|ns| ns["type"] != "pid");
        bundle.save();
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        shim.create(&bundle).await;
        shim.start(id, "").await;
        shim.exec(id, "e", &["sleep", "1000"]).await.expect("added");
        shim.start(id, "e").await;
        shim.kill(id, "", 9).await.expect("killed");
        assert_eq!(shim.wait(id, "").await, 137);
        assert_eq!(shim.wait(id, "e").await, 137);
        shim.finish(&bundle).await;
        let order: Vec<String> = daemon.events.exits().into_iter().map(|exit| exit.id).collect();
        assert_eq!(order, ["e", id]);
    });
}

#[test]
fn root_a_container_that_was_never_started_is_deleted_with_its_exit_told() {
    run(async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        shim.create(&bundle).await;
        shim.delete(&bundle.id, "").await.expect("deleted");
        daemon.events.until("/tasks/delete").await;
        assert_eq!(daemon.events.topics(), ["/tasks/create", "/tasks/exit", "/tasks/delete"]);
        shim.shutdown(&bundle.id).await;
        assert_no_cgroup(&bundle.id);
    });
}

impl Shim {
    async fn start_err(&self, id: &str) -> gantry_errdefs::Error {
        self.try_start(id, "").await.expect_err("does not exist")
    }
}
