//! `events`.

use clap::Args;
use gantry_core::timestamp;
use gantry_errdefs::Result;
use serde_json::json;

use crate::output::{self, Format};
use crate::session::Session;
use crate::signals;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Filters, such as 'topic=="/tasks/exit"'; of every namespace
    filters: Vec<String>,
}

impl Flags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let mut events = session.client.events().subscribe(&self.filters).await?;
        loop {
            let event = tokio::select! {
                event = events.next() => event?,
                () = signals::ended() => return Ok(0),
            };
            let Some(event) = event else { return Ok(0) };
            let payload = event.payload_json();
            if session.format == Format::Json {
                let all = json!({
                    "timestamp": timestamp::format(event.timestamp),
                    "namespace": event.namespace,
                    "topic": event.topic,
                    "event": payload,
                });
                output::line(all.to_string());
                continue;
            }
            output::line(format!(
                "{} {} {} {payload}",
                go_time(event.timestamp),
                event.namespace,
                event.topic
            ));
        }
    }
}

/// A time as Go prints it: `2026-11-21 23:25:42.340144741 +0000 UTC`.
fn go_time(time: std::time::SystemTime) -> String {
    let text = timestamp::format(time);
    format!("{} +0000 UTC", text.replace('T', " ").trim_end_matches('Z'))
}
