//! `version`, `info` and `deprecations`.

use clap::Subcommand;
use gantry_core::timestamp;
use gantry_errdefs::Result;
use serde_json::json;

use crate::output::{self, Format, Table};
use crate::session::Session;

/// Shows the versions of client and daemon.
pub(crate) async fn version(session: &Session) -> Result<u8> {
    let client_version = env!("CARGO_PKG_VERSION");
    let server = session.client.version().await?;
    let info = session.client.introspection().server().await?;
    if session.format == Format::Json {
        output::json(&json!({
            "client": {"version": client_version},
            "server": {
                "version": server.version, "revision": server.revision, "uuid": info.uuid,
            },
        }));
        return Ok(0);
    }
    output::line(format!("Client:\n  Version:  {client_version}\n"));
    output::line("Server:");
    output::line(format!("  Version:  {}", server.version));
    output::line(format!("  Revision: {}", server.revision));
    output::line(format!("  UUID: {}", info.uuid));
    Ok(0)
}

/// Shows facts about the daemon.
pub(crate) async fn info(session: &Session) -> Result<u8> {
    let info = session.client.introspection().server().await?;
    let deprecations: Vec<_> = info
        .deprecations
        .iter()
        .map(|d| {
            let last = d.last_occurrence.map(timestamp::format);
            json!({"id": d.id, "message": d.message, "last_occurrence": last})
        })
        .collect();
    let mut server = json!({"uuid": info.uuid, "pid": info.pid, "pidns": info.pidns});
    if !deprecations.is_empty() {
        server["deprecations"] = deprecations.into();
    }
    output::json(&json!({"server": server}));
    Ok(0)
}

#[derive(Debug, Subcommand)]
pub(crate) enum Deprecations {
    /// List what the daemon was asked for that is going away
    #[command(visible_alias = "ls")]
    List,
}

impl Deprecations {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let Self::List = self;
        let info = session.client.introspection().server().await?;
        let mut table = Table::wide(&["ID", "LAST OCCURRENCE", "MESSAGE"]);
        for d in info.deprecations {
            let last = d.last_occurrence.map_or_else(|| "-".to_owned(), timestamp::format);
            table.row([d.id.into(), last.into(), d.message.into()]);
        }
        table.print(session.format);
        Ok(0)
    }
}
