//! What the client is told of the requests to registries.

use gantry_api::containerd::types::transfer as wire;
use gantry_registry::HttpLog;
use tokio::sync::mpsc;

use crate::streaming::Stream;
use crate::window::DataWriter;

/// Lines that wait for a client that reads slowly; requests do not wait for it, so further ones are
/// lost.
const LINES_QUEUED_MAX: usize = 1024;

/// A log of as much as is asked for, to the client's `stream`; to the daemon's own log without one.
pub(super) fn to(stream: Option<Stream>, debug: wire::HttpDebug) -> HttpLog {
    let (dump, trace) = match debug {
        wire::HttpDebug::Disabled => (false, false),
        wire::HttpDebug::Debug => (true, false),
        wire::HttpDebug::Trace => (false, true),
        wire::HttpDebug::Both => (true, true),
    };
    let Some(stream) = stream else {
        return HttpLog::new(dump, trace, |line| tracing::info!("registry: {line}"));
    };
    let (lines, queued) = mpsc::channel(LINES_QUEUED_MAX);
    // It ends with the transfer, which holds the other end, or with the client.
    tokio::spawn(send(stream, queued));
    HttpLog::new(dump, trace, move |line| drop(lines.try_send(line)))
}

async fn send(stream: Stream, mut queued: mpsc::Receiver<String>) {
    let mut data = DataWriter::new(stream);
    while let Some(mut line) = queued.recv().await {
        line.push('\n');
        if data.write(line.into()).await.is_err() {
            return;
        }
        if queued.is_empty() && data.flush().await.is_err() {
            return;
        }
    }
}
