//! What the command line asks the engine: a line of JSON there, lines of JSON back.

use std::path::Path;

use gantry_client::{Class, Error, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

use crate::restart::Policy;

/// The socket within the engine's directory.
pub(crate) const SOCKET: &str = "engine.sock";

/// A question to the engine.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Create { name: String, image: String, args: Vec<String>, restart: Policy },
    Start { name: String },
    Stop { name: String },
    Remove { name: String },
    Logs { name: String },
    Exec { name: String, args: Vec<String> },
    List,
    Events,
}

/// A line of an answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// To be shown.
    Text(String),
    /// The end, with the exit code.
    Done(u8),
    /// The end, with what went wrong.
    Failed { code: i32, text: String },
}

/// Asks, and shows the answer; returns the exit code.
pub(crate) async fn ask(dir: &Path, request: &Request) -> Result<u8> {
    let socket = dir.join(SOCKET);
    let io = |e| Error::io(socket.display(), e);
    let (read, mut write) = UnixStream::connect(&socket).await.map_err(io)?.into_split();
    write.write_all(&line(request)).await.map_err(io)?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.map_err(io)? {
        match serde_json::from_str(&line).map_err(|e| Error::internal(format!("answer: {e}")))? {
            Answer::Text(text) => print!("{text}"),
            Answer::Done(code) => return Ok(code),
            Answer::Failed { code, text } => return Err(Error::from_code(code, &text)),
        }
    }
    Err(Error::unavailable("engine: it went away"))
}

/// A value as a line of JSON.
pub(crate) fn line(value: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(value).expect("plain values have JSON");
    line.push(b'\n');
    line
}

impl Answer {
    /// The end that a result is.
    pub(crate) fn of(done: Result<u8>) -> Self {
        match done {
            Ok(code) => Self::Done(code),
            Err(e) => {
                let class: Class = e.class();
                Self::Failed { code: class.code(), text: e.text() }
            }
        }
    }
}
