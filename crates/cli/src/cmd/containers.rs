//! `containers`.

use clap::Subcommand;
use gantry_client::ContainerRecord;
use gantry_core::timestamp;
use gantry_errdefs::Result;
use serde_json::{Value, json};

use crate::cmd::create::ContainerFlags;
use crate::labels;
use crate::output::{self, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a container without running it
    Create(Box<ContainerFlags>),
    /// Delete containers
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Keep their snapshots
        #[arg(long)]
        keep_snapshot: bool,
        /// Containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Show a container
    Info {
        /// Show its spec only
        #[arg(long)]
        spec: bool,
        /// Container
        id: String,
    },
    /// List containers
    #[command(visible_alias = "ls")]
    List {
        /// Print ids only
        #[arg(long, short)]
        quiet: bool,
        /// Filters
        filters: Vec<String>,
    },
    /// Set and clear labels
    Label {
        /// Container
        id: String,
        /// Labels, key=value; an empty value clears
        labels: Vec<String>,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let client = &session.client;
        match self {
            Self::Create(flags) => {
                flags.create(session).await?;
            }
            Self::Delete { keep_snapshot, ids } => {
                let mut code = 0;
                for id in &ids {
                    let deleted =
                        async { client.container(id).await?.delete(!keep_snapshot).await };
                    if let Err(e) = deleted.await {
                        let e = e.context(format!("failed to delete container {id:?}"));
                        output::error(&session.program, &e.text());
                        code = 1;
                    }
                }
                return Ok(code);
            }
            Self::Info { spec, id } => {
                let record = client.containers().get(&id).await?;
                let spec_json = spec_of(&record);
                if spec {
                    output::json(&spec_json);
                } else {
                    output::json(&info(&record, spec_json));
                }
            }
            Self::List { quiet, filters } => {
                let mut all = client.containers().list(&filters).await?;
                all.sort_by(|a, b| a.id.cmp(&b.id));
                if quiet {
                    all.iter().for_each(|c| output::line(&c.id));
                    return Ok(0);
                }
                let mut table = Table::wide(&["CONTAINER", "IMAGE", "RUNTIME"]);
                for c in all {
                    let image = if c.image.is_empty() { "-".to_owned() } else { c.image };
                    table.row([c.id.into(), image.into(), c.runtime.name.into()]);
                }
                table.print(session.format);
            }
            Self::Label { id, labels } => {
                let mut container = client.container(&id).await?;
                let all = container.set_labels(&labels::parse(&labels)).await?;
                output::line(output::label_list(all));
            }
        }
        Ok(0)
    }
}

fn spec_of(record: &ContainerRecord) -> Value {
    let bytes = record.spec.as_ref().map(|s| s.value.as_slice()).unwrap_or_default();
    serde_json::from_slice(bytes).unwrap_or(Value::Null)
}

fn info(record: &ContainerRecord, spec: Value) -> Value {
    let extensions: Value = record
        .extensions
        .iter()
        .map(|(name, value)| (name.clone(), json!({"type_url": value.type_url})))
        .collect::<serde_json::Map<_, _>>()
        .into();
    json!({
        "ID": record.id,
        "Labels": record.labels,
        "Image": record.image,
        "Runtime": {
            "Name": record.runtime.name,
            "Options": record.runtime.options.as_ref().map(|o| json!({"type_url": o.type_url})),
        },
        "SnapshotKey": record.snapshot_key,
        "Snapshotter": record.snapshotter,
        "CreatedAt": timestamp::format(record.created_at),
        "UpdatedAt": timestamp::format(record.updated_at),
        "Extensions": extensions,
        "SandboxID": record.sandbox,
        "Spec": spec,
    })
}
