//! Shows what happens to tasks, over restarts of the daemon.

use gantry_client::{Client, EventFilter, Followed, Result};

pub(crate) async fn example(client: &Client, count: &str) -> Result<u32> {
    let filter = EventFilter::new().namespace(client.namespace()).topic_prefix("/tasks/");
    let mut events = client.events().follow(&[filter.into()]).await?;
    eprintln!("subscribed");
    for _ in 0..count.parse().unwrap_or(1) {
        match events.next().await? {
            Followed::Event(event) => println!("{} {}", event.topic, event.payload_json()),
            Followed::Resubscribed => println!("the daemon was restarted"),
        }
    }
    Ok(0)
}
