//! The engine's socket.

use std::path::Path;
use std::sync::Arc;

use gantry_client::{Error, Result};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::RecvError;

use crate::api::{Answer, Request, SOCKET, line};
use crate::engine::Engine;

/// Serves until it is killed.
pub(crate) async fn serve(dir: &Path, address: &str, namespace: &str) -> Result<()> {
    let engine = Engine::start(dir, address, namespace).await?;
    let socket = dir.join(SOCKET);
    let io = |e| Error::io(socket.display(), e);
    // That of an engine that was killed.
    let _ = std::fs::remove_file(&socket);
    let listener = UnixListener::bind(&socket).map_err(io)?;
    loop {
        let (stream, _) = listener.accept().await.map_err(io)?;
        let engine = engine.clone();
        tokio::spawn(async move {
            if let Err(e) = answer(&engine, stream).await {
                eprintln!("engine: {e}");
            }
        });
    }
}

async fn answer(engine: &Arc<Engine>, stream: UnixStream) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let Some(text) = BufReader::new(read).lines().next_line().await? else { return Ok(()) };
    let request: Request = match serde_json::from_str(&text) {
        Ok(request) => request,
        Err(e) => {
            let bad = Answer::of(Err(Error::invalid_argument(format!("request: {e}"))));
            return write.write_all(&line(&bad)).await;
        }
    };
    if matches!(request, Request::Events) {
        let mut events = engine.subscribe();
        loop {
            match events.recv().await {
                Ok(event) => write.write_all(&line(&Answer::Text(event + "\n"))).await?,
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }
    let (text, done) = match act(engine, request).await {
        Ok((text, code)) => (text, Ok(code)),
        Err(e) => (String::new(), Err(e)),
    };
    if !text.is_empty() {
        write.write_all(&line(&Answer::Text(text))).await?;
    }
    write.write_all(&line(&Answer::of(done))).await
}

/// Does what is asked; returns what to show and the exit code.
async fn act(engine: &Arc<Engine>, request: Request) -> Result<(String, u8)> {
    let mut text = String::new();
    match request {
        Request::Create { name, image, args, restart } => {
            engine.create(&name, &image, args, restart).await?;
        }
        Request::Start { name } => engine.start_container(&name).await?,
        Request::Stop { name } => engine.stop(&name).await?,
        Request::Remove { name } => engine.remove(&name).await?,
        Request::Logs { name } => text = engine.logs(&name)?,
        Request::List => text = engine.list().await?,
        Request::Exec { name, args } => {
            let (output, code) = engine.exec(&name, args).await?;
            let code = u8::try_from(code).unwrap_or(u8::MAX);
            return Ok((String::from_utf8_lossy(&output).into_owned(), code));
        }
        Request::Events => {}
    }
    Ok((text, 0))
}
