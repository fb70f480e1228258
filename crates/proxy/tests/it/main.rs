//! Proxies to real daemons, whose snapshots and content services are plugins like any other.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod answers;
mod suites;

use gantry_proxy::Plugin;
use gantry_testkit::{Daemon, DaemonBuilder};

/// A daemon that collects no garbage: nothing that a proxy makes has a root there.
fn without_gc(daemon: DaemonBuilder) -> Daemon {
    daemon.config("[plugins.\"io.containerd.gc.v1.scheduler\"]\n  startup_delay = \"10h\"").start()
}

fn plugin(name: &str, daemon: &Daemon) -> Plugin {
    Plugin::new(name, daemon.address().to_str().unwrap()).unwrap()
}
