//! Asking many tasks at once: none holds the others up.

use std::borrow::Cow;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use gantry_api::containerd::types::Metric;
use gantry_api::containerd::v1::types::Process;
use gantry_core::filters::{self, Adaptor, Filter};
use gantry_errdefs::{Error, Result};
use gantry_runtime::plugin::Task;

use crate::convert;

/// Shims asked at a time. A stuck one takes its whole deadline, so a few must not stop the rest;
/// with this many a host of hundreds answers in a handful of round trips.
const ASKED_AT_ONCE: usize = 64;

/// The states of `tasks`; one whose shim does not answer is left out.
pub(super) async fn processes(tasks: Vec<Arc<dyn Task>>) -> Vec<Process> {
    stream::iter(tasks)
        .map(|task| async move {
            match super::process(task.as_ref(), "").await {
                Ok(process) => Some(process),
                Err(e) if e.is_not_found() => None,
                Err(e) => {
                    tracing::warn!(task = task.id(), error = %e, "left out of a list of tasks");
                    None
                }
            }
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// The filter of a metrics call; clients know a bad one as Unknown.
pub(super) fn metrics_filter(texts: &[String]) -> Result<Filter> {
    filters::parse_all(texts).map_err(|e| Error::unknown(e.text()))
}

/// The metrics of those of `tasks` that match; one that has none to give is left out.
pub(super) async fn metrics(tasks: Vec<Arc<dyn Task>>, filter: &Filter) -> Vec<Metric> {
    let wanted = tasks.into_iter().filter(|task| filter.matches(&View(task.as_ref())));
    stream::iter(wanted)
        .map(|task| async move {
            match task.stats().await {
                Ok(Some(data)) => Some(Metric {
                    timestamp: convert::time_to_wire(std::time::SystemTime::now()),
                    id: task.id().to_owned(),
                    data: Some(convert::any_to_wire(data)),
                }),
                Ok(None) => None,
                Err(e) => {
                    if !e.is_not_found() {
                        tracing::warn!(task = task.id(), error = %e, "no metrics");
                    }
                    None
                }
            }
        })
        .buffer_unordered(ASKED_AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await
}

/// A task as filters see it.
struct View<'a>(&'a dyn Task);

impl Adaptor for View<'_> {
    fn field(&self, path: &[&str]) -> Option<Cow<'_, str>> {
        match path {
            ["id"] => filters::text_field(self.0.id()),
            ["namespace"] => filters::text_field(self.0.namespace().as_str()),
            _ => None,
        }
    }
}
