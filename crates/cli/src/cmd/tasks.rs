//! `tasks`.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use gantry_client::{
    CheckpointImageOptions, CheckpointOptions, FifoSet, KillOptions, ProcessStatus, Stdio,
    TaskMetrics,
};
use gantry_errdefs::{Error, Result};

use crate::attach::attach;
use crate::cmd::resources::ResourceFlags;
use crate::cmd::run::{IoFlags, code, run_task};
use crate::output::{self, Cell, Table};
use crate::session::Session;
use crate::signals;

/// Where an exec joins the task's own process in its flags.
#[derive(Debug, Args)]
pub(crate) struct ExecFlags {
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// Give the process a terminal
    #[arg(long, short)]
    tty: bool,
    /// Return once the process runs
    #[arg(long, short)]
    detach: bool,
    /// Id of the process
    #[arg(long, value_name = "ID")]
    exec_id: Option<String>,
    /// Directory for FIFOs
    #[arg(long, value_name = "DIR")]
    fifo_dir: Option<PathBuf>,
    /// Output goes to this URI
    #[arg(long, value_name = "URI")]
    log_uri: Option<String>,
    /// User, name or number, with or without :group
    #[arg(long, value_name = "USER")]
    user: Option<String>,
    /// Container
    id: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
    args: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Connect to the input and output of a running container
    Attach {
        /// Container
        id: String,
    },
    /// Checkpoint a container
    Checkpoint {
        /// End the container
        #[arg(long)]
        exit: bool,
        /// Directory for the image files
        #[arg(long, value_name = "DIR", default_value = "")]
        image_path: String,
        /// Directory for logs
        #[arg(long, value_name = "DIR", default_value = "")]
        work_path: String,
        /// Container
        id: String,
    },
    /// Delete tasks
    #[command(visible_aliases = ["del", "remove", "rm"])]
    Delete {
        /// Kill what runs
        #[arg(long, short)]
        force: bool,
        /// Delete this process of the container
        #[arg(long, value_name = "ID")]
        exec_id: Option<String>,
        /// Containers
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// Run another process in a running container
    Exec(Box<ExecFlags>),
    /// List tasks
    #[command(visible_alias = "ls")]
    List {
        /// Print ids only
        #[arg(long, short)]
        quiet: bool,
    },
    /// Send a signal
    Kill {
        /// Signal
        #[arg(long, short, default_value = "SIGTERM", value_parser = signals::parse)]
        signal: u32,
        /// To this process of the container
        #[arg(long, value_name = "ID", default_value = "")]
        exec_id: String,
        /// To every process of the container
        #[arg(long, short)]
        all: bool,
        /// Container
        id: String,
    },
    /// Show one reading of a container's cgroup
    #[command(visible_alias = "metric")]
    Metrics {
        /// Container
        id: String,
    },
    /// Freeze a container
    Pause {
        /// Container
        id: String,
    },
    /// List the processes of a container
    Ps {
        /// Container
        id: String,
    },
    /// Thaw a container
    Resume {
        /// Container
        id: String,
    },
    /// Start a container that was made
    Start {
        #[command(flatten)]
        io: IoFlags,
        /// Write the task's pid to this file
        #[arg(long, value_name = "FILE")]
        pid_file: Option<PathBuf>,
        /// Container
        id: String,
    },
    /// Change the limits of a running container
    Update {
        #[command(flatten)]
        resources: ResourceFlags,
        /// Container
        id: String,
    },
}

impl Command {
    pub(crate) async fn execute(self, session: &Session) -> Result<u8> {
        let tasks = session.client.tasks();
        match self {
            Self::Attach { id } => return reattach(session, &id).await,
            Self::Checkpoint { exit, image_path, work_path, id } => {
                let criu = CheckpointOptions { exit, image_path, work_path, ..Default::default() };
                let task = tasks.load(&id).await?;
                if criu.image_path.is_empty() {
                    let options = CheckpointImageOptions { criu, ..Default::default() };
                    output::line(task.checkpoint_image(options).await?.name());
                } else {
                    task.checkpoint(&criu).await?;
                }
            }
            Self::Delete { force, exec_id, ids } => {
                return delete(session, force, exec_id, &ids).await;
            }
            Self::Exec(flags) => return flags.execute(session).await,
            Self::List { quiet } => list(session, quiet).await?,
            Self::Kill { signal, exec_id, all, id } => {
                // Which of the two is missing, container or task, is the daemon's to say.
                tasks.process(&id, &exec_id).kill(signal, KillOptions { all }).await?;
            }
            Self::Metrics { id } => metrics(session, &id).await?,
            Self::Pause { id } => tasks.load(&id).await?.pause().await?,
            Self::Ps { id } => {
                let mut table = Table::wide(&["PID", "INFO"]);
                for process in tasks.load(&id).await?.pids().await? {
                    let info = if process.exec_id.is_empty() {
                        "-".to_owned()
                    } else {
                        format!("exec_id:\"{}\"", process.exec_id)
                    };
                    let pid = Cell::new(process.pid.to_string(), process.pid);
                    table.row([pid, Cell::new(info, process.exec_id)]);
                }
                table.print(session.format);
            }
            Self::Resume { id } => tasks.load(&id).await?.resume().await?,
            Self::Start { io, pid_file, id } => {
                let container = session.client.container(&id).await?;
                let spec = container.spec()?;
                let terminal = spec.process().as_ref().and_then(|p| p.terminal());
                let terminal = terminal.unwrap_or(false);
                return run_task(&container, &io, terminal, pid_file.as_deref()).await;
            }
            Self::Update { resources, id } => {
                let resources = resources.resources()?;
                tasks.load(&id).await?.update(&resources).await?;
            }
        }
        Ok(0)
    }
}

async fn list(session: &Session, quiet: bool) -> Result<()> {
    let mut all = session.client.tasks().list().await?;
    all.sort_by(|a, b| a.id.cmp(&b.id));
    if quiet {
        all.iter().for_each(|t| output::line(&t.id));
        return Ok(());
    }
    let mut table = Table::wide(&["TASK", "PID", "STATUS"]);
    for task in all {
        let pid = Cell::new(task.pid.to_string(), task.pid);
        table.row([task.id.into(), pid, task.status.as_str().into()]);
    }
    table.print(session.format);
    Ok(())
}

async fn delete(
    session: &Session,
    force: bool,
    exec_id: Option<String>,
    ids: &[String],
) -> Result<u8> {
    let tasks = session.client.tasks();
    let exec_id = exec_id.unwrap_or_default();
    let mut last = 0;
    for id in ids {
        let process = tasks.process(id, &exec_id);
        let deleted = async {
            let stdio = process.state().await?.stdio;
            let exit =
                if force { process.delete_with_kill().await? } else { process.delete().await? };
            stdio.remove_fifos();
            Ok::<_, Error>(exit)
        };
        match deleted.await {
            // As ctr: the code is the exec's own, while a task's is only told.
            Ok(exit) if !exec_id.is_empty() => last = code(exit.code),
            Ok(exit) if exit.code != 0 => {
                let text = format!("task {id} exit with non-zero exit code {}", exit.code);
                output::warning(&session.program, &text);
            }
            Ok(_) => {}
            Err(e) => {
                let e = e.context(format!("unable to delete {id}"));
                output::error(&session.program, &e.text());
                last = 1;
            }
        }
    }
    Ok(last)
}

/// Attaches to a task by the FIFOs its maker left.
async fn reattach(session: &Session, id: &str) -> Result<u8> {
    let task = session.client.tasks().load(id).await?;
    let state = task.state().await?;
    if state.status == ProcessStatus::Stopped {
        let code = task.delete().await?.code;
        return Ok(self::code(code));
    }
    let streams = state.stdio.open()?;
    let ended = attach(&task, streams, state.stdio.terminal, task.wait()).await?;
    match task.delete().await {
        Err(e) if !e.is_not_found() => return Err(e),
        _ => {}
    }
    state.stdio.remove_fifos();
    Ok(code(ended.code))
}

impl ExecFlags {
    async fn execute(self, session: &Session) -> Result<u8> {
        let container = session.client.container(&self.id).await?;
        let task = container.task().await?;
        let mut process = container.spec()?.process().clone().unwrap_or_default();
        process.set_terminal(Some(self.tty)).set_args(Some(self.args));
        if let Some(directory) = self.cwd {
            process.set_cwd(directory);
        }
        if let Some(user) = &self.user {
            let user = container.users().await?.resolve(user)?;
            let mut ids = gantry_client::oci::runtime::User::default();
            ids.set_uid(user.uid).set_gid(user.gid).set_additional_gids(Some(user.groups));
            process.set_user(ids);
        }
        let exec_id = self.exec_id.unwrap_or_else(|| {
            let random: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
            format!("exec-{random}")
        });
        if let Some(uri) = self.log_uri {
            let stdio = Stdio::log_uri(uri, self.tty);
            let exec = task.exec(&exec_id, &process, &stdio).await?;
            exec.start().await?;
            if self.detach {
                return Ok(0);
            }
            let ended = exec.wait().await?;
            exec.delete().await?;
            return Ok(code(ended.code));
        }
        let input = !self.detach || self.tty;
        let fifos = FifoSet::create(self.fifo_dir.as_deref(), &exec_id, input, self.tty)?;
        let streams = fifos.stdio().open()?;
        let exec = task.exec(&exec_id, &process, fifos.stdio()).await?;
        if let Err(e) = exec.start().await {
            let _ = exec.delete().await;
            return Err(e);
        }
        if self.detach {
            fifos.keep();
            return Ok(0);
        }
        let ended = attach(&exec, streams, self.tty, exec.wait()).await?;
        match exec.delete().await {
            Err(e) if !e.is_not_found() => return Err(e),
            _ => {}
        }
        Ok(code(ended.code))
    }
}

async fn metrics(session: &Session, id: &str) -> Result<()> {
    let metrics = session.client.tasks().load(id).await?.metrics().await?;
    let mut head = Table::narrow(&["ID", "TIMESTAMP"]);
    head.row([metrics.id.into(), output::time_cell(metrics.timestamp)]);
    let mut table = Table::narrow(&["METRIC", "VALUE"]);
    let mut add = |name: &'static str, value: u64| {
        table.row([name.into(), Cell::new(value.to_string(), value)]);
    };
    match metrics.data {
        TaskMetrics::V1(v1) => {
            let memory = v1.memory.unwrap_or_default();
            let usage = memory.usage.unwrap_or_default();
            add("memory.usage_in_bytes", usage.usage);
            add("memory.limit_in_bytes", usage.limit);
            add("memory.stat.cache", memory.total_cache);
            let cpu = v1.cpu.unwrap_or_default();
            add("cpuacct.usage", cpu.usage.unwrap_or_default().total);
            let pids = v1.pids.unwrap_or_default();
            add("pids.current", pids.current);
            add("pids.limit", pids.limit);
        }
        TaskMetrics::V2(v2) => {
            let pids = v2.pids.unwrap_or_default();
            add("pids.current", pids.current);
            add("pids.limit", pids.limit);
            let cpu = v2.cpu.unwrap_or_default();
            add("cpu.usage_usec", cpu.usage_usec);
            add("cpu.user_usec", cpu.user_usec);
            add("cpu.system_usec", cpu.system_usec);
            add("cpu.nr_periods", cpu.nr_periods);
            add("cpu.nr_throttled", cpu.nr_throttled);
            add("cpu.throttled_usec", cpu.throttled_usec);
            let memory = v2.memory.unwrap_or_default();
            add("memory.usage", memory.usage);
            add("memory.usage_limit", memory.usage_limit);
            add("memory.swap_usage", memory.swap_usage);
            add("memory.swap_limit", memory.swap_limit);
        }
        TaskMetrics::Other(any) => {
            let why = format!("metrics of type {:?} are not known", any.type_url);
            return Err(Error::unimplemented(why));
        }
    }
    if session.format == output::Format::Table {
        head.print(session.format);
        output::line("");
    }
    table.print(session.format);
    Ok(())
}
