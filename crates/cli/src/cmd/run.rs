//! `run`, and what it shares with `tasks start`.

use std::path::{Path, PathBuf};

use clap::Args;
use gantry_client::core::Descriptor;
use gantry_client::{Container, FifoSet, Stdio, Task};
use gantry_errdefs::{Error, Result};

use crate::attach::attach;
use crate::cmd::create::ContainerFlags;
use crate::output;
use crate::session::Session;

#[derive(Debug, Args)]
pub(crate) struct Flags {
    /// Remove the container when it has ended
    #[arg(long, conflicts_with = "detach")]
    rm: bool,
    #[command(flatten)]
    io: IoFlags,
    #[command(flatten)]
    container: ContainerFlags,
}

/// Flags about input and output of a task.
#[derive(Debug, Args)]
pub(crate) struct IoFlags {
    /// Return once the container runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// No input; output is thrown away
    #[arg(long)]
    pub(crate) null_io: bool,
    /// Output goes to this URI, such as file:///var/log/x
    #[arg(long, value_name = "URI")]
    pub(crate) log_uri: Option<String>,
    /// Directory for FIFOs
    #[arg(long, value_name = "DIR")]
    pub(crate) fifo_dir: Option<PathBuf>,
}

/// Where a task's input and output go.
enum Io {
    /// To this program, through FIFOs.
    Fifos(FifoSet),
    /// Elsewhere.
    Other(Stdio),
}

impl Flags {
    pub(crate) async fn execute(mut self, session: &Session) -> Result<u8> {
        self.container.thrown_away = self.rm;
        if self.rm {
            // Asked for before anything is made, so that a bad command line leaves nothing.
            self.io.check(self.container.tty)?;
        }
        let container = self.container.create(session).await?;
        let pid_file = self.container.pid_file.as_deref();
        let ran = run_task(&container, &self.io, self.container.tty, pid_file).await;
        if self.rm || ran.is_err() && !exists(&container).await {
            let removed = if self.rm { container.delete(true).await } else { Ok(()) };
            return match (ran, removed) {
                (Ok(code), Ok(())) => Ok(code),
                (Err(e), _) | (Ok(_), Err(e)) => Err(e),
            };
        }
        ran
    }
}

/// Whether the container's record is still there.
async fn exists(container: &Container) -> bool {
    container.client().containers().get(container.id()).await.is_ok()
}

impl IoFlags {
    fn check(&self, terminal: bool) -> Result<()> {
        if self.null_io && terminal {
            return Err(Error::invalid_argument("null io can not be used with a terminal"));
        }
        if self.log_uri.is_some() && self.null_io {
            return Err(Error::invalid_argument("log uri can not be used with null io"));
        }
        Ok(())
    }

    fn open(&self, id: &str, terminal: bool) -> Result<Io> {
        self.check(terminal)?;
        if self.null_io {
            return Ok(Io::Other(Stdio::null()));
        }
        if let Some(uri) = &self.log_uri {
            return Ok(Io::Other(Stdio::log_uri(uri, terminal)));
        }
        // A detached container has no input: nobody could end it.
        let fifos =
            FifoSet::create(self.fifo_dir.as_deref(), id, !self.detach || terminal, terminal)?;
        Ok(Io::Fifos(fifos))
    }
}

/// Makes and starts the container's task; in the foreground waits for its end, removes it and
/// returns its exit code.
pub(crate) async fn run_task(
    container: &Container,
    flags: &IoFlags,
    terminal: bool,
    pid_file: Option<&Path>,
) -> Result<u8> {
    run_task_from(container, flags, terminal, pid_file, None).await
}

/// As [`run_task`], going on from a checkpoint's processes where there are any.
pub(crate) async fn run_task_from(
    container: &Container,
    flags: &IoFlags,
    terminal: bool,
    pid_file: Option<&Path>,
    checkpoint: Option<Descriptor>,
) -> Result<u8> {
    let io = flags.open(container.id(), terminal)?;
    let stdio = match &io {
        Io::Fifos(fifos) => fifos.stdio().clone(),
        Io::Other(stdio) => stdio.clone(),
    };
    let streams = match &io {
        Io::Fifos(fifos) if !flags.detach => Some(fifos.stdio().open()?),
        _ => None,
    };
    let mut task = container.new_task(&stdio);
    if let Some(checkpoint) = checkpoint {
        task = task.checkpoint(checkpoint);
    }
    let task = task.create().await?;
    let started = start(&task, pid_file).await;
    if let Err(e) = started {
        let _ = task.delete_with_kill().await;
        return Err(e);
    }
    if flags.detach {
        if let Io::Fifos(fifos) = io {
            fifos.keep();
        }
        return Ok(0);
    }
    let ended = match streams {
        Some(streams) => attach(&task, streams, terminal, task.wait()).await,
        None => task.wait().await,
    };
    let ended = match ended {
        Ok(ended) => ended,
        Err(e) => {
            // The task is not ours to remove when we don't know its end.
            if let Io::Fifos(fifos) = io {
                fifos.keep();
            }
            return Err(e);
        }
    };
    match task.delete().await {
        // Removed by someone else meanwhile.
        Err(e) if !e.is_not_found() => return Err(e),
        _ => {}
    }
    Ok(code(ended.code))
}

async fn start(task: &Task, pid_file: Option<&Path>) -> Result<()> {
    if let Some(path) = pid_file {
        std::fs::write(path, task.pid().to_string())
            .map_err(|e| Error::io(format!("writing {}", path.display()), e))?;
    }
    task.start().await?;
    Ok(())
}

/// A container's exit code as this program's.
pub(crate) fn code(code: u32) -> u8 {
    if code > 255 {
        output::error("gantry", &format!("the container's exit code is {code}"));
    }
    u8::try_from(code).unwrap_or(u8::MAX)
}
