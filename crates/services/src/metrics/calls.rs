//! Calls by method, under the names that Go's gRPC servers have for them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tonic::Code;

use super::text::{Kind, Text};

/// Methods that are counted. There are some two hundred; a client may ask for any number that do
/// not exist.
const METHODS_MAX: usize = 512;

/// Methods of which the client sends many messages, or gets many, or both.
const STREAMS: [(&str, &str); 9] = [
    ("containerd.services.containers.v1.Containers/ListStream", SERVER_STREAM),
    ("containerd.services.content.v1.Content/List", SERVER_STREAM),
    ("containerd.services.content.v1.Content/Read", SERVER_STREAM),
    ("containerd.services.content.v1.Content/Write", "bidi_stream"),
    ("containerd.services.events.v1.Events/Subscribe", SERVER_STREAM),
    ("containerd.services.mounts.v1.Mounts/List", SERVER_STREAM),
    ("containerd.services.snapshots.v1.Snapshots/List", SERVER_STREAM),
    ("containerd.services.streaming.v1.Streaming/Stream", "bidi_stream"),
    ("grpc.health.v1.Health/Watch", SERVER_STREAM),
];

const UNARY: &str = "unary";
const SERVER_STREAM: &str = "server_stream";

/// Upper bounds of the histogram, in seconds: those of Prometheus' clients.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Status codes there are: 0 to 16.
const CODES: usize = 17;

/// What is counted of all calls. Cheap to clone; clones count together.
#[derive(Clone, Debug)]
pub struct Calls {
    methods: Arc<RwLock<BTreeMap<String, Arc<Method>>>>,
    histogram: bool,
}

/// What is counted of one method.
#[derive(Debug, Default)]
struct Method {
    started: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    handled: [AtomicU64; CODES],
    /// Ended within the bound of the bucket, but not within that of the one before.
    buckets: [AtomicU64; BUCKETS.len()],
    nanos: AtomicU64,
}

/// A call being served. It counts as cancelled if it is dropped before it has [ended](Self::end).
#[derive(Debug)]
pub struct Call {
    method: Arc<Method>,
    /// When it began, if that is of interest.
    began: Option<Instant>,
    ended: bool,
}

/// Counts the messages that pass in one direction, from the bytes that do: each has five bytes
/// before it, the last four of them its length.
#[derive(Debug, Default)]
pub struct Messages {
    head: [u8; 5],
    head_len: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl Calls {
    /// Nothing counted so far. With `histogram` the time of each call is, too.
    pub fn new(histogram: bool) -> Self {
        Self { methods: Arc::default(), histogram }
    }

    /// Counts a call of the method at `path`, `/<service>/<method>`. None when there are too many
    /// methods already.
    pub fn begin(&self, path: &str) -> Option<Call> {
        let path = path.strip_prefix('/').filter(|path| path.contains('/'))?;
        let known =
            self.methods.read().unwrap_or_else(PoisonError::into_inner).get(path).map(Arc::clone);
        let method = match known {
            Some(method) => method,
            None => {
                let mut methods = self.methods.write().unwrap_or_else(PoisonError::into_inner);
                if methods.len() >= METHODS_MAX && !methods.contains_key(path) {
                    return None;
                }
                Arc::clone(methods.entry(path.to_owned()).or_default())
            }
        };
        method.started.fetch_add(1, Ordering::Relaxed);
        let began = self.histogram.then(Instant::now);
        Some(Call { method, began, ended: false })
    }

    pub(super) fn add(&self, text: &mut Text) {
        let methods = self.methods.read().unwrap_or_else(PoisonError::into_inner);
        for (path, method) in methods.iter() {
            let Some((service, name)) = path.rsplit_once('/') else { continue };
            let stream = STREAMS.iter().find(|(stream, _)| stream == path);
            let labels = [
                ("grpc_method", name),
                ("grpc_service", service),
                ("grpc_type", stream.map_or(UNARY, |(_, kind)| kind)),
            ];
            self.add_method(text, method, &labels);
        }
    }

    fn add_method(&self, text: &mut Text, method: &Method, labels: &[(&str, &str); 3]) {
        for (name, count) in [
            ("grpc_server_started_total", &method.started),
            ("grpc_server_msg_received_total", &method.received),
            ("grpc_server_msg_sent_total", &method.sent),
        ] {
            text.add(name, Kind::Counter, labels, load(count) as f64);
        }
        for (code, count) in (0..).zip(&method.handled) {
            let count = load(count);
            if count > 0 {
                let [a, b, c] = *labels;
                let labels = [("grpc_code", code_name(code)), a, b, c];
                text.add("grpc_server_handled_total", Kind::Counter, &labels, count as f64);
            }
        }
        if self.histogram {
            let ended: u64 = method.handled.iter().map(load).sum();
            let seconds = Duration::from_nanos(load(&method.nanos)).as_secs_f64();
            let counts = BUCKETS.iter().zip(&method.buckets).map(|(le, count)| (*le, load(count)));
            text.histogram("grpc_server_handling_seconds", labels, counts, seconds, ended);
        }
    }
}

impl Call {
    /// Counts messages that the client has sent.
    pub fn received(&self, count: u64) {
        self.method.received.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts messages that the client is sent.
    pub fn sent(&self, count: u64) {
        self.method.sent.fetch_add(count, Ordering::Relaxed);
    }

    /// Counts the end of the call.
    pub fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        // Times first: the counts of a histogram are those of the codes.
        if let Some(began) = self.began {
            let took = began.elapsed();
            let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
            self.method.nanos.fetch_add(nanos, Ordering::Relaxed);
            if let Some(n) = BUCKETS.iter().position(|bound| took.as_secs_f64() <= *bound) {
                self.method.buckets[n].fetch_add(1, Ordering::Relaxed);
            }
        }
        let code = usize::try_from(i32::from(code)).unwrap_or(0);
        if let Some(count) = self.method.handled.get(code) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

impl Messages {
    /// How many messages begin in the next `bytes`.
    pub fn begin_in(&mut self, mut bytes: &[u8]) -> u64 {
        let mut count = 0;
        while !bytes.is_empty() {
            if self.left > 0 {
                let passed = self.left.min(bytes.len());
                self.left -= passed;
                bytes = &bytes[passed..];
                continue;
            }
            let wanted = self.head.len() - self.head_len;
            let taken = wanted.min(bytes.len());
            self.head[self.head_len..self.head_len + taken].copy_from_slice(&bytes[..taken]);
            self.head_len += taken;
            bytes = &bytes[taken..];
            if self.head_len == self.head.len() {
                let [_, len @ ..] = self.head;
                self.left = u32::from_be_bytes(len) as usize;
                self.head_len = 0;
                count += 1;
            }
        }
        count
    }
}

fn load(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

/// The code as Go writes it.
fn code_name(code: i32) -> &'static str {
    match Code::from(code) {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(calls: &Calls) -> String {
        let mut text = Text::default();
        calls.add(&mut text);
        text.finish()
    }

    #[test]
    fn calls_are_counted_by_method_and_code() {
        let calls = Calls::new(true);
        let mut fine = calls.begin("/a.v1.A/Get").unwrap();
        fine.received(1);
        fine.sent(1);
        fine.end(Code::Ok);
        fine.end(Code::Internal);
        drop(calls.begin("/a.v1.A/Get"));
        let open = calls.begin("/grpc.health.v1.Health/Watch").unwrap();
        assert!(calls.begin("nonsense").is_none());
        let text = text(&calls);
        let labels = "grpc_method=\"Get\",grpc_service=\"a.v1.A\",grpc_type=\"unary\"";
        for line in [
            format!("grpc_server_started_total{{{labels}}} 2"),
            format!("grpc_server_msg_received_total{{{labels}}} 1"),
            format!("grpc_server_msg_sent_total{{{labels}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"OK\",{labels}}} 1"),
            format!("grpc_server_handled_total{{grpc_code=\"Canceled\",{labels}}} 1"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"10\"}} 2"),
            format!("grpc_server_handling_seconds_bucket{{{labels},le=\"+Inf\"}} 2"),
            format!("grpc_server_handling_seconds_count{{{labels}}} 2"),
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        assert!(text.contains("grpc_type=\"server_stream\"} 1"), "{text}");
        assert!(!text.contains("Internal"), "{text}");
        drop(open);
    }

    #[test]
    fn methods_that_do_not_exist_fill_no_memory() {
        let calls = Calls::new(false);
        for n in 0..METHODS_MAX {
            assert!(calls.begin(&format!("/x.X/{n}")).is_some());
        }
        assert!(calls.begin("/x.X/more").is_none());
        assert!(calls.begin("/x.X/1").is_some());
        assert!(!text(&calls).contains("handling_seconds"));
    }

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut bytes = Vec::new();
        for len in [0_u32, 3, 300, 0, 1] {
            bytes.push(0);
            bytes.extend(len.to_be_bytes());
            bytes.extend(vec![9; len as usize]);
        }
        for cut in [1, 2, 5, 7, bytes.len()] {
            let mut messages = Messages::default();
            let count: u64 = bytes.chunks(cut).map(|piece| messages.begin_in(piece)).sum();
            assert_eq!(count, 5, "in pieces of {cut}");
        }
    }
}
