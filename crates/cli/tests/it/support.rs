//! A daemon with a client, per scenario.

use gantry_testkit::{Ctr, Daemon, Image, Registry};

/// What a scenario works with.
pub(crate) struct World {
    pub(crate) registry: Registry,
    pub(crate) daemon: Daemon,
    /// The client of this run: `ctr` or `gantry`.
    pub(crate) ctl: Ctr,
}

impl World {
    /// Pushes `image` into the registry and pulls it into the daemon.
    pub(crate) fn pull(&self, image: &Image, name: &str) -> String {
        let reference = image.push(&self.registry, name);
        self.ctl.ok(["images", "pull", "--plain-http", &reference]);
        reference
    }

    /// The usual image.
    pub(crate) fn busybox(&self) -> String {
        self.pull(&Image::busybox(), "busybox:1")
    }

    /// Removes images and collects their content.
    pub(crate) fn remove_images(&self) {
        for name in self.ctl.ok(["images", "ls", "-q"]).lines() {
            self.ctl.ok(["images", "rm", "--sync", name]);
        }
    }
}

/// Runs a scenario with each client on a gantryd of its own; each must leave it clean.
pub(crate) fn with_each_client(scenario: impl Fn(&mut World)) {
    for program in ["ctr", "gantry"] {
        eprintln!("--- with {program}");
        with_client(program, Daemon::gantryd().start(), &scenario);
    }
}

/// Runs a scenario with one client on `daemon`, which it must leave clean.
pub(crate) fn with_client(program: &str, daemon: Daemon, scenario: impl Fn(&mut World)) {
    let ctl = if program == "ctr" { daemon.ctr() } else { daemon.gantry() };
    let mut world = World { registry: Registry::start(), daemon, ctl };
    scenario(&mut world);
    world.remove_images();
    world.daemon.assert_clean();
}
