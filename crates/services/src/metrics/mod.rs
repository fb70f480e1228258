//! What the daemon counts, as Prometheus text.
//!
//! Names are containerd's where it has one. The metrics of tasks are asked of their shims when
//! somebody asks us; one that does not answer is left out.

mod calls;
mod cgroups;
mod process;
mod text;

use std::sync::Arc;

use futures_util::{StreamExt as _, stream};
use gantry_metadata::Db;
use gantry_runtime::plugin::{Runtime, Task};

use crate::convert;
pub use calls::{Call, Calls, Messages};
use text::{Kind, Text};

/// Shims asked at a time, as for a list of tasks.
const ASKED_AT_ONCE: usize = 64;

/// Where the numbers come from.
#[derive(Clone)]
pub struct Metrics {
    db: Db,
    runtime: Arc<dyn Runtime>,
    calls: Option<Calls>,
    version: String,
    revision: String,
}

impl Metrics {
    /// The numbers of `db`, of the tasks of `runtime` and of `calls`, by a daemon of this version.
    pub fn new(
        db: Db,
        runtime: Arc<dyn Runtime>,
        calls: Option<Calls>,
        version: impl Into<String>,
        revision: impl Into<String>,
    ) -> Self {
        Self { db, runtime, calls, version: version.into(), revision: revision.into() }
    }

    /// All of them, of now.
    pub async fn text(&self) -> String {
        let mut text = Text::default();
        let build = [("version", self.version.as_str()), ("revision", self.revision.as_str())];
        text.add("containerd_build_info_total", Kind::Counter, &build, 1.0);
        let gc = self.db.gc().totals();
        for (status, count) in [("success", gc.succeeded), ("fail", gc.failed)] {
            let labels = [("status", status)];
            text.add("containerd_gc_collections_total", Kind::Counter, &labels, count as f64);
        }
        text.summary("containerd_gc_gc_seconds", gc.elapsed.as_secs_f64(), gc.succeeded);
        process::add(&mut text);
        if let Some(calls) = &self.calls {
            calls.add(&mut text);
        }
        self.tasks(&mut text).await;
        text.finish()
    }

    async fn tasks(&self, text: &mut Text) {
        let tasks = match self.runtime.tasks(None).await {
            Ok(tasks) => tasks,
            Err(err) => {
                tracing::warn!(%err, "no metrics of tasks");
                return;
            }
        };
        let asking: Vec<_> = tasks.into_iter().map(stats).collect();
        let mut answers = stream::iter(asking).buffer_unordered(ASKED_AT_ONCE);
        while let Some((task, stats)) = answers.next().await {
            let Some(stats) = stats else { continue };
            let labels = [("container_id", task.id()), ("namespace", task.namespace().as_str())];
            cgroups::add(text, &labels, &stats);
        }
    }
}

async fn stats(task: Arc<dyn Task>) -> (Arc<dyn Task>, Option<prost_types::Any>) {
    let stats = task.stats().await.ok().flatten().map(convert::any_to_wire);
    (task, stats)
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Metrics").field("version", &self.version).finish_non_exhaustive()
    }
}
