//! Typed events, as a stream and over restarts of the daemon.

use std::time::Duration;

use futures_util::StreamExt as _;
use gantry_client::api::containerd::events as e;
use gantry_client::{Client, EventData, EventFilter, Followed, LeaseOptions, typeurl};
use gantry_testkit::Daemon;

use crate::support::on_both;

/// Longest wait for an event.
const PATIENCE: Duration = Duration::from_secs(30);

async fn events_story(daemon: &mut Daemon, client: Client) {
    let namespace = client.namespace().to_owned();
    let filter = EventFilter::new().namespace(&namespace).topic_prefix("/tasks/").container("c");
    let plain = client.events().subscribe(&[filter.clone().into()]).await.unwrap();
    let mut followed = client.events().follow(&[filter.into()]).await.unwrap();
    let oom = |id: &str| e::TaskOom { container_id: id.to_owned() };
    for (id, topic) in [("other", "/tasks/oom"), ("c", "/own/oom"), ("c", "/tasks/oom")] {
        client.events().publish(topic, &typeurl::pack(&oom(id))).await.unwrap();
    }
    let mut stream = Box::pin(plain.into_stream());
    let event = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap().unwrap().unwrap();
    assert_eq!((event.topic.as_str(), &event.namespace), ("/tasks/oom", &namespace));
    assert_eq!(event.data().unwrap(), EventData::TaskOom(oom("c")));
    match tokio::time::timeout(PATIENCE, followed.next()).await.unwrap().unwrap() {
        Followed::Event(event) => assert_eq!(event.topic, "/tasks/oom"),
        other => panic!("{other:?}"),
    }

    // The daemon goes: the plain stream ends, the other one goes on.
    let waiting = tokio::spawn(async move {
        let next = followed.next().await;
        (followed, next)
    });
    daemon.kill9();
    daemon.start_again();
    let ended = tokio::time::timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(ended.is_none_or(|e| e.unwrap_err().is_unavailable()));
    let (mut followed, next) = tokio::time::timeout(PATIENCE, waiting).await.unwrap().unwrap();
    assert_eq!(next.unwrap(), Followed::Resubscribed);
    client.events().publish("/tasks/oom", &typeurl::pack(&oom("c"))).await.unwrap();
    let event = tokio::time::timeout(PATIENCE, followed.next()).await.unwrap().unwrap();
    assert!(matches!(event, Followed::Event(_)), "{event:?}");

    // With no patience the loss is told.
    let hasty = client.with_reconnect_patience(Duration::ZERO);
    let mut followed = hasty.events().follow(&[]).await.unwrap();
    daemon.kill9();
    let lost = loop {
        match tokio::time::timeout(PATIENCE, followed.next()).await.unwrap() {
            Ok(_) => {}
            Err(e) => break e,
        }
    };
    assert!(lost.is_unavailable(), "{lost:?}");
    daemon.start_again();
    // A guard's lease lives as long as the guard.
    let guard = client.leases().guard().await.unwrap();
    assert_eq!(client.leases().list(&[]).await.unwrap()[0].id, guard.id());
    drop(guard);
    while !client.leases().list(&[]).await.unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let options = LeaseOptions { id: "own".into(), ..LeaseOptions::default() };
    client.leases().create(options.clone()).await.unwrap();
    assert!(client.leases().create(options).await.unwrap_err().is_already_exists());
    client.leases().delete("own", true).await.unwrap();
}

on_both!(events_story, root_events_on_containerd, root_events_on_gantryd);
