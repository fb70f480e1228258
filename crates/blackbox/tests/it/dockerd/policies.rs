//! Restart policies, also over restarts of dockerd itself.

use gantry_testkit::{Daemon, eventually_within};

use super::{Dockerd, Engine, START_TIMEOUT};

/// Waits until `name` was restarted `count` times and is in `state`.
fn restarted(docker: &Dockerd, name: &str, count: &str, state: &str) {
    let what = format!("{name} was restarted {count} times and is {state}");
    eventually_within(START_TIMEOUT, &what, || {
        let now = docker.inspect(name, "{{.RestartCount}} {{.State.Status}}");
        if now == format!("{count} {state}") { Ok(()) } else { Err(now) }
    });
}

#[test]
fn root_docker_restarts_containers_as_told() {
    let daemon = Daemon::gantryd().start();
    let mut docker = Dockerd::with(Engine::At(daemon.address()), false);
    docker.load();
    let once = "test -e /once && exec sleep 1000; touch /once; exit $1";
    let script = |code: &'static str| ["sh", "-c", once, "sh", code];
    docker.detached("no", &["--restart=no"], &script("3"));
    docker.detached("failed", &["--restart=on-failure:3"], &script("3"));
    docker.detached("fine", &["--restart=on-failure"], &script("0"));
    docker.detached("always", &["--restart=always"], &script("0"));
    docker.detached("unless", &["--restart=unless-stopped"], &script("1"));
    docker.detached("hopeless", &["--restart=on-failure:2"], &["sh", "-c", "exit 4"]);
    restarted(&docker, "no", "0", "exited");
    restarted(&docker, "failed", "1", "running");
    restarted(&docker, "fine", "0", "exited");
    restarted(&docker, "always", "1", "running");
    restarted(&docker, "unless", "1", "running");
    restarted(&docker, "hopeless", "2", "exited");
    assert_eq!(docker.state("hopeless").trim(), "exited 4");

    // Stopped by hand, nothing is restarted...
    docker.ok(&["stop", "-t", "0", "always", "unless"]);
    assert_eq!(docker.state("always").trim(), "exited 137");
    docker.detached("on", &["--restart=unless-stopped"], &["sleep", "1000"]);
    // ... until dockerd comes back: it ends its containers, and starts those it should.
    docker.stop();
    docker.spawn();
    for name in ["always", "on"] {
        docker.until(name, "running 0");
    }
    for name in ["no", "fine", "unless"] {
        assert!(docker.state(name).starts_with("exited"), "{name}: {}", docker.state(name));
    }
    docker.ok(&["rm", "-f", "no", "failed", "fine", "always", "unless", "hopeless", "on"]);
    docker.stop();
    daemon.assert_clean();
}
