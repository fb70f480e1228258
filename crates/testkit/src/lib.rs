//! Test harness: images built from busybox, a local registry, daemons on private roots, runners
//! for the command lines, and a leak checker.
//!
//! Used by tests only, so failures are panics that say what was tried and show the output of the
//! program concerned. Everything started here lives in a temporary directory with a short name
//! (unix socket paths end at 107 bytes), is tracked by pid, and is torn down on drop.
//!
//! ```no_run
//! use gantry_testkit::{Daemon, Image, Registry};
//!
//! let registry = Registry::start();
//! let reference = Image::busybox().push(&registry, "busybox:1");
//! let daemon = Daemon::gantryd().start();
//! let ctr = daemon.ctr();
//! ctr.ok(["images", "pull", "--plain-http", &reference]);
//! assert_eq!(ctr.ok(["run", "--rm", &reference, "c1", "echo", "hi"]), "hi\n");
//! drop(ctr);
//! daemon.assert_clean();
//! ```
#![forbid(unsafe_code)]

mod archives;
mod command;
mod daemon;
mod http;
mod image;
mod layer;
mod leaks;
mod patience;
mod programs;
mod pty;
mod registry;
mod stub;
mod tls;
mod vm;

pub use command::{Background, Ctr, Output};
pub use daemon::{Daemon, DaemonBuilder, DaemonKind};
pub use image::{Image, ImageBuilder, busybox_dir};
pub use layer::{Compression, Layer};
pub use leaks::{Counters, Leaks};
pub use patience::{eventually, eventually_within, seed};
pub use programs::{built_program, criu_dir, sid_program, system_program};
pub use pty::Pty;
pub use registry::Registry;
pub use stub::{Reply, StubRegistry};
pub use tls::{Certificates, TlsRegistry};
pub use vm::{Cut, RecordedDisk, Unflushed, Vm, VmOutput, WriteLog};

/// Two tests of one story: on Debian's containerd and on gantryd. The test's own
/// `support::with_daemon` takes the kind of daemon and the story.
#[macro_export]
#[allow(clippy::crate_in_macro_def, reason = "it is the test's own module")]
macro_rules! on_both {
    ($story:ident, $containerd:ident, $gantryd:ident) => {
        #[test]
        fn $containerd() {
            crate::support::with_daemon($crate::DaemonKind::Containerd, $story);
        }

        #[test]
        fn $gantryd() {
            crate::support::with_daemon($crate::DaemonKind::Gantryd, $story);
        }
    };
}
