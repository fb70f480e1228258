//! Asking many tasks at once: none holds the others up.

use std::borrow::Cow;
use std::future::Future;
use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::stream;
use gantry_api::containerd::types::Metric;
use gantry_api::containerd::v1::types::Process;
use gantry_core::filters::{self, Adaptor, Filter};
use gantry_errdefs::{Error, Result};
use gantry_runtime::State;
use gantry_runtime::plugin::Task;

use crate::convert;

/// Shims asked at a time. A stuck one takes its whole deadline, so a few must not stop the rest;
/// with this many a host of hundreds answers in a handful of round trips.
const ASKED_AT_ONCE: usize = 64;

/// The states of `tasks`; that of one whose shim does not answer is unknown.
pub(super) async fn processes(tasks: Vec<Arc<dyn Task>>) -> Vec<Process> {
    at_once(tasks.into_iter().map(describe).collect()).await
}

/// Runs `asking` side by side and keeps what was answered.
async fn at_once<T>(asking: Vec<impl Future<Output = Option<T>>>) -> Vec<T> {
    let answers: Vec<Option<T>> =
        stream::iter(asking).buffer_unordered(ASKED_AT_ONCE).collect().await;
    answers.into_iter().flatten().collect()
}

async fn describe(task: Arc<dyn Task>) -> Option<Process> {
    match super::process(task.as_ref(), "").await {
        Ok(process) => Some(process),
        Err(e) if e.is_not_found() => None,
        Err(e) => {
            tracing::warn!(task = task.id(), error = %e, "no state from the shim");
            Some(super::process_to_wire(task.id(), State::default()))
        }
    }
}

/// The filter of a metrics call; clients know a bad one as Unknown.
pub(super) fn metrics_filter(texts: &[String]) -> Result<Filter> {
    filters::parse_all(texts).map_err(|e| Error::unknown(e.text()))
}

/// The metrics of those of `tasks` that match; one that has none to give is left out.
pub(super) async fn metrics(mut tasks: Vec<Arc<dyn Task>>, filter: &Filter) -> Vec<Metric> {
    tasks.retain(|task| filter.matches(&View(task.as_ref())));
    at_once(tasks.into_iter().map(measure).collect()).await
}

async fn measure(task: Arc<dyn Task>) -> Option<Metric> {
    match task.stats().await {
        Ok(data) => Some(Metric {
            timestamp: convert::time_to_wire(std::time::SystemTime::now()),
            id: task.id().to_owned(),
            data: Some(convert::any_to_wire(data?)),
        }),
        Err(e) => {
            if !e.is_not_found() {
                tracing::warn!(task = task.id(), error = %e, "no metrics");
            }
            None
        }
    }
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
