//! A registry of prepared answers, for what a real one would refuse to serve: garbage, wrong
//! digests, cut-off bodies, stalls.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_core::{Digest, media_types};

use crate::image::Image;

/// A client that is silent this long is gone.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(30);

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
    /// Waits before the first byte.
    pub delay: Duration,
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
            delay: Duration::ZERO,
            digest: None,
        }
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
        let mut range_start = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim().to_ascii_lowercase();
            if header.is_empty() {
                break;
            }
            if let Some(range) = header.strip_prefix("range: bytes=") {
                range_start =
                    range.split('-').next().and_then(|n| n.parse().ok()).unwrap_or_default();
            }
        }
        state.requests.lock().expect("no panic under the lock").push(format!("{method} {path}"));
        let reply = state.replies.lock().expect("no panic under the lock").get(&path).cloned();
        let reply = reply.unwrap_or_else(|| Reply::status(404));
        if !answer(stream, &method, &reply, range_start)? {
            return Ok(());
        }
    }
}

/// Writes one answer; false when it was cut and the connection must end.
fn answer(
    mut stream: &TcpStream,
    method: &str,
    reply: &Reply,
    range_start: usize,
) -> std::io::Result<bool> {
    std::thread::sleep(reply.delay);
    let total = reply.body.len();
    let partial = range_start > 0 && range_start < total && reply.status == 200;
    let (status, body) = if partial {
        (206, &reply.body[range_start..])
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
        let last = total - 1;
        head.push_str(&format!("Content-Range: bytes {range_start}-{last}/{total}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes())?;
    if method == "HEAD" {
        return Ok(true);
    }
    match reply.cut_after {
        Some(cut) if cut < body.len() => {
            stream.write_all(&body[..cut])?;
            Ok(false)
        }
        _ => {
            stream.write_all(body)?;
            Ok(true)
        }
    }
}
