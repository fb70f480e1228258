//! `content`.

mod edit;
mod objects;
pub(super) mod prune;

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Subcommand;
use gantry_client::WriterOptions;
use gantry_core::{Digest, Labels};
use gantry_errdefs::{Error, Result};

use crate::cmd::transfer::PullFlags;
use crate::labels;
use crate::output::{self, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List writes that are not committed
    Active {
        /// Give up after so long, such as 10s; 0 is never
        #[arg(id = "listing", long = "timeout", short = 't', value_name = "TIME")]
        #[arg(default_value = "0s", value_parser = crate::cli::parse_duration)]
        timeout: Duration,
        /// Taken and of no use: it is the daemon that knows where its content is
        #[arg(long, hide = true)]
        root: Option<PathBuf>,
    },
    /// Delete blobs
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Digests
        #[arg(required = true)]
        digests: Vec<Digest>,
    },
    /// Edit a blob and store the result as a new one
    Edit(edit::Flags),
    /// Fetch all content of an image without unpacking it
    Fetch {
        /// Fetch manifests and configs of every platform, and no layers
        #[arg(long)]
        metadata_only: bool,
        #[command(flatten)]
        flags: Box<PullFlags>,
    },
    /// Write blobs of a registry to standard output
    FetchBlob(objects::FetchBlobFlags),
    /// Write the manifest or index of a registry to standard output
    FetchObject(objects::FetchObjectFlags),
    /// Write a blob to standard output
    Get {
        /// Digest
        digest: Digest,
    },
    /// Store a blob from standard input
    Ingest {
        /// Size the blob must have, in bytes
        #[arg(long, default_value_t = 0)]
        expected_size: i64,
        /// Digest the blob must have
        #[arg(long)]
        expected_digest: Option<Digest>,
        /// Name under which the write can be resumed
        reference: String,
    },
    /// List blobs
    #[command(visible_alias = "ls")]
    List {
        /// Print digests only
        #[arg(long, short)]
        quiet: bool,
        /// Filters
        filters: Vec<String>,
    },
    /// Set and clear labels
    Label {
        /// Digest
        digest: Digest,
        /// Labels, key=value; an empty value clears
        labels: Vec<String>,
    },
    /// Give up what is not needed any more
    #[command(subcommand)]
    Prune(prune::Command),
    /// Push a blob or manifest to a registry
    PushObject(objects::PushObjectFlags),
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let content = session.client.content();
        match self {
            Self::Active { timeout, root: _ } => {
                let done = active(session);
                match timeout.is_zero() {
                    true => done.await?,
                    false => tokio::time::timeout(timeout, done)
                        .await
                        .unwrap_or_else(|_| Err(Error::deadline_exceeded("listing the writes")))?,
                }
            }
            Self::Delete { digests } => {
                let mut code = 0;
                for digest in &digests {
                    match content.delete(digest).await {
                        Ok(()) => output::line(digest.as_str()),
                        Err(e) => {
                            output::error(&session.program, &e.text());
                            code = 1;
                        }
                    }
                }
                return Ok(code);
            }
            Self::Edit(flags) => flags.execute(session).await?,
            Self::Fetch { metadata_only, flags } => {
                return flags.fetch(session, metadata_only).await;
            }
            Self::FetchBlob(flags) => flags.execute().await?,
            Self::FetchObject(flags) => flags.execute().await?,
            Self::Get { digest } => get(session, &digest).await?,
            Self::Ingest { expected_size, expected_digest, reference } => {
                ingest(session, reference, expected_size, expected_digest).await?;
            }
            Self::List { quiet, filters } => list(session, quiet, &filters).await?,
            Self::Label { digest, labels } => {
                let info = if labels.is_empty() {
                    content.info(&digest).await?
                } else {
                    content.set_labels(&digest, &labels::parse(&labels)).await?
                };
                output::line(output::label_list(&info.labels));
            }
            Self::Prune(command) => command.execute(session).await?,
            Self::PushObject(flags) => flags.execute(session).await?,
        }
        Ok(0)
    }
}

async fn active(session: &Session) -> Result<()> {
    let mut table = Table::narrow(&["REF", "SIZE", "AGE"]);
    for ingest in session.client.content().statuses(&[]).await? {
        let age = output::age(ingest.started_at).into();
        table.row([ingest.reference.into(), output::compact_size_cell(ingest.offset), age]);
    }
    table.print(session.format);
    Ok(())
}

async fn list(session: &Session, quiet: bool, filters: &[String]) -> Result<()> {
    let mut all = session.client.content().list(filters).await?;
    all.sort_by(|a, b| a.digest.cmp(&b.digest));
    if quiet {
        all.iter().for_each(|i| output::line(i.digest.as_str()));
        return Ok(());
    }
    let mut table = Table::narrow(&["DIGEST", "SIZE", "AGE", "LABELS"]);
    for info in all {
        let age = output::age(info.created_at).into();
        let labels = output::labels_cell(&info.labels);
        table.row([info.digest.as_str().into(), output::compact_size_cell(info.size), age, labels]);
    }
    table.print(session.format);
    Ok(())
}

/// Writes a blob to standard output, as it comes.
async fn get(session: &Session, digest: &Digest) -> Result<()> {
    let sink = async |bytes: bytes::Bytes| {
        std::io::stdout()
            .lock()
            .write_all(&bytes)
            .map_err(|e| Error::io("writing to standard output", e))
    };
    session.client.content().read_to(digest, 0, sink).await?;
    std::io::stdout().flush().map_err(|e| Error::io("writing to standard output", e))
}

async fn ingest(
    session: &Session,
    reference: String,
    total: i64,
    expected: Option<Digest>,
) -> Result<()> {
    let options = WriterOptions { reference, total, expected };
    let mut writer = session.client.content().writer(options).await?;
    // Standard input starts at its beginning, whatever an earlier try stored.
    writer.restart().await?;
    writer.write_from(&mut tokio::io::stdin()).await?;
    writer.commit(&Labels::new()).await?;
    Ok(())
}
