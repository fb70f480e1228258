//! Big blobs in parts side by side, from a registry that is slow on each connection.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gantry_core::{Descriptor, Digest, media_types};
use gantry_errdefs::Result;
use gantry_registry::{Repository, limits};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

/// Large enough for parts, with some bytes over.
const SIZE: usize = limits::PARALLEL_SIZE_MIN as usize + 12_345;

/// Bytes and pause of one connection: it is slow, and so is worth helping.
const PIECE: usize = 128 << 10;
const PAUSE: Duration = Duration::from_millis(4);

/// How the registry answers requests for parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parts {
    /// As it should.
    Sent,
    /// With the whole blob.
    Ignored,
    /// With 503: one connection a client.
    Refused,
    /// Half of each, then the connection is cut.
    Cut,
    /// After some parts the blob is another one, by its entity tag.
    Changed,
}

struct Slow {
    authority: String,
    body: Arc<Vec<u8>>,
    ranges: Arc<Mutex<Vec<String>>>,
    /// Connections that were sending at a time, at most.
    most: Arc<AtomicUsize>,
}

impl Slow {
    async fn start(parts: Parts) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let body: Vec<u8> = (0..SIZE).map(|i| (i / 5 % 251) as u8).collect();
        let slow =
            Self { authority, body: Arc::new(body), ranges: Arc::default(), most: Arc::default() };
        let (body, ranges, most) = (slow.body.clone(), slow.ranges.clone(), slow.most.clone());
        let now = Arc::new(AtomicUsize::new(0));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (body, ranges) = (body.clone(), ranges.clone());
                let (most, now) = (most.clone(), now.clone());
                tokio::spawn(async move {
                    let mut stream = BufReader::new(stream);
                    while let Some(range) = request(&mut stream).await {
                        let seen = {
                            let mut seen = ranges.lock().unwrap();
                            seen.push(range.clone());
                            seen.len()
                        };
                        most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                        let answered = answer(stream.get_mut(), &body, &range, parts, seen).await;
                        now.fetch_sub(1, Ordering::SeqCst);
                        if answered.is_none() {
                            return;
                        }
                    }
                });
            }
        });
        slow
    }

    async fn repository(&self) -> Repository {
        crate::fake::repository(&format!("{}/a/b:tag", self.authority), Default::default()).await
    }

    fn descriptor(&self) -> Descriptor {
        let size = i64::try_from(SIZE).unwrap();
        Descriptor::new(media_types::OCI_LAYER_GZIP, Digest::of(&self.body), size)
    }
}

/// The range that the next request asks for; empty for all.
async fn request(stream: &mut BufReader<TcpStream>) -> Option<String> {
    let mut range = String::new();
    let mut first = true;
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.ok()? == 0 {
            return None;
        }
        if !first && line.trim().is_empty() {
            return Some(range);
        }
        first = false;
        if let Some(asked) = line.to_ascii_lowercase().strip_prefix("range: bytes=") {
            asked.trim().clone_into(&mut range);
        }
    }
}

async fn answer(
    stream: &mut TcpStream,
    body: &[u8],
    range: &str,
    parts: Parts,
    seen: usize,
) -> Option<()> {
    let bounded = range.split_once('-').filter(|(_, end)| !end.is_empty());
    if bounded.is_some() && parts == Parts::Refused {
        let text = "HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n";
        return stream.write_all(text.as_bytes()).await.ok();
    }
    let start: usize = range.split('-').next()?.parse().unwrap_or(0);
    let end = bounded.and_then(|(_, end)| end.parse::<usize>().ok()).map_or(SIZE, |end| end + 1);
    let changed = parts == Parts::Changed && seen > 4;
    let whole = range.is_empty() || (bounded.is_some() && parts == Parts::Ignored) || changed;
    let (start, end) = if whole { (0, SIZE) } else { (start, end) };
    let status = if whole { "200 X".to_owned() } else { "206 X".to_owned() };
    let tag = if changed { "\"two\"" } else { "\"one\"" };
    let mut head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nAccept-Ranges: bytes\r\nETag: {tag}\r\n",
        end - start
    );
    if !whole {
        head += &format!("Content-Range: bytes {start}-{}/{SIZE}\r\n", end - 1);
    }
    stream.write_all((head + "\r\n").as_bytes()).await.ok()?;
    let cut = bounded.is_some() && parts == Parts::Cut && end - start > 64 << 10;
    let end = if cut { start + (end - start) / 2 } else { end };
    for piece in body[start..end].chunks(PIECE) {
        stream.write_all(piece).await.ok()?;
        tokio::time::sleep(PAUSE).await;
    }
    if cut { None } else { Some(()) }
}

async fn collect(repository: &Repository, blob: &Descriptor, from: u64) -> Result<Vec<u8>> {
    let mut stream = repository.fetch(blob, from).await?;
    let mut out = Vec::new();
    while let Some(chunk) = stream.next().await? {
        out.extend_from_slice(&chunk);
    }
    Ok(out)
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_put_together_in_order() {
    let slow = Slow::start(Parts::Sent).await;
    let (repository, blob) = (slow.repository().await, slow.descriptor());
    let bytes = collect(&repository, &blob, 0).await.unwrap();
    assert!(bytes == *slow.body, "other bytes");
    let most = slow.most.load(Ordering::SeqCst);
    assert!(most > 1, "one connection alone: {:?}", slow.ranges.lock().unwrap());
    assert!(most <= limits::CONNECTIONS_PER_BLOB_MAX as usize + 1, "{most} connections");
    // From the middle as well, as when a pull is resumed.
    let from = SIZE as u64 / 3;
    let bytes = collect(&repository, &blob, from).await.unwrap();
    assert!(bytes == slow.body[SIZE / 3..], "other bytes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_makes_of_parts_does_not_matter() {
    for parts in [Parts::Ignored, Parts::Refused, Parts::Cut, Parts::Changed] {
        let slow = Slow::start(parts).await;
        let bytes = collect(&slow.repository().await, &slow.descriptor(), 0).await;
        assert!(bytes.unwrap() == *slow.body, "{parts:?}: other bytes");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_stops_has_little_fetched_for_it() {
    let slow = Slow::start(Parts::Sent).await;
    let (repository, blob) = (slow.repository().await, slow.descriptor());
    let mut stream = repository.fetch(&blob, 0).await.unwrap();
    while slow.most.load(Ordering::SeqCst) < 2 {
        stream.next().await.unwrap().expect("parts begin before the end");
    }
    // What is begun may end; nothing else begins while nobody reads.
    let asked = || slow.ranges.lock().unwrap().clone();
    let ahead = |ranges: &[String]| {
        let bounds = ranges.iter().filter_map(|r| r.split_once('-')?.1.parse::<u64>().ok());
        bounds.max().unwrap_or(0).saturating_sub(stream.position())
    };
    assert!(ahead(&asked()) <= SIZE as u64 / 20, "{:?} at {}", asked(), stream.position());
    drop(stream);
    let before = asked().len();
    let bytes = collect(&repository, &blob, SIZE as u64 - 10).await.unwrap();
    assert_eq!(bytes, slow.body[SIZE - 10..]);
    assert_eq!(asked().len(), before + 1, "a dropped stream goes on");
}
