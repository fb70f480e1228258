//! The conformance suite of [`Snapshotter`].
//!
//! [`records`] needs no privilege; [`trees`] mounts what it gets below a given directory and needs
//! root. Both may run on a snapshotter in use: all names begin with `suite-`, and everything made
//! is removed again. Failures panic.

mod records;
mod trees;

use gantry_core::Labels;
use gantry_errdefs::Result;
use gantry_errdefs::expect::{fails, ok};

use crate::{CommitOptions, Snapshotter};

pub use records::records;
pub use trees::{Counts, rebase, trees};

/// Prepares `key` on `parent` and commits it as `name`, empty.
///
/// # Errors
/// Those of the snapshotter.
pub async fn layer(sn: &dyn Snapshotter, name: &str, parent: Option<&str>) -> Result<()> {
    let key = format!("{name}-key");
    sn.prepare(&key, parent, Labels::new()).await?;
    sn.commit(name, &key, CommitOptions::default()).await
}

/// Removes `names` in order.
async fn remove_all(sn: &dyn Snapshotter, names: &[&str]) {
    for name in names {
        ok(sn.remove(name).await);
    }
}
