//! A registry in this process: every request goes to a function that says what happens.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use gantry_core::Reference;
use gantry_registry::{Credentials, Hosts, HostsOptions, Repository, Resolver, ResolverOptions};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// A request as it arrived.
#[derive(Clone, Debug, Default)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// Path with its query.
    pub(crate) target: String,
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The start of a `Range: bytes=N-` header.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What to answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// Close the connection after this many bytes of the body.
    pub(crate) cut_after: Option<usize>,
    /// Close the connection without a word.
    pub(crate) hang_up: bool,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    pub(crate) fn body(body: impl Into<Vec<u8>>) -> Self {
        Self { status: 200, body: body.into(), ..Self::default() }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.to_owned(), value.to_string()));
        self
    }

    pub(crate) fn cut(mut self, after: usize) -> Self {
        self.cut_after = Some(after);
        self
    }
}

pub(crate) type Log = Arc<Mutex<Vec<Request>>>;

/// A running fake; its task ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) authority: String,
    pub(crate) log: Log,
}

impl Fake {
    pub(crate) async fn start(answer: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let log = Log::default();
        let (answer, their_log) = (Arc::new(answer), log.clone());
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, answer.clone(), their_log.clone()));
            }
        });
        Self { authority, log }
    }

    /// Requests so far, `METHOD target` each.
    pub(crate) fn seen(&self) -> Vec<String> {
        let log = self.log.lock().unwrap();
        log.iter().map(|r| format!("{} {}", r.method, r.target)).collect()
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.log.lock().unwrap().clone()
    }

    pub(crate) async fn repository(&self) -> Repository {
        repository(&format!("{}/a/b:tag", self.authority), Hosts::default()).await
    }

    pub(crate) async fn repository_as(
        &self,
        credentials: impl Credentials + 'static,
    ) -> Repository {
        let credentials = Arc::new(credentials);
        let resolver = Resolver::new(ResolverOptions { hosts: Hosts::default(), credentials });
        let reference = format!("{}/a/b:tag", self.authority);
        resolver.repository(&Reference::parse(&reference).unwrap()).await.unwrap()
    }
}

pub(crate) async fn repository(reference: &str, hosts: Hosts) -> Repository {
    let resolver = Resolver::default().with_hosts(hosts);
    resolver.repository(&Reference::parse(reference).unwrap()).await.unwrap()
}

/// Hosts of `registry` by the text of a `hosts.toml`; the directory must outlive them.
pub(crate) fn hosts(dir: &tempfile::TempDir, registry: &str, text: &str) -> Hosts {
    let sub = dir.path().join(registry);
    std::fs::create_dir_all(&sub).unwrap();
    std::fs::write(sub.join("hosts.toml"), text).unwrap();
    Hosts::new(HostsOptions { config_dirs: vec![dir.path().to_owned()], ..HostsOptions::default() })
}

async fn serve(stream: TcpStream, answer: Arc<dyn Fn(&Request) -> Answer + Send + Sync>, log: Log) {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await {
        log.lock().unwrap().push(request.clone());
        let answer = answer(&request);
        if answer.hang_up || !write_answer(stream.get_mut(), &request, answer).await {
            return;
        }
    }
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok().filter(|n| *n > 0)?;
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next()?.to_owned(),
        target: words.next()?.to_owned(),
        ..Request::default()
    };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        let name = name.to_ascii_lowercase();
        let value = value.trim().to_owned();
        let all = request.headers.remove(&name).map_or(value.clone(), |have| have + ", " + &value);
        request.headers.insert(name, all);
    }
    let len = request.header("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    request.body = vec![0; len];
    stream.read_exact(&mut request.body).await.ok()?;
    Some(request)
}

async fn write_answer(stream: &mut TcpStream, request: &Request, answer: Answer) -> bool {
    let mut head = format!("HTTP/1.1 {} X\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !answer.headers.iter().any(|(n, _)| n.eq_ignore_ascii_case("content-length")) {
        head += &format!("Content-Length: {}\r\n", answer.body.len());
    }
    head += "\r\n";
    if stream.write_all(head.as_bytes()).await.is_err() {
        return false;
    }
    if request.method == "HEAD" {
        return true;
    }
    let end = answer.cut_after.unwrap_or(answer.body.len());
    if stream.write_all(&answer.body[..end]).await.is_err() {
        return false;
    }
    stream.flush().await.is_ok() && answer.cut_after.is_none()
}
