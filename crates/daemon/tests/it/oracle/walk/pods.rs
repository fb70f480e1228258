//! Sandboxes through the controller `shim`. Both daemons run our shim, which serves sandboxes; so
//! what differs is the daemons'.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_api::containerd::services::events::v1::SubscribeRequest;
use gantry_api::containerd::services::events::v1::events_client::EventsClient;
use gantry_api::containerd::services::sandbox::v1 as wire;
use gantry_api::containerd::services::sandbox::v1::controller_client::ControllerClient;
use gantry_api::containerd::types::{Sandbox, sandbox};
use gantry_testkit::built_program;
use prost_types::Any;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use super::{Walk, ask};
use crate::harness::in_ns;

const SHIM: &str = "shim";

/// A request to the controller, told apart by its type alone.
trait Asks {
    fn of(id: &str, sandboxer: &str) -> Self;
}

macro_rules! asks {
    ($($request:ty),* $(,)?) => {$(
        #[allow(clippy::needless_update, reason = "some have more fields")]
        impl Asks for $request {
            fn of(id: &str, sandboxer: &str) -> Self {
                Self { sandbox_id: id.into(), sandboxer: sandboxer.into(), ..Default::default() }
            }
        }
    )*};
}

asks!(
    wire::ControllerCreateRequest,
    wire::ControllerStartRequest,
    wire::ControllerStopRequest,
    wire::ControllerWaitRequest,
    wire::ControllerStatusRequest,
    wire::ControllerShutdownRequest,
    wire::ControllerMetricsRequest,
    wire::ControllerPlatformRequest,
    wire::ControllerUpdateRequest,
);

/// A request of the sandbox `id` to the shims' controller.
fn of<T: Asks>(id: &str) -> Request<T> {
    ask(T::of(id, SHIM))
}

/// How long a call may take before it counts as one that waits for ever.
const PATIENCE: Duration = Duration::from_secs(15);

/// How long a subscription may take to be made, and an event to come.
const SETTLED: Duration = Duration::from_secs(1);

/// The answer of a call, or that there is none.
async fn soon<T>(
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    let waits = || Err(Status::deadline_exceeded("no answer"));
    tokio::time::timeout(PATIENCE, call).await.unwrap_or_else(|_| waits())
}

/// What differs between any two runs, by a word.
fn started(
    answer: Result<Response<wire::ControllerStartResponse>, Status>,
) -> Result<Response<wire::ControllerStartResponse>, Status> {
    answer.map(|mut answer| {
        let it = answer.get_mut();
        it.pid = it.pid.min(1);
        // Told by ours alone.
        (it.address, it.version) = (String::new(), 0);
        answer
    })
}

/// The same of a status. What there is not is no time and no message of ours; containerd tells the
/// first year and an empty one.
fn state(
    answer: Result<Response<wire::ControllerStatusResponse>, Status>,
) -> Result<Response<wire::ControllerStatusResponse>, Status> {
    answer.map(|mut answer| {
        let it = answer.get_mut();
        it.pid = it.pid.min(1);
        (it.address, it.version) = (String::new(), 0);
        it.created_at = it.created_at.filter(|time| time.seconds > 0);
        it.exited_at = it.exited_at.filter(|time| time.seconds > 0);
        it.extra = it.extra.take().filter(|extra| !extra.type_url.is_empty());
        answer
    })
}

fn word(text: &str) -> String {
    if text.is_empty() { String::new() } else { "one".to_owned() }
}

fn record(id: &str, runtime: &str) -> Sandbox {
    Sandbox {
        sandbox_id: id.into(),
        runtime: Some(sandbox::Runtime { name: runtime.into(), options: None }),
        sandboxer: SHIM.into(),
        spec: Some(Any { type_url: "t".into(), value: b"{}".to_vec() }),
        ..Sandbox::default()
    }
}

/// The record of a sandbox of our shim.
fn ours(id: &str) -> Sandbox {
    record(id, built_program("containerd-shim-runc-v2").to_str().unwrap())
}

/// A request to make a sandbox that says all about it, as clients do.
fn told(record: Sandbox) -> Request<wire::ControllerCreateRequest> {
    let id = record.sandbox_id.clone();
    ask(wire::ControllerCreateRequest { sandbox: Some(record), ..Asks::of(&id, SHIM) })
}

impl Walk {
    pub(super) async fn pods(&mut self) {
        let topics = self.pod_topics();
        // containerd answers a subscription with its first event, so nothing tells when it is made.
        tokio::time::sleep(SETTLED).await;
        self.nobodys_pods().await;
        self.life_of_a_pod().await;
        self.pods_out_of_order().await;
        tokio::time::sleep(SETTLED).await;
        let topics = topics.lock().unwrap().join(" ");
        self.put("pod events", topics);
    }

    fn controller(&self) -> ControllerClient<Channel> {
        ControllerClient::new(self.channel.clone())
    }

    /// Sandboxers that are none, and sandboxes that are none.
    async fn nobodys_pods(&mut self) {
        let mut k = self.controller();
        for sandboxer in ["", "nobody"] {
            macro_rules! each {
                ($($method:ident),*) => {$(
                    let call = format!("pod {}, sandboxer {sandboxer:?}", stringify!($method));
                    let answer = soon(k.$method(ask(Asks::of("p", sandboxer)))).await;
                    self.note(&call, answer);
                )*};
            }
            each!(create, start, stop, wait, status, shutdown, metrics, platform, update);
        }
        // Without a record none can be made: 2.1 dies of a call that does not tell the spec.
        for id in ["", "gone", "a/b"] {
            macro_rules! each {
                ($($method:ident),*) => {$(
                    self.note(&format!("pod {}, {id:?}", stringify!($method)), soon(k.$method(of(id))).await);
                )*};
            }
            each!(start, stop, wait, shutdown, metrics, platform, update);
        }
        for id in ["", "gone", "a/b"] {
            self.note(&format!("pod status, {id:?}"), state(soon(k.status(of(id))).await));
        }
        let unnamed = Request::new(wire::ControllerStatusRequest::of("p", SHIM));
        self.note("pod status, no namespace", soon(k.status(unnamed)).await);
        self.note(
            "pod create, no such runtime",
            soon(k.create(told(record("noshim", "no.such.runtime")))).await,
        );
        self.note("pod start, no such runtime", soon(k.start(of("noshim"))).await);
        self.note("pod shutdown, no such runtime", soon(k.shutdown(of("noshim"))).await);
    }

    async fn life_of_a_pod(&mut self) {
        let mut k = self.controller();
        self.note("pod create", soon(k.create(told(ours("p")))).await);
        self.note("pod create twice", soon(k.create(told(ours("p")))).await);
        let elsewhere = in_ns("elsewhere", wire::ControllerStartRequest::of("p", SHIM));
        self.note("pod start in another namespace", soon(k.start(elsewhere)).await);
        self.note("pod status, not started", state(soon(k.status(of("p"))).await));
        self.note("pod start", started(soon(k.start(of("p"))).await));
        self.note("pod start twice", started(soon(k.start(of("p"))).await));
        self.note("pod status", state(soon(k.status(of("p"))).await));
        let verbose = wire::ControllerStatusRequest { verbose: true, ..Asks::of("p", SHIM) };
        let keys = soon(k.status(ask(verbose))).await.map(|mut answer| {
            let it = answer.get_mut();
            it.info.values_mut().for_each(|value| *value = word(value));
            answer
        });
        self.note("pod status, verbose", state(keys));
        let metrics = soon(k.metrics(of("p"))).await.map(|mut answer| {
            // The numbers are the shim's.
            if let Some(data) = answer.get_mut().metrics.as_mut().and_then(|m| m.data.as_mut()) {
                data.value.clear();
            }
            answer
        });
        self.note("pod metrics", metrics);
        self.note("pod platform", soon(k.platform(of("p"))).await);
        let update = wire::ControllerUpdateRequest {
            // All of it: 2.1 dies of one without a spec.
            sandbox: Some(ours("p")),
            ..Asks::of("p", SHIM)
        };
        self.note("pod update", soon(k.update(ask(update))).await);
        let mut waiter = self.controller();
        let waiting = tokio::spawn(async move { soon(waiter.wait(of("p"))).await });
        let stop = wire::ControllerStopRequest { timeout_secs: 5, ..Asks::of("p", SHIM) };
        self.note("pod stop", soon(k.stop(ask(stop))).await);
        let ended = waiting.await.unwrap();
        self.note("pod wait", ended);
        self.note("pod stop twice", soon(k.stop(of("p"))).await);
        self.note("pod wait, ended", soon(k.wait(of("p"))).await);
        self.note("pod status, ended", state(soon(k.status(of("p"))).await));
        self.note("pod start, ended", started(soon(k.start(of("p"))).await));
        self.note("pod shutdown", soon(k.shutdown(of("p"))).await);
        self.note("pod shutdown twice", soon(k.shutdown(of("p"))).await);
        self.note("pod status, shut down", state(soon(k.status(of("p"))).await));
        self.note("pod stop, shut down", soon(k.stop(of("p"))).await);
        self.note("pod wait, shut down", soon(k.wait(of("p"))).await);
        self.note("pod start, shut down", started(soon(k.start(of("p"))).await));
    }

    async fn pods_out_of_order(&mut self) {
        let mut k = self.controller();
        // containerd knows a sandbox for as long as its shim's connection is there.
        tokio::time::sleep(SETTLED).await;
        self.note("pod create, again", soon(k.create(told(ours("p")))).await);
        self.note("pod start, again", started(soon(k.start(of("p"))).await));
        self.note("pod shutdown, running", soon(k.shutdown(of("p"))).await);
        self.note("pod status, shut down running", state(soon(k.status(of("p"))).await));
        self.note("pod create, never started", soon(k.create(told(ours("q")))).await);
        self.note("pod stop, never started", soon(k.stop(of("q"))).await);
        self.note("pod shutdown, never started", soon(k.shutdown(of("q"))).await);
    }

    /// The topics of what happens to sandboxes from now on, in their order.
    fn pod_topics(&self) -> Arc<Mutex<Vec<String>>> {
        let topics = Arc::new(Mutex::new(Vec::new()));
        let (heard, mut client) = (Arc::clone(&topics), EventsClient::new(self.channel.clone()));
        tokio::spawn(async move {
            let filters = vec!["topic~=|^/sandboxes/|".to_owned()];
            let subscribe = Request::new(SubscribeRequest { filters });
            let mut events = client.subscribe(subscribe).await.unwrap().into_inner();
            while let Ok(Some(event)) = events.message().await {
                heard.lock().unwrap().push(event.topic.clone());
            }
        });
        topics
    }
}
