//! Client and server against each other, and each against raw bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::UnixListener;

use crate::frame::{DATA, FrameReader, Incoming, NO_DATA, Outgoing, REMOTE_CLOSED, REQUEST};
use crate::message::{KeyValue, Request, Response};
use crate::service::Open;
use crate::{
    Client, Context, Error, FRAME_BYTES_MAX, Handover, Reply, Result, Server, Service, Stream,
    reply, unknown_method,
};

const SERVICE: &str = "test.v1.Echo";

/// The only message of the tests.
type Text = KeyValue;

fn text(value: &str) -> Text {
    Text { key: String::new(), value: value.to_owned() }
}

/// Echoes, waits, fails, panics and streams on demand.
#[derive(Default)]
struct Echo {
    /// Handlers that saw their caller go away.
    abandoned: Arc<AtomicUsize>,
}

impl Service for Echo {
    fn name(&self) -> &'static str {
        SERVICE
    }

    fn call(&self, method: &str, ctx: Context, payload: Bytes) -> Reply {
        let abandoned = Arc::clone(&self.abandoned);
        match method {
            "Echo" => reply(payload, |req: Text| async move { Ok(req) }),
            "Metadata" => reply(payload, |req: Text| async move {
                Ok(text(ctx.get(&req.value).unwrap_or("none")))
            }),
            "Timeout" => {
                reply(
                    payload,
                    move |_: Text| async move { Ok(text(&format!("{:?}", ctx.timeout))) },
                )
            }
            "Sleep" => reply(payload, |req: Text| async move {
                let millis = req.value.parse().expect("a number");
                tokio::time::sleep(Duration::from_millis(millis)).await;
                Ok(req)
            }),
            "Wait" => reply(payload, |_: Text| async move {
                ctx.done().await;
                abandoned.fetch_add(1, Ordering::SeqCst);
                Ok(text(""))
            }),
            "Fail" => reply(payload, |req: Text| async move {
                Err::<Text, _>(Error::failed_precondition(format!("task {}", req.value)))
            }),
            "Panic" => reply(payload, |_: Text| async move {
                assert!(payload_is_fine(), "on purpose");
                Ok(text(""))
            }),
            "Large" => {
                reply(payload, |_: Text| async move { Ok(text(&"x".repeat(FRAME_BYTES_MAX))) })
            }
            _ => unknown_method(SERVICE, method),
        }
    }

    fn stream(&self, method: &str, _: &Context) -> Option<Open> {
        match method {
            "Both" => Some(Box::new(|mut stream: Stream| {
                Box::pin(async move {
                    while let Some(message) = stream.receive::<Text>().await? {
                        stream.send(&message).await?;
                    }
                    Ok(None)
                })
            })),
            "Join" => Some(Box::new(|mut stream: Stream| {
                Box::pin(async move {
                    let mut all = String::new();
                    while let Some(message) = stream.receive::<Text>().await? {
                        all += &message.value;
                    }
                    Ok(Some(text(&all).encode_to_vec()))
                })
            })),
            "Refuse" => {
                Some(Box::new(|_| Box::pin(async move { Err(Error::not_found("stream \"x\"")) })))
            }
            _ => None,
        }
    }
}

fn payload_is_fine() -> bool {
    false
}

fn pair() -> Client {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = Server::builder().service(Echo::default()).build();
    tokio::spawn(async move { server.serve_connection(theirs).await });
    Client::new(ours)
}

/// A server and the raw far end of its connection.
fn raw_server() -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let server = Server::builder().service(Echo::default()).build();
    tokio::spawn(async move { server.serve_connection(theirs).await });
    ours
}

async fn call(client: &Client, method: &str, value: &str) -> Result<String> {
    let ctx = Context::with_timeout(Duration::from_secs(20));
    client.call::<_, Text>(SERVICE, method, &text(value), &ctx).await.map(|t| t.value)
}

fn request(id: u32, method: &str, value: &str) -> Vec<u8> {
    let ctx = Context::new();
    let request = Request::new(SERVICE, method, text(value).encode_to_vec(), &ctx);
    Outgoing::message(id, REQUEST, 0, &request).expect("small").bytes().to_vec()
}

async fn answer(
    reader: &mut FrameReader<impl tokio::io::AsyncRead + Unpin>,
) -> (u32, Result<Text>) {
    match reader.next().await.expect("readable").expect("an answer") {
        Incoming::Frame(header, payload) => {
            let result = Response::decode(payload).expect("a response").into_result();
            (header.stream, result.map(|b| Text::decode(b).expect("a text")))
        }
        Incoming::Oversized(_) => panic!("too large"),
    }
}

#[tokio::test]
async fn a_call_goes_there_and_back() {
    let client = pair();
    assert_eq!(call(&client, "Echo", "hello").await.expect("answered"), "hello");
    assert_eq!(call(&client, "Echo", "").await.expect("answered"), "");
}

#[tokio::test]
async fn metadata_and_deadline_reach_the_handler() {
    let client = pair();
    let ctx = Context::with_timeout(Duration::from_millis(1500))
        .with("containerd-namespace-ttrpc", "default");
    let ask = |method: &'static str, value: &'static str| {
        let (client, ctx) = (client.clone(), ctx.clone());
        async move {
            let answer: Text =
                client.call(SERVICE, method, &text(value), &ctx).await.expect("answered");
            answer.value
        }
    };
    assert_eq!(ask("Metadata", "Containerd-Namespace-TTRPC").await, "default");
    assert_eq!(ask("Metadata", "other").await, "none");
    assert_eq!(ask("Timeout", "").await, "Some(1.5s)");
}

#[tokio::test]
async fn errors_keep_class_and_text() {
    let client = pair();
    let err = call(&client, "Fail", "a").await.expect_err("fails");
    assert!(err.is_failed_precondition());
    assert_eq!(err.text(), "task a: failed precondition");
}

#[tokio::test]
async fn unknown_names_are_unimplemented() {
    let client = pair();
    let err = call(&client, "Nothing", "").await.expect_err("unknown method");
    assert_eq!(err.text(), "/test.v1.Echo/Nothing: not implemented");
    let err = client
        .call::<_, Text>("no.Such", "Thing", &text(""), &Context::new())
        .await
        .expect_err("unknown service");
    assert!(err.is_unimplemented());
    assert_eq!(err.text(), "/no.Such/Thing: not implemented");
}

#[tokio::test]
async fn a_panic_in_a_handler_is_answered() {
    let client = pair();
    assert!(call(&client, "Panic", "").await.expect_err("panics").is_internal());
    assert_eq!(call(&client, "Echo", "still here").await.expect("answered"), "still here");
}

#[tokio::test(start_paused = true)]
async fn slow_calls_do_not_hold_up_fast_ones() {
    let client = pair();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Sleep", "5000").await }
    });
    tokio::task::yield_now().await;
    let before = tokio::time::Instant::now();
    assert_eq!(call(&client, "Echo", "fast").await.expect("answered"), "fast");
    assert_eq!(before.elapsed(), Duration::ZERO);
    assert_eq!(slow.await.expect("no panic").expect("answered"), "5000");
}

#[tokio::test]
async fn many_calls_at_once() {
    let client = pair();
    let calls: Vec<_> = (0..500)
        .map(|i: u32| {
            let client = client.clone();
            tokio::spawn(async move { call(&client, "Echo", &i.to_string()).await })
        })
        .collect();
    for (i, one) in calls.into_iter().enumerate() {
        assert_eq!(one.await.expect("no panic").expect("answered"), i.to_string());
    }
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_one_call_only() {
    let client = pair();
    let ctx = Context::with_timeout(Duration::from_millis(100));
    let err =
        client.call::<_, Text>(SERVICE, "Sleep", &text("10000"), &ctx).await.expect_err("too slow");
    assert!(err.is_deadline_exceeded());
    assert!(err.text().contains("/test.v1.Echo/Sleep: no answer within 100ms"), "{err}");
    // The late answer of the first call is dropped, not taken for another's.
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(call(&client, "Echo", "next").await.expect("answered"), "next");
}

#[tokio::test]
async fn a_dropped_call_leaves_the_connection_usable() {
    let client = pair();
    let slow = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Sleep", "60000").await }
    });
    call(&client, "Echo", "").await.expect("answered");
    slow.abort();
    assert!(slow.await.expect_err("aborted").is_cancelled());
    assert_eq!(call(&client, "Echo", "next").await.expect("answered"), "next");
}

#[tokio::test]
async fn a_dead_connection_fails_all_calls_at_once() {
    let (ours, theirs) = tokio::io::duplex(1024);
    let client = Client::new(ours);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move {
                client.call::<_, Text>(SERVICE, "Wait", &text(""), &Context::new()).await
            })
        })
        .collect();
    tokio::task::yield_now().await;
    assert!(!client.is_closed());
    drop(theirs);
    for one in waiting {
        assert!(one.await.expect("no panic").expect_err("dead").is_unavailable());
    }
    client.closed().await;
    assert!(client.is_closed());
    assert!(call(&client, "Echo", "").await.expect_err("dead").is_unavailable());
}

#[tokio::test]
async fn closing_ends_the_calls_of_all_clones() {
    let client = pair();
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Sleep", "60000").await }
    });
    call(&client, "Echo", "").await.expect("answered");
    client.close();
    assert!(waiting.await.expect("no panic").expect_err("closed").is_unavailable());
    client.closed().await;
}

#[tokio::test]
async fn the_last_client_closes_the_connection() {
    let (ours, mut theirs) = tokio::io::duplex(1024);
    let client = Client::new(ours);
    let other = client.clone();
    drop(client);
    assert!(!other.is_closed());
    drop(other);
    assert_eq!(theirs.read(&mut [0; 1]).await.expect("readable"), 0);
}

#[tokio::test]
async fn large_messages_are_refused_on_both_sides() {
    let client = pair();
    let err = call(&client, "Echo", &"x".repeat(FRAME_BYTES_MAX)).await.expect_err("too large");
    assert!(err.is_resource_exhausted());
    let err = call(&client, "Large", "").await.expect_err("answer too large");
    assert!(err.is_resource_exhausted());
    let fits = "x".repeat(FRAME_BYTES_MAX - 1024);
    assert_eq!(call(&client, "Echo", &fits).await.expect("fits").len(), fits.len());
}

#[tokio::test]
async fn an_oversized_frame_is_drained_and_refused() {
    let mut raw = raw_server();
    let length = u32::try_from(FRAME_BYTES_MAX + 1).expect("small");
    let mut frame = length.to_be_bytes().to_vec();
    frame.extend_from_slice(&[0, 0, 0, 1, REQUEST, 0]);
    frame.resize(10 + FRAME_BYTES_MAX + 1, 0xaa);
    frame.extend_from_slice(&request(3, "Echo", "after"));
    let (read, mut write) = tokio::io::split(&mut raw);
    let mut reader = FrameReader::new(read);
    let send = async { write.write_all(&frame).await.expect("writable") };
    let ((), (id, first)) = tokio::join!(send, answer(&mut reader));
    assert_eq!(id, 1);
    assert!(first.expect_err("refused").is_resource_exhausted());
    let (id, second) = answer(&mut reader).await;
    assert_eq!((id, second.expect("answered").value.as_str()), (3, "after"));
}

#[tokio::test]
async fn frames_may_arrive_byte_by_byte() {
    let raw = raw_server();
    let (read, mut write) = tokio::io::split(raw);
    let sender = tokio::spawn(async move {
        for byte in request(1, "Echo", "slowly") {
            write.write_all(&[byte]).await.expect("writable");
            tokio::task::yield_now().await;
        }
        write
    });
    let (id, echoed) = answer(&mut FrameReader::new(read)).await;
    assert_eq!((id, echoed.expect("answered").value.as_str()), (1, "slowly"));
    drop(sender.await.expect("no panic"));
}

#[tokio::test]
async fn bad_stream_ids_and_bad_requests_are_refused() {
    let raw = raw_server();
    let (read, mut write) = tokio::io::split(raw);
    let mut reader = FrameReader::new(read);
    let mut refused = async |frame: Vec<u8>| {
        write.write_all(&frame).await.expect("writable");
        answer(&mut reader).await.1
    };
    assert!(refused(request(2, "Echo", "")).await.expect_err("even").is_invalid_argument());
    assert!(refused(request(5, "Echo", "")).await.is_ok());
    assert!(refused(request(5, "Echo", "")).await.expect_err("again").is_invalid_argument());
    assert!(refused(request(3, "Echo", "")).await.expect_err("back").is_invalid_argument());
    let mut garbage = vec![0, 0, 0, 3, 0, 0, 0, 7, REQUEST, 0];
    garbage.extend_from_slice(&[0xff; 3]);
    assert!(refused(garbage).await.expect_err("garbage").is_invalid_argument());
    assert!(refused(request(9, "Echo", "")).await.is_ok());
}

#[tokio::test]
async fn answers_come_after_the_client_closed_its_side() {
    let raw = raw_server();
    let (read, mut write) = tokio::io::split(raw);
    write.write_all(&request(1, "Sleep", "50")).await.expect("writable");
    write.shutdown().await.expect("half closed");
    let mut reader = FrameReader::new(read);
    let (_, slept) = answer(&mut reader).await;
    assert_eq!(slept.expect("answered").value, "50");
    assert!(reader.next().await.expect("clean end").is_none());
}

#[tokio::test]
async fn streams_go_both_ways() {
    let client = pair();
    let mut stream = client.stream(SERVICE, "Both", None, &Context::new()).await.expect("opened");
    for word in ["a", "", "c"] {
        stream.send(&text(word)).await.expect("sent");
        assert_eq!(stream.receive().await.expect("read"), Some(text(word)));
    }
    stream.close_send().await.expect("sent");
    assert_eq!(stream.receive::<Text>().await.expect("the end"), None);
    assert_eq!(stream.receive::<Text>().await.expect("still the end"), None);
}

#[tokio::test]
async fn a_client_stream_ends_in_one_answer() {
    let client = pair();
    let mut stream = client.stream(SERVICE, "Join", None, &Context::new()).await.expect("opened");
    for word in ["a", "b", "c"] {
        stream.send(&text(word)).await.expect("sent");
    }
    stream.close_send().await.expect("sent");
    assert_eq!(stream.receive().await.expect("read"), Some(text("abc")));
    assert_eq!(stream.receive::<Text>().await.expect("the end"), None);
}

#[tokio::test]
async fn a_server_stream_takes_one_request() {
    let client = pair();
    let first = Some(text("once").encode_to_vec());
    let mut stream = client.stream(SERVICE, "Both", first, &Context::new()).await.expect("opened");
    assert_eq!(stream.receive().await.expect("read"), Some(text("once")));
    assert_eq!(stream.receive::<Text>().await.expect("the end"), None);
}

#[tokio::test]
async fn a_stream_can_be_refused() {
    let client = pair();
    let mut stream = client.stream(SERVICE, "Refuse", None, &Context::new()).await.expect("opened");
    assert!(stream.receive::<Text>().await.expect_err("refused").is_not_found());
}

#[tokio::test]
async fn data_for_no_stream_is_ignored() {
    let raw = raw_server();
    let (read, mut write) = tokio::io::split(raw);
    let stray = Outgoing::message(1, DATA, 0, &text("stray")).expect("small");
    write.write_all(stray.bytes()).await.expect("writable");
    let end = Outgoing::flags(9, REMOTE_CLOSED | NO_DATA);
    write.write_all(end.bytes()).await.expect("writable");
    write.write_all(&[0, 0, 0, 0, 0, 0, 0, 1, 77, 0]).await.expect("writable");
    write.write_all(&request(1, "Echo", "fine")).await.expect("writable");
    let (_, echoed) = answer(&mut FrameReader::new(read)).await;
    assert_eq!(echoed.expect("answered").value, "fine");
}

#[tokio::test]
async fn a_socket_is_served_until_told_to_stop() {
    let dir = tempfile::tempdir().expect("tempdir");
    let address = format!("unix://{}/s", dir.path().display());
    let parsed: crate::Address = address.parse().expect("an address");
    let listener = UnixListener::from_std(parsed.listen().expect("listens")).expect("tokio");
    assert!(parsed.listen().expect_err("in use").is_already_exists());
    let echo = Echo::default();
    let abandoned = Arc::clone(&echo.abandoned);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let server = Server::builder().service(echo).build();
    let serving = tokio::spawn(async move {
        server.serve(listener, async move { drop(stopped.await) }).await;
    });
    let client = Client::connect(&address).expect("connects");
    let second = Client::connect(&address).expect("connects");
    assert_eq!(call(&client, "Echo", "one").await.expect("answered"), "one");
    assert_eq!(call(&second, "Echo", "two").await.expect("answered"), "two");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.call::<_, Text>(SERVICE, "Wait", &text(""), &Context::new()).await }
    });
    call(&client, "Echo", "").await.expect("the wait has been sent before");
    stop.send(()).expect("serving");
    serving.await.expect("no panic");
    assert!(waiting.await.expect("no panic").is_ok(), "answered before the end");
    assert_eq!(abandoned.load(Ordering::SeqCst), 1);
    client.closed().await;
    drop(dir);
    assert!(Client::connect(&address).expect_err("gone").is_unavailable());
}

/// One program hands over to the next: calls without an answer are made again, half a frame is
/// gone on with, and clients notice nothing.
#[tokio::test]
async fn connections_are_handed_over() {
    let dir = tempfile::tempdir().expect("a directory");
    let address = dir.path().join("s").to_string_lossy().into_owned();
    let listener = std::os::unix::net::UnixListener::bind(&address).expect("listens");
    listener.set_nonblocking(true).expect("set");
    let handover = Handover::new(|service, method| service == SERVICE && method == "Sleep");
    let server = Server::builder().service(Echo::default()).handover(handover.clone()).build();
    // On a runtime of its own: what ends it at once, as an exec does, is dropping that.
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let listener = UnixListener::from_std(listener).expect("tokio");
            tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
            drop(ended.await);
        });
    });

    let client = Client::connect(&address).expect("connects");
    assert_eq!(call(&client, "Echo", "one").await.expect("answered"), "one");
    let waiting = tokio::spawn({
        let client = client.clone();
        async move { call(&client, "Sleep", "1000").await }
    });
    let mut raw = tokio::net::UnixStream::connect(&address).await.expect("connects");
    let request = Request {
        service: SERVICE.to_owned(),
        method: "Echo".to_owned(),
        payload: text("half").encode_to_vec().into(),
        ..Request::default()
    };
    let frame = Outgoing::message(1, REQUEST, REMOTE_CLOSED, &request).expect("small");
    let (first, second) = frame.bytes().split_at(15);
    raw.write_all(first).await.expect("writable");
    // A call that cannot be made again is waited for; its handler ends with its deadline.
    let slow = tokio::spawn({
        let (client, ctx) = (client.clone(), Context::with_timeout(Duration::from_millis(100)));
        async move { client.call::<_, Text>(SERVICE, "Wait", &text(""), &ctx).await }
    });
    for _ in 0..2 {
        call(&client, "Echo", "").await.expect("what was sent before the second is being handled");
    }
    handover.hold();
    assert!(!handover.is_quiet());
    while !handover.is_quiet() {
        handover.changed().await;
    }
    assert!(slow.is_finished() || slow.await.is_ok(), "answered before");
    let carried = handover.carried().expect("descriptors");
    assert_eq!(carried.len(), 2);
    drop(end);
    serving.join().expect("no panic");

    let listener = UnixListener::bind(dir.path().join("next")).expect("listens");
    let next = Server::builder().service(Echo::default()).build();
    tokio::spawn(async move { next.serve_on(listener, carried, std::future::pending()).await });
    assert_eq!(waiting.await.expect("no panic").expect("answered after all"), "1000");
    assert_eq!(call(&client, "Echo", "two").await.expect("answered"), "two");
    raw.write_all(second).await.expect("writable");
    let mut frames = FrameReader::new(raw);
    let Some(Incoming::Frame(_, payload)) = frames.next().await.expect("readable") else {
        panic!("an answer")
    };
    let response = Response::decode(payload).expect("decodes");
    assert_eq!(Text::decode(response.payload).expect("decodes").value, "half");
}

#[tokio::test]
async fn abstract_addresses_work_with_and_without_a_sign() {
    let name = format!("gantry-ttrpc-test-{}", std::process::id());
    let address: crate::Address = format!("@{name}").parse().expect("an address");
    let listener = UnixListener::from_std(address.listen().expect("listens")).expect("tokio");
    let server = Server::builder().service(Echo::default()).build();
    tokio::spawn(async move { server.serve(listener, std::future::pending()).await });
    let client = Client::connect(&name).expect("connects");
    assert_eq!(call(&client, "Echo", "x").await.expect("answered"), "x");
}

#[test]
fn addresses_we_cannot_use_say_so() {
    assert!("".parse::<crate::Address>().expect_err("empty").is_invalid_argument());
    assert!("vsock://1:2".parse::<crate::Address>().expect_err("vsock").is_unimplemented());
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

    /// Whatever comes in, the server neither panics nor stops serving others.
    #[test]
    fn any_bytes_are_survived(garbage in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async move {
            let (mut ours, theirs) = tokio::io::duplex(64 << 10);
            let server = Server::builder().service(Echo::default()).build();
            let serving = tokio::spawn(async move { server.serve_connection(theirs).await });
            ours.write_all(&garbage).await.expect("writable");
            ours.shutdown().await.expect("half closed");
            let mut answers = Vec::new();
            ours.read_to_end(&mut answers).await.expect("readable");
            serving.await.expect("no panic");
        });
    }
}
