//! Connecting this program's input and output to a process, until it ends.

use std::time::Duration;

use gantry_client::{ExitStatus, KillOptions, Process, Streams};
use gantry_errdefs::{Error, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::raw_terminal::{RawTerminal, follow_size};
use crate::signals;

/// After the end of a process, how long its last output may take to arrive: it is in the kernel
/// already, unless something else holds the other end.
const LAST_OUTPUT_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes copied at a time.
const COPY_SIZE: usize = 32 << 10;

/// Copies between this program and `streams`, sends signals on, and waits for `process` to end.
/// `waiting` is the wait, begun before the start so that no exit is missed.
pub(crate) async fn attach(
    process: &Process,
    streams: Streams,
    terminal: bool,
    waiting: impl Future<Output = Result<ExitStatus>>,
) -> Result<ExitStatus> {
    let raw = if terminal { Some(RawTerminal::enter()?) } else { None };
    let output = tokio::spawn(copy_outputs(streams.stdout, streams.stderr));
    let input = streams.stdin.map(|stdin| tokio::spawn(copy_input(stdin, process.clone())));
    let resizing = async {
        if terminal {
            follow_size(process).await;
        } else {
            std::future::pending::<()>().await;
        }
    };
    let forwarding = signals::forward(async |number| {
        if let Err(e) = process.kill(number, KillOptions::default()).await {
            tracing::debug!(error = %e, "forwarding signal {number}");
        }
    });
    let ended = tokio::select! {
        ended = waiting => ended,
        () = resizing => unreachable!("following the size never ends"),
        () = forwarding => unreachable!("forwarding signals never ends"),
    };
    if let Some(input) = input {
        input.abort();
    }
    let copied = tokio::time::timeout(LAST_OUTPUT_PATIENCE, output).await;
    drop(raw);
    let ended = ended?;
    match copied {
        Ok(Ok(copied)) => copied?,
        Ok(Err(e)) => return Err(Error::internal(format!("copying output: {e}"))),
        Err(_) => tracing::warn!("output is still held open by someone"),
    }
    Ok(ended)
}

async fn copy_outputs(
    stdout: Option<tokio::net::unix::pipe::Receiver>,
    stderr: Option<tokio::net::unix::pipe::Receiver>,
) -> Result<()> {
    let out = async {
        match stdout {
            Some(from) => copy(from, tokio::io::stdout()).await,
            None => Ok(()),
        }
    };
    let err = async {
        match stderr {
            Some(from) => copy(from, tokio::io::stderr()).await,
            None => Ok(()),
        }
    };
    let (out, err) = tokio::join!(out, err);
    out.and(err)
}

/// Copies to the end. When nobody reads what we write, the rest is read and dropped, so that the
/// container is not blocked by it.
async fn copy(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
) -> Result<()> {
    let mut buffer = vec![0; COPY_SIZE];
    let mut listening = true;
    loop {
        let count = from.read(&mut buffer).await.map_err(|e| Error::io("reading output", e))?;
        if count == 0 {
            return Ok(());
        }
        if listening {
            let written = async {
                to.write_all(&buffer[..count]).await?;
                to.flush().await
            };
            listening = written.await.is_ok();
        }
    }
}

/// Copies standard input, and closes the process' input at its end.
async fn copy_input(mut stdin: tokio::net::unix::pipe::Sender, process: Process) {
    let mut input = tokio::io::stdin();
    let mut buffer = vec![0; COPY_SIZE];
    loop {
        match input.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => {
                if stdin.write_all(&buffer[..count]).await.is_err() {
                    break;
                }
            }
        }
    }
    drop(stdin);
    if let Err(e) = process.close_stdin().await {
        tracing::debug!(error = %e, "closing the input");
    }
}
