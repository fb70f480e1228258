//! `shims`.

use std::path::PathBuf;

use clap::Subcommand;
use gantry_client::{Client, ShimOutcome, ShimUpgradeOptions};
use gantry_errdefs::{Error, Result};

use crate::output::Table;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List shims, the processes behind tasks
    #[command(visible_alias = "ls")]
    List {
        /// Those of every namespace
        #[arg(long, short = 'A')]
        all_namespaces: bool,
    },
    /// Have running shims execute their program anew, in place
    Upgrade {
        /// Those of every namespace
        #[arg(long, short = 'A')]
        all_namespaces: bool,
        /// Another program than each shim's own path
        #[arg(long, value_name = "PATH")]
        program: Option<PathBuf>,
        /// Also those that run the program already
        #[arg(long)]
        force: bool,
        /// Tasks whose shims are meant; all without
        tasks: Vec<String>,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        match self {
            Self::List { all_namespaces } => list(session, all_namespaces).await,
            Self::Upgrade { all_namespaces, program, force, tasks } => {
                let program = match program {
                    Some(path) => std::path::absolute(&path)
                        .map_err(|e| Error::io(path.display(), e))?
                        .display()
                        .to_string(),
                    None => String::new(),
                };
                let options = ShimUpgradeOptions { tasks, program, force };
                upgrade(session, all_namespaces, options).await
            }
        }
    }
}

fn client(session: &Session, all_namespaces: bool) -> Client {
    if all_namespaces { session.client.in_namespace("") } else { session.client.clone() }
}

async fn list(session: &Session, all_namespaces: bool) -> Result<u8> {
    let shims = client(session, all_namespaces).shims().list().await?;
    let mut table = Table::wide(&["NAMESPACE", "TASKS", "PID", "VERSION", "STATUS", "PROGRAM"]);
    for shim in shims {
        let version = if shim.version.is_empty() { "-".to_owned() } else { shim.version };
        table.row([
            shim.namespace.into(),
            shim.tasks.join(",").into(),
            shim.pid.to_string().into(),
            version.into(),
            shim.status.as_str().to_owned().into(),
            shim.program.into(),
        ]);
    }
    table.print(session.format);
    Ok(0)
}

async fn upgrade(
    session: &Session,
    all_namespaces: bool,
    options: ShimUpgradeOptions,
) -> Result<u8> {
    let outcomes = client(session, all_namespaces).shims().upgrade(options).await?;
    let mut table = Table::wide(&["NAMESPACE", "TASKS", "PID", "RESULT", "DETAIL"]);
    let mut code = 0;
    for (shim, outcome) in outcomes {
        let (result, detail) = match outcome {
            ShimOutcome::LeftAlone(why) => ("left alone", why),
            ShimOutcome::Upgraded(from) => ("upgraded", format!("from version {from}")),
            ShimOutcome::Failed(why) => {
                code = 1;
                ("failed", why)
            }
        };
        table.row([
            shim.namespace.into(),
            shim.tasks.join(",").into(),
            shim.pid.to_string().into(),
            result.to_owned().into(),
            detail.into(),
        ]);
    }
    table.print(session.format);
    Ok(code)
}
