//! `doctor`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use gantry_client::{ExamineOptions, Finding};
use gantry_errdefs::Result;
use serde_json::json;

use crate::cli::parse_duration;
use crate::output::{self, Format};
use crate::session::Session;

/// Where our clients and containerd's make FIFOs.
const FIFO_DIRS: [&str; 2] = ["/run/gantry/fifo", "/run/containerd/fifo"];

/// The exit code when something was found and not fixed.
const UNWELL: u8 = 2;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Remove or repair what is found
    #[arg(long)]
    fix: bool,
    /// Read every blob and compare its digest
    #[arg(long)]
    deep: bool,
    /// How old a cgroup, FIFO, process or socket must be to count
    #[arg(long, value_name = "TIME", default_value = "1m", value_parser = parse_duration)]
    min_age: Duration,
    /// Directories in which clients make FIFOs
    #[arg(long, value_name = "DIR")]
    fifo_dir: Vec<PathBuf>,
}

impl Flags {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let mut fifo_dirs = self.fifo_dir;
        if fifo_dirs.is_empty() {
            fifo_dirs = FIFO_DIRS.map(PathBuf::from).to_vec();
        }
        let options =
            ExamineOptions { fix: self.fix, deep: self.deep, min_age: self.min_age, fifo_dirs };
        let found = session.client.doctor().examine(options).await?;
        let unwell = found.findings.iter().any(|f| !f.fixed);
        match session.format {
            Format::Json => output::json(&json!({
                "findings": found.findings.iter().map(object).collect::<Vec<_>>(),
                "unseen": found.unseen,
            })),
            Format::Table => {
                found.findings.iter().for_each(tell);
                if found.findings.is_empty() {
                    output::line("nothing is orphaned or damaged");
                }
                output::line("not looked at:");
                found.unseen.iter().for_each(|what| output::line(format!("  {what}")));
            }
        }
        Ok(if unwell { UNWELL } else { 0 })
    }
}

fn object(finding: &Finding) -> serde_json::Value {
    json!({
        "kind": finding.kind,
        "namespace": finding.namespace,
        "id": finding.id,
        "state": finding.state,
        "reason": finding.reason,
        "remedy": finding.remedy,
        "fixed": finding.fixed,
        "error": finding.error,
    })
}

fn tell(finding: &Finding) {
    let owner = match finding.namespace.as_str() {
        "" => String::new(),
        namespace => format!(" of namespace {namespace}"),
    };
    output::line(format!("{} {}{owner}: {}", finding.state, finding.kind, finding.id));
    output::line(format!("  why: {}", finding.reason));
    let what = if finding.fixed { "done" } else { "fix" };
    output::line(format!("  {what}: {}", finding.remedy));
    if !finding.error.is_empty() {
        output::line(format!("  failed: {}", finding.error));
    }
}
