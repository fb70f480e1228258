//! `leases`.

use std::time::Duration;

use clap::Subcommand;
use gantry_client::LeaseOptions;
use gantry_errdefs::Result;

use crate::cli::parse_duration;
use crate::labels;
use crate::output::{self, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List leases
    #[command(visible_alias = "ls")]
    List {
        /// Print ids only
        #[arg(long, short)]
        quiet: bool,
        /// Filters
        filters: Vec<String>,
    },
    /// Make a lease
    Create {
        /// Id; invented when not given
        #[arg(long, default_value = "")]
        id: String,
        /// Lifetime; 0 lives until it is deleted
        #[arg(long, short = 'x', default_value = "24h", value_parser = parse_duration)]
        expires: Duration,
        /// Labels, key=value
        labels: Vec<String>,
    },
    /// Delete leases
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Return after what they held is collected
        #[arg(long)]
        sync: bool,
        /// Ids
        #[arg(required = true)]
        ids: Vec<String>,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let leases = session.client.leases();
        match self {
            Self::List { quiet, filters } => {
                let mut all = leases.list(&filters).await?;
                all.sort_by(|a, b| a.id.cmp(&b.id));
                if quiet {
                    all.iter().for_each(|l| output::line(&l.id));
                    return Ok(0);
                }
                let mut table = Table::narrow(&["ID", "CREATED AT", "LABELS"]);
                for lease in all {
                    let (created, labels) =
                        (output::time_cell(lease.created_at), output::labels_cell(&lease.labels));
                    table.row([lease.id.into(), created, labels]);
                }
                table.print(session.format);
            }
            Self::Create { id, expires, labels } => {
                let options = LeaseOptions {
                    id,
                    expires: (!expires.is_zero()).then_some(expires),
                    labels: labels::parse(&labels),
                };
                output::line(leases.create(options).await?.id);
            }
            Self::Delete { sync, ids } => {
                let last = ids.len() - 1;
                for (n, id) in ids.iter().enumerate() {
                    // One collection, after the last, collects for all.
                    leases.delete(id, sync && n == last).await?;
                    output::line(id);
                }
            }
        }
        Ok(0)
    }
}
