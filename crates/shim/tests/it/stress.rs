//! Many times the same, and what it leaves behind.

use crate::harness::*;

/// Rounds, unless the environment asks for more: the numbers we promise take minutes.
fn rounds(default: u32) -> u32 {
    std::env::var("GANTRY_TEST_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(default)
}

/// The pages only this process has, in kB.
fn private_kb(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("lives");
    let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).expect("a kernel's");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

#[test]
fn root_execs_leave_nothing_in_memory() {
    run_for(rounds(200), async {
        let daemon = Daemon::start();
        let bundle = daemon.bundle(&["sleep", "1000"]);
        let shim = daemon.shim(&bundle).await;
        let id = bundle.id.as_str();
        shim.create(&bundle).await;
        shim.start(id, "").await;
        let run = async |exec: String| {
            shim.exec(id, &exec, &["true"]).await.expect("added");
            shim.start(id, &exec).await;
            assert_eq!(shim.wait(id, &exec).await, 0);
            shim.delete(id, &exec).await.expect("deleted");
        };
        for n in 0..20 {
            run(format!("warm{n}")).await;
        }
        let before = private_kb(shim.pid);
        // Many at once need memory at once.
        for n in 0..rounds(200) / 10 {
            let at_once = (0..10).map(|m| run(format!("e{n}-{m}")));
            futures_util::future::join_all(at_once).await;
        }
        // What the calls have freed is given back a moment after the last one.
        let allowed = before + before / 20 + 16;
        let small = || (private_kb(shim.pid) <= allowed).then_some(());
        eventually(&format!("at most {allowed} kB"), small).await;
        let descriptors =
            std::fs::read_dir(format!("/proc/{}/fd", shim.pid)).expect("lists").count();
        assert!(descriptors < 40, "{descriptors} descriptors");
        let threads = std::fs::read_dir(format!("/proc/{}/task", shim.pid)).expect("lists").count();
        assert_eq!(threads, 1, "one thread at rest");
        shim.finish(&bundle).await;
    });
}

#[test]
fn root_every_kill_for_memory_is_told_once_and_first() {
    run_for(rounds(10), async {
        let daemon = Daemon::start();
        for _ in 0..rounds(10) {
            // The init itself is the victim, and dies at once.
            let mut bundle = daemon.bundle(&["sh", "-c", "x=a; while true; do x=$x$x; done"]);
            bundle.spec["linux"]["resources"]["memory"] = serde_json::json!({"limit": 12_000_000});
            bundle.save();
            let shim = daemon.shim(&bundle).await;
            shim.create(&bundle).await;
            shim.start(&bundle.id, "").await;
            assert_eq!(shim.wait(&bundle.id, "").await, 137);
            shim.finish(&bundle).await;
            let ooms = daemon.events.ooms();
            assert_eq!(ooms.iter().filter(|oom| oom.container_id == bundle.id).count(), 1);
        }
        // It may be killed before its start is told.
        const LIFE: [&str; 5] = ["create", "start", "oom", "exit", "delete"];
        for (n, topic) in daemon.events.topics().iter().enumerate() {
            assert_eq!(*topic, format!("/tasks/{}", LIFE[n % LIFE.len()]), "event {n}");
        }
    });
}
