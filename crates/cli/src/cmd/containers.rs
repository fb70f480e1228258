//! `containers`.

use clap::Subcommand;
use gantry_client::{CheckpointImageOptions, ContainerRecord};
use gantry_core::timestamp;
use gantry_errdefs::Result;
use serde_json::{Value, json};

use crate::cmd::create::ContainerFlags;
use crate::cmd::run::{IoFlags, run_task_from};
use crate::labels;
use crate::output::{self, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Store a container as an image, to be restored
    Checkpoint {
        /// With what it has written
        #[arg(long)]
        rw: bool,
        /// With the image it was made from
        #[arg(long)]
        image: bool,
        /// With its processes
        #[arg(long)]
        task: bool,
        /// Container
        id: String,
        /// Name of the image
        name: String,
    },
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
    /// Make a container from a checkpoint and run it
    Restore {
        /// With what it had written
        #[arg(long)]
        rw: bool,
        /// With its processes, where they were
        #[arg(long)]
        live: bool,
        #[command(flatten)]
        io: IoFlags,
        /// Container
        id: String,
        /// Name of the checkpoint's image
        name: String,
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
            Self::Checkpoint { rw, image, task, id, name } => {
                let options = CheckpointImageOptions {
                    without_processes: !task,
                    without_changes: !rw,
                    without_image: !image,
                    ..CheckpointImageOptions::default().named(name)
                };
                client.container(&id).await?.checkpoint_image(options).await?;
            }
            Self::Restore { rw, live, io, id, name } => {
                return restore(session, &io, (&id, &name), rw, live).await;
            }
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

async fn restore(
    session: &Session,
    io: &IoFlags,
    (id, name): (&str, &str),
    rw: bool,
    live: bool,
) -> Result<u8> {
    let client = &session.client;
    let image = client.image(name).await?;
    // Before anything is made: a checkpoint without processes cannot be gone on with.
    let task = if live { Some(image.checkpoint_processes().await?) } else { None };
    let builder = client.container_builder(id).from_checkpoint(&image, id);
    let builder = if rw { builder } else { builder.without_changes() };
    let container = builder.create().await?;
    let process = container.spec()?.process().clone();
    let terminal = process.and_then(|process| process.terminal()).unwrap_or(false);
    run_task_from(&container, io, terminal, None, task).await
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
