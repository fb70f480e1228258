//! The snapshotters against the suite, a model, and crashes.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking, helpers included")]

mod crash;
mod erofs;
mod filesystem;
mod model;
mod others;
mod overlay;
mod power;
mod quota;
mod suite;
mod upkeep;
mod volatile;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use gantry_snapshots::{Native, NativeConfig, Overlayfs, OverlayfsConfig, Snapshotter};
use gantry_store::{MemStore, Store};
use tempfile::TempDir;

/// How long a test waits for what happens in the background, in steps.
const PATIENCE_STEPS: u32 = 1000;
const PATIENCE_STEP: Duration = Duration::from_millis(10);

/// Root and database of a snapshotter that can be closed and opened again.
struct Place {
    dir: TempDir,
    store: Arc<dyn Store>,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), store: Arc::new(MemStore::new()) }
    }

    fn root(&self) -> &Path {
        self.dir.path()
    }

    fn overlay(&self) -> Overlayfs {
        self.overlay_with(OverlayfsConfig::default())
    }

    fn overlay_with(&self, config: OverlayfsConfig) -> Overlayfs {
        Overlayfs::open(self.root(), config, Arc::clone(&self.store)).unwrap()
    }

    fn native(&self) -> Native {
        Native::open(self.root(), NativeConfig::default(), Arc::clone(&self.store)).unwrap()
    }

    /// Waits for removed snapshots to be deleted.
    async fn no_dirs_soon(&self) {
        for _ in 0..PATIENCE_STEPS {
            if self.dirs().is_empty() {
                return;
            }
            tokio::time::sleep(PATIENCE_STEP).await;
        }
        panic!("{:?} are left", self.dirs());
    }

    /// Names in the directory of snapshots, sorted.
    fn dirs(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(self.root().join("snapshots"))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

async fn names(sn: &dyn Snapshotter) -> Vec<String> {
    let mut names = Vec::new();
    sn.walk(&mut |info| {
        names.push(info.name);
        Ok(())
    })
    .await
    .unwrap();
    names.sort();
    names
}
