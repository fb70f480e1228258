//! The exchange, without a daemon.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use gantry_core::{Any, Namespace};

use crate::{
    Envelope, Exchange, FieldAccess, HANDOVER_MAX, NoFields, SUBSCRIBER_QUEUE_LEN, Subscription,
    validate_topic,
};

/// Knows events whose bytes are the container's id.
struct IdField;

impl FieldAccess for IdField {
    fn field(&self, event: &Any, path: &[&str]) -> Option<String> {
        (path == ["container_id"]).then(|| String::from_utf8(event.value.clone()).unwrap())
    }
}

fn ns(name: &str) -> Namespace {
    Namespace::new(name).unwrap()
}

fn event(value: &str) -> Any {
    Any { type_url: "t".into(), value: value.into() }
}

async fn topics(mut subscription: Subscription, exchange: Exchange) -> Vec<String> {
    drop(exchange);
    let mut seen = Vec::new();
    while let Some(envelope) = subscription.next().await {
        seen.push(envelope.unwrap().topic.clone());
    }
    seen
}

#[tokio::test]
async fn filters_choose_and_order_holds() {
    for (filters, want) in [
        (vec![], vec!["/tasks/create", "/tasks/exit", "/images/create"]),
        (vec!["namespace==moby,topic~=|^/tasks/|"], vec!["/tasks/exit"]),
        (vec!["event.container_id==c1"], vec!["/tasks/create"]),
        (
            vec!["topic==\"/images/create\"", "namespace==moby"],
            vec!["/tasks/exit", "/images/create"],
        ),
        (vec!["nothing==x"], vec![]),
    ] {
        let exchange = Exchange::new(Arc::new(IdField));
        let subscription = exchange.subscribe(&filters).unwrap();
        exchange.publish(&ns("default"), "/tasks/create", event("c1")).unwrap();
        exchange.publish(&ns("moby"), "/tasks/exit", event("c2")).unwrap();
        exchange.publish(&ns("default"), "/images/create", event("i")).unwrap();
        assert_eq!(topics(subscription, exchange).await, want, "{filters:?}");
    }
}

#[tokio::test]
async fn forwarded_events_keep_their_time() {
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut subscription = exchange.subscribe::<&str>(&[]).unwrap();
    let sent = Envelope {
        timestamp: SystemTime::UNIX_EPOCH + Duration::from_secs(5),
        namespace: ns("default"),
        topic: "/tasks/oom".into(),
        event: event("x"),
    };
    exchange.forward(sent.clone()).unwrap();
    assert_eq!(**subscription.next().await.unwrap().unwrap(), sent);
}

#[tokio::test]
async fn a_slow_reader_ends_with_a_clear_error_and_others_go_on() {
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut slow = exchange.subscribe::<&str>(&[]).unwrap();
    for _ in 0..=SUBSCRIBER_QUEUE_LEN {
        exchange.publish(&ns("default"), "/tasks/exit", event("")).unwrap();
    }
    let mut live = exchange.subscribe::<&str>(&[]).unwrap();
    exchange.publish(&ns("default"), "/tasks/oom", event("")).unwrap();
    for _ in 0..SUBSCRIBER_QUEUE_LEN {
        assert_eq!(slow.next().await.unwrap().unwrap().topic, "/tasks/exit");
    }
    let err = slow.next().await.unwrap().unwrap_err();
    assert!(err.is_resource_exhausted(), "{err}");
    assert!(err.message().contains(&SUBSCRIBER_QUEUE_LEN.to_string()), "{err}");
    assert!(slow.next().await.is_none());
    assert_eq!(live.next().await.unwrap().unwrap().topic, "/tasks/oom");
}

#[test]
fn dropped_subscriptions_are_forgotten() {
    let exchange = Exchange::new(Arc::new(NoFields));
    drop(exchange.subscribe(&["topic==\"/never/sent\""]).unwrap());
    exchange.publish(&ns("default"), "/a/b", event("")).unwrap();
    assert_eq!(format!("{exchange:?}"), "Exchange { subscribers: 0 }");
}

#[test]
fn bad_filters_and_topics_are_refused() {
    let exchange = Exchange::new(Arc::new(NoFields));
    assert!(exchange.subscribe(&["topic=="]).unwrap_err().is_invalid_argument());
    for good in ["/a", "/a/b", "/tasks/exec-added"] {
        validate_topic(good).unwrap();
    }
    for bad in ["", "a/b", "/", "/a/", "//a", "/a b", "/a/-"] {
        assert!(validate_topic(bad).unwrap_err().is_invalid_argument(), "{bad}");
        assert!(exchange.publish(&ns("default"), bad, event("")).is_err(), "{bad}");
    }
}

fn fact(topic: &str) -> Envelope {
    Envelope {
        timestamp: SystemTime::UNIX_EPOCH,
        namespace: ns("default"),
        topic: topic.into(),
        event: event("x"),
    }
}

#[tokio::test]
async fn a_fact_is_handed_over_when_it_was_taken() {
    let exchange = Exchange::new(Arc::new(NoFields));
    // Nobody is there: at once.
    exchange.hand_over(fact("/tasks/exit"), None).await.unwrap();
    let mut prompt = exchange.subscribe::<&str>(&[]).unwrap();
    let reader = tokio::spawn(async move {
        let first = prompt.next().await.unwrap().unwrap();
        assert_eq!(first.topic, "/tasks/oom");
        // Asked for the next one, which is what takes the first.
        let second = prompt.next().await.unwrap().unwrap();
        assert_eq!(second.topic, "/tasks/delete");
    });
    tokio::task::yield_now().await;
    exchange.hand_over(fact("/tasks/oom"), None).await.unwrap();
    exchange.hand_over(fact("/tasks/delete"), None).await.unwrap();
    reader.await.unwrap();
    // One that never reads costs the deadline at most.
    let _silent = exchange.subscribe::<&str>(&[]).unwrap();
    exchange.hand_over(fact("/tasks/exit"), None).await.unwrap();
}

/// Time stands still but where everybody waits, so what is measured is what is waited for.
#[tokio::test(start_paused = true)]
async fn a_burst_wakes_a_reader_once_and_a_fact_wakes_it_at_once() {
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut reader = exchange.subscribe::<&str>(&[]).unwrap();
    let publish = |topic: &str| exchange.publish(&ns("default"), topic, event("x")).unwrap();
    let mut read = async || {
        let begin = tokio::time::Instant::now();
        let topic = reader.next().await.unwrap().unwrap().topic.clone();
        (topic, begin.elapsed())
    };
    let (at_once, gathered) = (Duration::ZERO, crate::GATHERED);
    publish("/first");
    assert_eq!(read().await, ("/first".into(), at_once));
    // Those that come while it sleeps come together.
    let (second, ()) = tokio::join!(read(), async {
        tokio::task::yield_now().await;
        publish("/second");
        publish("/third");
    });
    assert_eq!(second, ("/second".into(), gathered));
    assert_eq!(read().await, ("/third".into(), at_once));
    let (fact_, told) = tokio::join!(read(), exchange.hand_over(fact("/tasks/exit"), None));
    told.unwrap();
    assert_eq!(fact_, ("/tasks/exit".into(), at_once));
}

#[tokio::test(start_paused = true)]
async fn many_readers_gather_for_longer() {
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut reader = exchange.subscribe::<&str>(&[]).unwrap();
    let mut gathered = async |others: u32| {
        let others: Vec<_> =
            (0..others).map(|_| exchange.subscribe::<&str>(&[]).unwrap()).collect();
        exchange.publish(&ns("default"), "/a/b", event("x")).unwrap();
        reader.next().await.unwrap().unwrap();
        let begin = tokio::time::Instant::now();
        tokio::join!(reader.next(), async {
            tokio::task::yield_now().await;
            exchange.publish(&ns("default"), "/a/b", event("x")).unwrap();
        });
        drop(others);
        begin.elapsed()
    };
    assert_eq!(gathered(0).await, crate::GATHERED);
    assert_eq!(gathered(99).await, crate::GATHERED_EACH * 100);
    assert_eq!(gathered(999).await, crate::GATHERED_MAX);
    assert_eq!(gathered(0).await, crate::GATHERED, "the others have gone");
}

#[tokio::test(start_paused = true)]
async fn a_fact_waits_for_a_reader_with_other_events_to_read_but_once_for_one_that_is_stuck() {
    let exchange = Exchange::new(Arc::new(NoFields));
    let mut reader = exchange.subscribe::<&str>(&[]).unwrap();
    let tell = async || {
        let begin = tokio::time::Instant::now();
        exchange.hand_over(fact("/tasks/exit"), None).await.unwrap();
        begin.elapsed()
    };
    exchange.publish(&ns("default"), "/a/b", event("x")).unwrap();
    assert_eq!(tell().await, HANDOVER_MAX, "it might have read both");
    assert_eq!(tell().await, Duration::ZERO, "it is known to be stuck");
    for _ in 0..3 {
        reader.next().await.unwrap().unwrap();
    }
    // Read to its end: it is waited for again.
    let (_, waited) = tokio::join!(
        async {
            let last = reader.next().await;
            tokio::time::sleep(HANDOVER_MAX / 2).await;
            drop(reader.handed());
            last
        },
        tell()
    );
    assert_eq!(waited, HANDOVER_MAX / 2);
}

#[tokio::test]
async fn facts_from_before_the_start_are_shown_to_every_new_subscription() {
    let exchange = Exchange::new(Arc::new(NoFields));
    exchange.hand_over(fact("/tasks/exit"), Some("c1 exit")).await.unwrap();
    exchange.hand_over(fact("/tasks/start"), None).await.unwrap();
    for _ in 0..2 {
        let mut seen = exchange.subscribe::<&str>(&[]).unwrap();
        exchange.publish(&ns("default"), "/tasks/delete", event("y")).unwrap();
        assert_eq!(seen.next().await.unwrap().unwrap().topic, "/tasks/exit");
        assert_eq!(seen.next().await.unwrap().unwrap().topic, "/tasks/delete");
    }
    let other = exchange.subscribe(&["topic==\"/nothing\""]).unwrap();
    assert!(topics(other, exchange).await.is_empty());
}

#[tokio::test]
async fn a_fact_that_no_client_has_had_is_shown_by_the_next_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recovered");
    let open = || Exchange::open(Arc::new(NoFields), &path).unwrap();
    let first = open();
    // Somebody within the daemon has it; that is no client.
    let mut own = first.subscribe::<&str>(&[]).unwrap();
    let reader = tokio::spawn(async move { while own.next().await.is_some() {} });
    first.hand_over(fact("/tasks/oom"), Some("c1 oom")).await.unwrap();
    first.hand_over(fact("/tasks/exit"), Some("c1 exit")).await.unwrap();
    first.hand_over(fact("/tasks/delete"), None).await.unwrap();
    reader.abort();
    drop(first);

    let second = open();
    // Brought once more, by whoever got no answer from the daemon that died.
    second.hand_over(fact("/tasks/exit"), Some("c1 exit")).await.unwrap();
    let mut client = second.subscribe::<&str>(&[]).unwrap();
    assert_eq!(client.next().await.unwrap().unwrap().topic, "/tasks/oom");
    client.handed().unwrap().reached();
    assert_eq!(client.next().await.unwrap().unwrap().topic, "/tasks/exit");
    // Killed before this one has reached the client.
    drop(client.handed());
    drop((client, second));

    let third = open();
    let mut client = third.subscribe::<&str>(&[]).unwrap();
    assert_eq!(client.next().await.unwrap().unwrap().topic, "/tasks/exit");
    client.handed().unwrap().reached();
    let late = third.subscribe::<&str>(&[]).unwrap();
    assert_eq!(topics(late, third).await, ["/tasks/exit"], "shown to each, by one daemon");
    let fourth = open();
    let client = fourth.subscribe::<&str>(&[]).unwrap();
    assert!(topics(client, fourth).await.is_empty());
}
