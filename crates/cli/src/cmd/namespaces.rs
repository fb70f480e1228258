//! `namespaces`.

use clap::Subcommand;
use gantry_errdefs::Result;

use crate::labels;
use crate::output::{self, Cell, Table};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a namespace
    #[command(visible_alias = "c")]
    Create {
        /// Name
        name: String,
        /// Labels, key=value
        labels: Vec<String>,
    },
    /// List namespaces
    #[command(visible_alias = "ls")]
    List {
        /// Print names only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Remove empty namespaces
    #[command(visible_alias = "rm")]
    Remove {
        /// Remove the namespace's cgroup too
        #[arg(long, short)]
        cgroup: bool,
        /// Names
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Set and clear labels
    Label {
        /// Name
        name: String,
        /// Labels, key=value; an empty value clears
        #[arg(required = true)]
        labels: Vec<String>,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let namespaces = session.client.namespaces();
        match self {
            Self::Create { name, labels } => {
                namespaces.create(&name, &labels::parse(&labels)).await?;
            }
            Self::List { quiet } => {
                let mut all = namespaces.list().await?;
                all.sort_by(|a, b| a.name.cmp(&b.name));
                if quiet {
                    all.iter().for_each(|n| output::line(&n.name));
                    return Ok(0);
                }
                let mut table = Table::wide(&["NAME", "LABELS"]);
                for namespace in all {
                    let shown = output::label_list(&namespace.labels);
                    let value = serde_json::to_value(&namespace.labels).unwrap_or_default();
                    table.row([namespace.name.into(), Cell::new(shown, value)]);
                }
                table.print(session.format);
            }
            Self::Remove { cgroup, names } => {
                let mut code = 0;
                for name in &names {
                    match namespaces.delete(name).await {
                        Ok(()) => {
                            if cgroup {
                                remove_cgroups(name);
                            }
                            output::line(name);
                        }
                        Err(e) => {
                            output::error(&session.program, &e.text());
                            code = 1;
                        }
                    }
                }
                return Ok(code);
            }
            Self::Label { name, labels } => {
                namespaces.set_labels(&name, &labels::parse(&labels)).await?;
            }
        }
        Ok(0)
    }
}

/// Removes the empty cgroups named after a namespace; those in use stay.
fn remove_cgroups(name: &str) {
    const ROOT: &str = "/sys/fs/cgroup";
    let Ok(entries) = std::fs::read_dir(ROOT) else { return };
    for hierarchy in entries.flatten().map(|e| e.path()).chain([ROOT.into()]) {
        let _ = std::fs::remove_dir(hierarchy.join(name));
    }
}
