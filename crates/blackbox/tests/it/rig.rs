//! A daemon, a client, a registry and an image: what every scenario starts from.

use std::path::PathBuf;

use gantry_testkit::{Ctr, Daemon, DaemonKind, Image, Registry};

/// Which client a scenario runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    /// Debian's `ctr`.
    Ctr,
    /// The `ctr` of containerd 2, of Debian sid.
    Ctr2,
    /// Our `gantry`.
    Gantry,
}

/// One scenario's own daemon and client. Everything is torn down on drop.
pub(crate) struct Rig {
    /// The client, in the daemon's own namespace.
    pub(crate) client: Ctr,
    /// The daemon.
    pub(crate) daemon: Daemon,
    kind: Client,
    registry: Option<Registry>,
}

impl Rig {
    /// Starts a daemon.
    pub(crate) fn new(daemon: DaemonKind, kind: Client) -> Self {
        let builder = match daemon {
            DaemonKind::Gantryd => Daemon::gantryd(),
            DaemonKind::Containerd => Daemon::containerd(),
        };
        Self::with(builder.start(), kind)
    }

    /// Takes a daemon that runs already.
    pub(crate) fn with(daemon: Daemon, kind: Client) -> Self {
        let client = match kind {
            Client::Ctr => daemon.ctr(),
            Client::Ctr2 => daemon.ctr2(),
            Client::Gantry => daemon.gantry(),
        };
        Self { client, daemon, kind, registry: None }
    }

    /// Which client this is.
    pub(crate) fn kind(&self) -> Client {
        self.kind
    }

    /// The rig's registry, started on first use.
    pub(crate) fn registry(&mut self) -> &Registry {
        self.registry.get_or_insert_with(Registry::start)
    }

    /// Imports `image` under `name` and returns the name.
    pub(crate) fn import(&self, image: &Image, name: &str) -> String {
        let path = self.scratch("import.tar");
        image.write_oci_tar(&path, name);
        self.client.ok(["images", "import", path.to_str().unwrap()]);
        std::fs::remove_file(path).unwrap();
        name.to_owned()
    }

    /// Imports the plain busybox image.
    pub(crate) fn busybox(&self) -> String {
        self.import(&Image::busybox(), "docker.io/library/busybox:1")
    }

    /// Pushes `image` to the rig's registry and pulls it.
    pub(crate) fn pull(&mut self, image: &Image, name: &str) -> String {
        let reference = image.push(self.registry(), name);
        self.client.ok(["images", "pull", "--plain-http", &reference]);
        reference
    }

    /// A path beside the daemon's own directories.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.daemon.dir().join(name)
    }

    /// Starts a container that sleeps.
    pub(crate) fn sleeper(&self, image: &str, id: &str) {
        self.client.ok(["run", "-d", image, id, "sleep", "1000"]);
    }

    /// Kills and removes a container and its task.
    pub(crate) fn remove(&self, id: &str) {
        self.client.ok(["tasks", "delete", "--force", id]);
        self.client.ok(["containers", "delete", id]);
    }
}

/// Rows of a table without its header, split into columns.
pub(crate) fn rows(table: &str) -> Vec<Vec<String>> {
    table
        .lines()
        .skip(1)
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .filter(|row: &Vec<String>| !row.is_empty())
        .collect()
}

/// One test: a scenario with one client on one daemon.
macro_rules! scenario_on {
    ($test:ident, $name:ident, $daemon:ident, $client:ident) => {
        #[test]
        fn $test() {
            use crate::rig::{Client, Rig};

            super::$name(&mut Rig::new(gantry_testkit::DaemonKind::$daemon, Client::$client));
        }
    };
}

/// Runs each scenario with `ctr` and `gantry` on gantryd, and with `ctr` on Debian's containerd.
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                scenario_on!(root_ctr_on_gantryd, $name, Gantryd, Ctr);
                scenario_on!(root_gantry_on_gantryd, $name, Gantryd, Gantry);
                scenario_on!(root_ctr_on_containerd, $name, Containerd, Ctr);
            }
        )*
    };
}

/// Runs each scenario with `ctr` and `gantry` on gantryd only: what containerd does worse, or
/// not at all.
macro_rules! gantryd_scenarios {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                scenario_on!(root_ctr_on_gantryd, $name, Gantryd, Ctr);
                scenario_on!(root_gantry_on_gantryd, $name, Gantryd, Gantry);
            }
        )*
    };
}

/// Runs each scenario with containerd 2's `ctr` and with `gantry` on gantryd, and with that `ctr` on
/// containerd 2: what goes by the transfer service.
macro_rules! transfer_scenarios {
    ($($name:ident),* $(,)?) => {
        $(
            mod $name {
                scenario_on!(root_ctr2_on_gantryd, $name, Gantryd, Ctr2);
                scenario_on!(root_gantry_on_gantryd, $name, Gantryd, Gantry);

                #[test]
                fn root_ctr2_on_containerd2() {
                    let daemon = gantry_testkit::Daemon::containerd2().start();
                    super::$name(&mut crate::rig::Rig::with(daemon, crate::rig::Client::Ctr2));
                }
            }
        )*
    };
}
