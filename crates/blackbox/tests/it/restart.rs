//! Containers outlive the daemon: output, wait, exec and exit codes across restarts.

use std::fs;

use gantry_testkit::eventually;

use crate::rig::{Rig, rows};

scenarios!(records_are_still_there, a_container_lives_on, exit_while_the_daemon_is_down);
gantryd_scenarios!(killed_daemon_finds_its_containers, output_keeps_flowing);

fn records_are_still_there(rig: &mut Rig) {
    let image = rig.busybox();
    rig.client.ok(["containers", "create", "--label", "colour=blue", &image, "c1", "true"]);
    rig.client.ok(["leases", "create", "--id", "l1"]);
    // What nothing refers to (the archive's own index) may go at any time: it goes now.
    rig.client.ok(["leases", "create", "--id", "gc"]);
    rig.client.ok(["leases", "delete", "--sync", "gc"]);
    let images = rig.client.ok(["images", "ls"]);
    let content = rig.client.ok(["content", "ls", "-q"]);
    let snapshots = rig.client.ok(["snapshots", "ls"]);
    rig.daemon.restart();
    assert_eq!(rig.client.ok(["images", "ls"]), images);
    assert_eq!(rig.client.ok(["content", "ls", "-q"]), content);
    assert_eq!(rig.client.ok(["snapshots", "ls"]), snapshots);
    assert_eq!(rig.client.ok(["leases", "ls", "-q"]).trim(), "l1");
    assert!(rig.client.ok(["containers", "info", "c1"]).contains("blue"));
    assert_eq!(rig.client.ok(["run", "--rm", &image, "c2", "echo", "hi"]), "hi\n");
}

fn a_container_lives_on(rig: &mut Rig) {
    let image = rig.busybox();
    rig.sleeper(&image, "c1");
    let before = rows(&rig.client.ok(["tasks", "ls"]));
    rig.daemon.restart();
    eventually("the task is back", || {
        let after = rows(&rig.client.ok(["tasks", "ls"]));
        if after == before { Ok(()) } else { Err(format!("{after:?}")) }
    });
    let out = rig.client.ok(["tasks", "exec", "--exec-id", "e1", "c1", "cat", "/proc/1/comm"]);
    assert_eq!(out, "sleep\n");
    rig.remove("c1");
    rig.daemon.assert_clean();
}

fn exit_while_the_daemon_is_down(rig: &mut Rig) {
    let image = rig.busybox();
    let flag = rig.scratch("shared");
    fs::create_dir(&flag).unwrap();
    let mount = format!("type=bind,src={},dst=/mnt,options=rbind:rw", flag.display());
    let script = "while [ ! -e /mnt/go ]; do sleep 0.05; done; touch /mnt/gone; exit 23";
    rig.client.ok(["run", "-d", "--mount", &mount, &image, "c1", "sh", "-c", script]);
    rig.daemon.stop();
    fs::write(flag.join("go"), "").unwrap();
    eventually("the container ends", || {
        if flag.join("gone").exists() { Ok(()) } else { Err("it still runs".to_owned()) }
    });
    std::thread::sleep(std::time::Duration::from_millis(200));
    rig.daemon.start_again();
    eventually("the task is stopped", || {
        let list = rig.client.ok(["tasks", "ls"]);
        if list.contains("STOPPED") { Ok(()) } else { Err(list) }
    });
    let out = rig.client.run(["tasks", "delete", "c1"]);
    assert!(out.stderr.contains("exit code 23"), "the exact code: {}", out.stderr);
    rig.client.ok(["containers", "delete", "c1"]);
    rig.daemon.assert_clean();
}

fn killed_daemon_finds_its_containers(rig: &mut Rig) {
    let image = rig.busybox();
    for id in ["c1", "c2", "c3"] {
        rig.sleeper(&image, id);
    }
    rig.daemon.kill9();
    rig.daemon.start_again();
    eventually("all three run", || {
        let list = rig.client.ok(["tasks", "ls"]);
        if list.matches("RUNNING").count() == 3 { Ok(()) } else { Err(list) }
    });
    for id in ["c1", "c2", "c3"] {
        rig.client.ok(["tasks", "exec", "--exec-id", "e1", id, "true"]);
        rig.remove(id);
    }
    rig.daemon.assert_clean();
}

fn output_keeps_flowing(rig: &mut Rig) {
    let image = rig.busybox();
    let log = rig.scratch("out.log");
    let uri = format!("file://{}", log.display());
    let script = "i=0; while :; do echo tick-$i; i=$((i+1)); sleep 0.05; done";
    rig.client.ok(["run", "-d", "--log-uri", &uri, &image, "c1", "sh", "-c", script]);
    let lines = || fs::read_to_string(&log).unwrap_or_default().lines().count();
    eventually("output begins", || if lines() > 2 { Ok(()) } else { Err(String::new()) });
    rig.daemon.kill9();
    let at_kill = lines();
    eventually("output goes on without the daemon", || {
        if lines() > at_kill + 5 { Ok(()) } else { Err(format!("{} lines", lines())) }
    });
    rig.daemon.start_again();
    let at_start = lines();
    eventually("and after its return", || {
        if lines() > at_start + 5 { Ok(()) } else { Err(format!("{} lines", lines())) }
    });
    let text = fs::read_to_string(&log).unwrap();
    for (n, line) in text.lines().enumerate() {
        assert_eq!(line, format!("tick-{n}"), "no line is lost");
    }
    rig.remove("c1");
}
