//! Inflating on one thread while another writes files.
//!
//! Inflate and SHA-256 keep a core busy, and so does making files; between them runs a bounded
//! pipe of chunks whose buffers go round. When the reading side stops early, the next send fails
//! and the inflating side ends.

use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use gantry_core::{Algorithm, Digest, Digester};
use gantry_errdefs::{Error, Result};

use crate::compression::{Compression, Decompressor};

/// Bytes of one chunk: large enough that a hand-over costs nothing beside hashing it.
const CHUNK_BYTES: usize = 256 << 10;

/// Chunks in flight; with the two at either end this is all the memory of the pipe.
const CHUNK_COUNT_MAX: usize = 4;

/// What the inflating side saw once the stream ended.
#[derive(Debug)]
pub(crate) struct Inflated {
    /// The digest of the plain bytes, the diff ID.
    pub(crate) diff_id: Digest,
    /// How many there were.
    pub(crate) size: u64,
    /// How they were compressed.
    pub(crate) compression: Compression,
}

/// Runs `consume` over the plain bytes of `reader`, which are inflated and digested on a thread
/// of their own. What `consume` leaves unread is drained, so that the digest covers all.
///
/// # Errors
/// That of `consume` first; else that of the stream, whose kind tells damage (InvalidData,
/// UnexpectedEof) from a failing source.
pub(crate) fn overlapped<R: Read + Send, T>(
    reader: R,
    bytes_max: u64,
    consume: impl FnOnce(&mut Reader) -> Result<T>,
) -> Result<(T, Inflated)> {
    let (full_tx, full_rx) = sync_channel(CHUNK_COUNT_MAX);
    let (empty_tx, empty_rx) = sync_channel(CHUNK_COUNT_MAX + 2);
    std::thread::scope(|scope| {
        let producer = std::thread::Builder::new()
            .name("inflate".to_owned())
            .spawn_scoped(scope, move || inflate(reader, bytes_max, &full_tx, &empty_rx))
            .map_err(|e| Error::io("start the inflating thread", e))?;
        let mut pipe = Reader {
            full: full_rx,
            empty: empty_tx,
            chunk: Vec::new(),
            at: 0,
            failed: None,
            ended: false,
        };
        let consumed = consume(&mut pipe).and_then(|value| {
            pipe.drain().map_err(stream_error)?;
            Ok(value)
        });
        // Closing the pipe is what ends a producer that is still sending.
        drop(pipe);
        let inflated = producer.join();
        let value = consumed?;
        let inflated = inflated.map_err(|_| Error::internal("the inflating thread panicked"))?;
        Ok((value, inflated.map_err(stream_error)?))
    })
}

/// The error of an archive's stream: damage is the archive's fault, the rest the source's.
pub(crate) fn stream_error(err: io::Error) -> Error {
    match err.kind() {
        io::ErrorKind::InvalidData => Error::invalid_argument(format!("archive is damaged: {err}")),
        io::ErrorKind::UnexpectedEof => {
            Error::invalid_argument(format!("archive ends too early: {err}"))
        }
        _ => Error::io("read the archive", err),
    }
}

type Chunk = io::Result<Vec<u8>>;

fn inflate<R: Read>(
    reader: R,
    bytes_max: u64,
    full: &SyncSender<Chunk>,
    empty: &Receiver<Vec<u8>>,
) -> io::Result<Inflated> {
    let mut digester = Digester::new(Algorithm::Sha256);
    let mut size = 0u64;
    let run = || -> io::Result<Compression> {
        let mut source = Decompressor::detect(reader)?;
        loop {
            let mut chunk = empty.try_recv().unwrap_or_default();
            chunk.resize(CHUNK_BYTES, 0);
            let len = read_full(&mut source, &mut chunk)?;
            if len == 0 {
                return Ok(source.compression());
            }
            chunk.truncate(len);
            digester.update(&chunk);
            size += len as u64;
            if size > bytes_max {
                let why = format!("the archive is larger than {bytes_max} bytes once inflated");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
            if full.send(Ok(chunk)).is_err() {
                return Err(io::Error::other("the archive is not read to its end"));
            }
        }
    };
    match run() {
        Ok(compression) => Ok(Inflated { diff_id: digester.finish(), size, compression }),
        Err(err) => {
            // The reading side must see why the stream stops; it may be gone already.
            let copy = io::Error::new(err.kind(), err.to_string());
            let _gone = full.send(Err(copy));
            Err(err)
        }
    }
}

/// Fills `buf` as far as the source goes.
fn read_full(source: &mut impl Read, buf: &mut [u8]) -> io::Result<usize> {
    let mut len = 0;
    while len < buf.len() {
        match source.read(&mut buf[len..]) {
            Ok(0) => break,
            Ok(n) => len += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(len)
}

/// The reading end of the pipe.
pub(crate) struct Reader {
    full: Receiver<Chunk>,
    empty: SyncSender<Vec<u8>>,
    chunk: Vec<u8>,
    at: usize,
    failed: Option<(io::ErrorKind, String)>,
    ended: bool,
}

impl Reader {
    /// Takes the next chunk; false at the end.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some((kind, why)) = &self.failed {
            return Err(io::Error::new(*kind, why.clone()));
        }
        if self.ended {
            return Ok(false);
        }
        match self.full.recv() {
            Ok(Ok(chunk)) => {
                let used = std::mem::replace(&mut self.chunk, chunk);
                // Full or closed: the buffer is simply dropped.
                let _dropped = self.empty.try_send(used);
                self.at = 0;
                Ok(true)
            }
            Ok(Err(err)) => {
                self.failed = Some((err.kind(), err.to_string()));
                Err(err)
            }
            Err(_) => {
                self.ended = true;
                self.chunk.clear();
                self.at = 0;
                Ok(false)
            }
        }
    }

    fn drain(&mut self) -> io::Result<()> {
        while self.advance()? {}
        Ok(())
    }
}

impl BufRead for Reader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            if !self.advance()? {
                break;
            }
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, len: usize) {
        self.at += len;
    }
}

impl Read for Reader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let chunk = self.fill_buf()?;
        let len = buf.len().min(chunk.len());
        buf[..len].copy_from_slice(&chunk[..len]);
        self.consume(len);
        Ok(len)
    }
}
