//! A registry of prepared answers, for what a real one would refuse to serve: garbage, wrong
//! digests, cut-off bodies, stalls.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_core::{Digest, media_types};

use crate::image::Image;

/// A client that is silent this long is gone.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

/// Bytes of a body sent at once.
const PIECE: usize = 64 << 10;

/// What the stub answers to a path.
#[derive(Clone, Debug)]
pub struct Reply {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub media_type: String,
    /// Body.
    pub body: Vec<u8>,
    /// Cuts the connection after this many bytes of the body.
    pub cut_after: Option<usize>,
    /// Stops sending after this many bytes of the body, until the path has another answer or the
    /// client has gone.
    pub stall_after: Option<usize>,
    /// Waits before the first byte.
    pub delay: Duration,
    /// Asks who the client is, by this `WWW-Authenticate` header.
    pub challenge: Option<String>,
    /// Overrides the `Docker-Content-Digest` header.
    pub digest: Option<String>,
}

impl Reply {
    /// A whole, prompt answer.
    pub fn ok(media_type: &str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            media_type: media_type.to_owned(),
            body: body.into(),
            cut_after: None,
            stall_after: None,
            challenge: None,
            delay: Duration::ZERO,
            digest: None,
        }
    }

    /// A refusal that asks who the client is.
    pub fn challenge(how: &str) -> Self {
        Self { challenge: Some(how.to_owned()), ..Self::status(401) }
    }

    /// An answer with nothing but a status.
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("text/plain", "") }
    }
}

/// An HTTP server on this machine with an answer per path; unknown paths get 404.
#[derive(Debug)]
pub struct StubRegistry {
    host: String,
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    replies: Mutex<HashMap<String, Reply>>,
    requests: Mutex<Vec<String>>,
    /// Bytes of bodies that went out, by path.
    sent: Mutex<HashMap<String, u64>>,
    /// Answers that are stalled right now.
    stalled: AtomicUsize,
    stopped: AtomicBool,
}

impl StubRegistry {
    /// Starts the server on a free port.
    ///
    /// # Panics
    /// When no port can be had.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let host = listener.local_addr().expect("a bound socket has an address").to_string();
        let state = Arc::new(State::default());
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if shared.stopped.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let _ = serve(&stream, &shared);
                });
            }
        });
        let stub = Self { host, state };
        stub.reply("/v2/", Reply::ok("application/json", "{}"));
        stub
    }

    /// `127.0.0.1:<port>`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Sets the answer to `path`.
    pub fn reply(&self, path: &str, reply: Reply) {
        self.state.replies.lock().expect("no panic under the lock").insert(path.to_owned(), reply);
    }

    /// Serves a whole image as `repository:tag`; single answers may be replaced afterwards.
    /// Returns the full reference.
    pub fn serve_image(&self, image: &Image, repository: &str, tag: &str) -> String {
        for descriptor in image.descriptors() {
            let media_type = descriptor.media_type.as_str();
            let is_manifest = media_types::is_document(media_type);
            let kind = if is_manifest { "manifests" } else { "blobs" };
            let reply = Reply::ok(media_type, image.blob(&descriptor.digest));
            if is_manifest && descriptor.digest == image.top().digest {
                self.reply(&format!("/v2/{repository}/manifests/{tag}"), reply.clone());
            }
            self.reply(&format!("/v2/{repository}/{kind}/{}", descriptor.digest), reply);
        }
        format!("{}/{repository}:{tag}", self.host)
    }

    /// Bytes of the body of `path` that were sent so far.
    pub fn sent(&self, path: &str) -> u64 {
        let sent = self.state.sent.lock().expect("no panic under the lock");
        sent.get(path).copied().unwrap_or_default()
    }

    /// Answers that are stalled, their clients still there.
    pub fn stalled(&self) -> usize {
        self.state.stalled.load(Ordering::SeqCst)
    }

    /// The requests so far, as `METHOD path`.
    pub fn requests(&self) -> Vec<String> {
        self.state.requests.lock().expect("no panic under the lock").clone()
    }
}

impl Drop for StubRegistry {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect(&self.host);
    }
}

/// Serves the requests of one connection until it closes or an answer is cut.
fn serve(stream: &TcpStream, state: &State) -> std::io::Result<()> {
    stream.set_read_timeout(Some(CLIENT_TIMEOUT))?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut words = line.split(' ');
        let (method, target) =
            (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default());
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let mut range = (0, usize::MAX);
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some((start, end)) =
                header.strip_prefix("range: bytes=").and_then(|r| r.split_once('-'))
            {
                range = (start.parse().unwrap_or_default(), end.parse().unwrap_or(usize::MAX));
            }
        }
        state.requests.lock().expect("no panic under the lock").push(format!("{method} {path}"));
        let reply = state.replies.lock().expect("no panic under the lock").get(&path).cloned();
        let reply = reply.unwrap_or_else(|| Reply::status(404));
        let asked = Asked { method: &method, path: &path, range };
        if !answer(stream, &asked, &reply, state)? {
            return Ok(());
        }
    }
}

/// What of a request an answer depends on.
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    /// First and last byte wanted.
    range: (usize, usize),
}

/// Writes one answer; false when it was cut and the connection must end.
fn answer(
    mut stream: &TcpStream,
    asked: &Asked<'_>,
    reply: &Reply,
    state: &State,
) -> std::io::Result<bool> {
    std::thread::sleep(reply.delay);
    let total = reply.body.len();
    let (start, last) = (asked.range.0, asked.range.1.min(total.saturating_sub(1)));
    let partial = (start > 0 || last + 1 < total) && start <= last && reply.status == 200;
    let (status, body) = if partial {
        (206, &reply.body[start..=last])
    } else {
        (reply.status, reply.body.as_slice())
    };
    let digest = reply.digest.clone().unwrap_or_else(|| Digest::of(&reply.body).to_string());
    let mut head = format!(
        "HTTP/1.1 {status} Stub\r\nContent-Type: {}\r\nContent-Length: {}\r\n\
         Accept-Ranges: bytes\r\nDocker-Content-Digest: {digest}\r\n",
        reply.media_type,
        body.len()
    );
    if partial {
        head.push_str(&format!("Content-Range: bytes {start}-{last}/{total}\r\n"));
    }
    if let Some(challenge) = &reply.challenge {
        head.push_str(&format!("WWW-Authenticate: {challenge}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if asked.method == "HEAD" {
        return Ok(true);
    }
    let cut = reply.cut_after.unwrap_or(usize::MAX).min(body.len());
    let stall = reply.stall_after.unwrap_or(usize::MAX);
    // Where the body begins within the blob.
    let begin = if partial { start } else { 0 };
    for (n, piece) in body[..cut].chunks(PIECE).enumerate() {
        if begin + n * PIECE >= stall {
            return wait_stalled(stream, asked.path, state).map(|()| false);
        }
        stream.write_all(piece)?;
        let mut sent = state.sent.lock().expect("no panic under the lock");
        *sent.entry(asked.path.to_owned()).or_default() += piece.len() as u64;
    }
    Ok(cut == body.len())
}

/// Waits until the path has an answer that does not stall, or the client closes the connection.
fn wait_stalled(stream: &TcpStream, path: &str, state: &State) -> std::io::Result<()> {
    state.stalled.fetch_add(1, Ordering::SeqCst);
    stream.set_nonblocking(true)?;
    let ended = loop {
        let replies = state.replies.lock().expect("no panic under the lock");
        let still = replies.get(path).is_some_and(|reply| reply.stall_after.is_some());
        drop(replies);
        let gone = matches!(stream.peek(&mut [0]), Ok(0))
            || stream.peek(&mut [0]).is_err_and(|e| e.kind() != std::io::ErrorKind::WouldBlock);
        if !still || gone || state.stopped.load(Ordering::Relaxed) {
            break Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    state.stalled.fetch_sub(1, Ordering::SeqCst);
    ended
}
