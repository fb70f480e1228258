//! Opening a process's streams: what the process gets, and what the shim keeps.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use gantry_errdefs::{Error, Result};
use rustix::fs::{Gid, Uid};
use tokio::io::Interest;

use super::logger::{Logger, Slots};
use super::pump::{self, Pump, Sink, Source};
use super::target::{Program, Target};
use super::{ConsoleSocket, Deferred, Held, Io, Streams, fifo};
use crate::engine::ChildStdio;
use crate::fd;
use crate::reaper::Reaper;

/// What opening needs to know of the container.
#[derive(Debug)]
pub(crate) struct Context<'a> {
    /// The daemon's namespace.
    pub namespace: &'a str,
    /// The container.
    pub id: &'a str,
    /// Its bundle.
    pub bundle: &'a Path,
    /// Owner of pipes made here.
    pub uid: u32,
    /// Group of pipes made here.
    pub gid: u32,
    /// FIFOs may be handed over (see the parent module).
    pub hand_over: bool,
    /// The input FIFO is left alone until [`Io::start_input`] (see the parent module).
    pub defer_input: bool,
    /// For logging programs.
    pub slots: &'a Slots,
    /// For logging programs.
    pub reaper: &'a Arc<Reaper>,
}

/// The shim's side of opened streams, before the process exists. Dropping it closes everything.
#[derive(Debug)]
pub(crate) struct Opened {
    held: Held,
    pumps: Vec<(Source, Sink)>,
    input: Option<(Source, Sink)>,
    console: Option<Console>,
}

#[derive(Debug)]
struct Console {
    socket: ConsoleSocket,
    input: Option<Source>,
    output: Option<Sink>,
}

/// Opens `streams`: the process's descriptors and the shim's side of them.
///
/// # Errors
/// InvalidArgument for a stream nobody can make sense of, else the file's or program's.
pub(crate) async fn open(streams: &Streams, context: &Context<'_>) -> Result<(ChildStdio, Opened)> {
    let opened = Opened { held: Held::default(), pumps: Vec::new(), input: None, console: None };
    let mut opening = Opening { context, opened };
    let child = if streams.terminal {
        opening.terminal(streams).await?;
        let null = fd::null()?;
        ChildStdio { stdin: fd::duplicate(&null)?, stdout: fd::duplicate(&null)?, stderr: null }
    } else {
        opening.three(streams).await?
    };
    Ok((child, opening.opened))
}

impl Opened {
    /// The path the runtime sends the terminal's master to.
    pub(crate) fn console(&self) -> Option<&Path> {
        self.console.as_ref().map(|console| console.socket.path())
    }

    /// Starts what has to be copied, now that the process exists.
    ///
    /// # Errors
    /// The runtime sent no terminal.
    pub(crate) fn attach(mut self) -> Result<Io> {
        if let Some(console) = self.console.take() {
            let master = console.socket.receive()?;
            let master = pump::register(master, Interest::READABLE | Interest::WRITABLE)?;
            if let Some(input) = console.input {
                self.input = Some((input, Sink::Ready(master.clone())));
            }
            // Without a reader the terminal's output is read all the same, or it would fill up.
            let output = console.output.map_or_else(|| fd::null().map(Sink::file), Ok)?;
            self.pumps.push((master.clone(), output));
            self.held.console = Some(master);
        }
        let start = |(from, to)| Pump::start(from, to, Vec::new());
        self.held.input_pump = self.input.map(start);
        self.held.output_pumps = self.pumps.into_iter().map(start).collect();
        Ok(Io { inner: std::sync::Mutex::new(self.held) })
    }
}

struct Opening<'a> {
    context: &'a Context<'a>,
    opened: Opened,
}

impl Opening<'_> {
    async fn three(&mut self, streams: &Streams) -> Result<ChildStdio> {
        let stdin = self.stdin(&Target::parse(&streams.stdin)?)?;
        let (out, err) = (Target::parse(&streams.stdout)?, Target::parse(&streams.stderr)?);
        let (stdout, stderr) = match (&out, &err) {
            (Target::Binary(program), _) | (_, Target::Binary(program)) => {
                let ends = self.logger(program).await?;
                let pick = |target: &Target, end| match target {
                    Target::Binary(_) => Ok(end),
                    _ => fd::null(),
                };
                (pick(&out, ends.0)?, pick(&err, ends.1)?)
            }
            _ => {
                let hand_over = self.context.hand_over;
                (self.output(&out, hand_over)?, self.output(&err, false)?)
            }
        };
        Ok(ChildStdio { stdin, stdout, stderr })
    }

    fn stdin(&mut self, target: &Target) -> Result<OwnedFd> {
        let path = match target {
            Target::Null => return fd::null(),
            Target::Path(path) => path,
            _ => return Err(Error::invalid_argument("stdin: only a FIFO or a file")),
        };
        let Some(stat) = fifo::stat(path)? else { return fifo::read(path) };
        if self.context.defer_input {
            let (read, write) = self.owned_pipe()?;
            let (path, to) = (path.clone(), Sink::ready(write)?);
            self.opened.held.deferred = Some(Deferred { path, to, closed: false });
            return Ok(read);
        }
        if self.context.hand_over && stat.st_uid == 0 {
            let input = fifo::input(path, true)?;
            self.opened.held.stdin = Some(input.hold);
            return Ok(input.read);
        }
        let input = fifo::input(path, false)?;
        let (read, write) = self.owned_pipe()?;
        self.opened.held.stdin = Some(input.hold);
        let from = pump::register(input.read, Interest::READABLE)?;
        self.opened.input = Some((from, Sink::ready(write)?));
        Ok(read)
    }

    fn output(&mut self, target: &Target, hand_over: bool) -> Result<OwnedFd> {
        if let Target::Path(path) = target
            && hand_over
            && fifo::stat(path)?.is_some_and(|stat| stat.st_uid == 0)
        {
            let output = fifo::output(path, true)?;
            self.opened.held.outputs.push(output.hold);
            return Ok(output.write);
        }
        let Some(sink) = self.sink(target)? else { return fd::null() };
        let (read, write) = self.owned_pipe()?;
        self.opened.pumps.push((pump::register(read, Interest::READABLE)?, sink));
        Ok(write)
    }

    async fn terminal(&mut self, streams: &Streams) -> Result<()> {
        let socket = ConsoleSocket::listen(self.context.bundle)?;
        let input = match Target::parse(&streams.stdin)? {
            Target::Path(path) if fifo::stat(&path)?.is_some() => {
                let input = fifo::input(&path, false)?;
                self.opened.held.stdin = Some(input.hold);
                Some(pump::register(input.read, Interest::READABLE)?)
            }
            _ => None,
        };
        let output = match Target::parse(&streams.stdout)? {
            Target::Binary(program) => {
                let (out, _) = self.logger(&program).await?;
                Some(Sink::ready(out)?)
            }
            target => self.sink(&target)?,
        };
        self.opened.console = Some(Console { socket, input, output });
        Ok(())
    }

    /// Where copied output goes; none for nowhere.
    fn sink(&mut self, target: &Target) -> Result<Option<Sink>> {
        Ok(match target {
            Target::Null | Target::Binary(_) => None,
            Target::File(path) => {
                if let Some(directory) = path.parent() {
                    std::fs::create_dir_all(directory)
                        .map_err(|err| Error::io(directory.display(), err))?;
                }
                Some(Sink::file(fifo::append(path, true)?))
            }
            Target::Path(path) if fifo::stat(path)?.is_none() => {
                Some(Sink::file(fifo::append(path, false)?))
            }
            Target::Path(path) => {
                let output = fifo::output(path, false)?;
                self.opened.held.outputs.push(output.hold);
                Some(Sink::ready(output.write)?)
            }
        })
    }

    /// Starts a logging program; returns what the container's two outputs write to.
    async fn logger(&mut self, program: &Program) -> Result<(OwnedFd, OwnedFd)> {
        let (out_read, out_write) = self.owned_pipe()?;
        let (err_read, err_write) = self.owned_pipe()?;
        let context = self.context;
        let who = (context.namespace, context.id);
        let reads = (out_read, err_read);
        let logger = Logger::start(program, who, reads, context.slots, context.reaper).await?;
        self.opened.held.logger = Some(logger);
        Ok((out_write, err_write))
    }

    fn owned_pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        let (read, write) = fd::pipe()?;
        let Context { uid, gid, .. } = *self.context;
        if (uid, gid) != (0, 0) {
            let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            rustix::fs::fchown(&read, owner.0, owner.1)
                .map_err(|err| Error::io("owner of a stream", err.into()))?;
        }
        Ok((read, write))
    }
}
