//! The bytes of logs and dumps: checked frames of entries.
//!
//! ```text
//! file  = magic (8 bytes) frame*
//! frame = length (u32 LE, of the body)  CRC-32C of the body (u32 LE)  body
//! body  = entry*                                         writes, or
//!       = 0x02 count (u64 LE)                            the end of a dump
//! entry = 0x01 key length (u32 LE) key value length (u32 LE) value      put
//!       = 0x00 key length (u32 LE) key                                  delete
//! ```

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// Begins every file; the digit is the version of the format.
pub(crate) const MAGIC: &[u8; 8] = b"GNTKV1\n\0";

/// Longest body accepted when reading; a damaged length must not make us allocate the moon. One
/// commit of a full batch of the largest requests stays below.
const BODY_LEN_MAX: usize = 1 << 30;

const DELETE: u8 = 0;
const PUT: u8 = 1;
const END: u8 = 2;

/// A frame being filled.
#[derive(Debug, Default)]
pub(crate) struct Frame(Vec<u8>);

/// Room for length and checksum.
const HEAD_LEN: usize = 8;

impl Frame {
    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) {
        self.head();
        self.0.push(PUT);
        self.bytes(key);
        self.bytes(value);
    }

    pub(crate) fn delete(&mut self, key: &[u8]) {
        self.head();
        self.0.push(DELETE);
        self.bytes(key);
    }

    /// The end of a dump of `count` entries.
    pub(crate) fn end(count: u64) -> Self {
        let mut frame = Self::default();
        frame.head();
        frame.0.push(END);
        frame.0.extend(count.to_le_bytes());
        frame
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The whole frame, ready to be written; empty when nothing was put in.
    pub(crate) fn finish(&mut self) -> &[u8] {
        if self.0.len() > HEAD_LEN {
            let body = &self.0[HEAD_LEN..];
            let len = u32::try_from(body.len()).unwrap_or(u32::MAX);
            let crc = crc32c(body);
            self.0[..4].copy_from_slice(&len.to_le_bytes());
            self.0[4..HEAD_LEN].copy_from_slice(&crc.to_le_bytes());
        }
        &self.0
    }

    /// Empties the frame; memory beyond `keep` bytes is given back.
    pub(crate) fn clear(&mut self, keep: usize) {
        self.0.clear();
        self.0.shrink_to(keep);
    }

    fn head(&mut self) {
        if self.0.is_empty() {
            self.0.extend([0; HEAD_LEN]);
        }
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes());
        self.0.extend(bytes);
    }
}

/// What a frame holds.
pub(crate) enum Entry<'a> {
    Put(&'a [u8], &'a [u8]),
    Delete(&'a [u8]),
    /// The end of a dump of so many entries.
    End(u64),
}

/// How a file of frames ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// After a whole frame.
    Clean,
    /// In a frame that is cut, by a crash, or damaged.
    Damaged,
    /// Before anything: it is no file of frames.
    Foreign,
}

/// Reads the frames of a file, those from `offset` on (0 for all), up to its end or the first one
/// that is empty, cut or damaged, which is where a crash or a bad disk stopped us.
///
/// # Errors
/// What `visit` returns; the I/O error.
pub(crate) fn read<E: From<io::Error>>(
    file: File,
    offset: u64,
    visit: &mut dyn FnMut(Entry<'_>) -> Result<(), E>,
) -> Result<Ending, E> {
    let mut file = BufReader::new(file);
    let mut magic = [0; MAGIC.len()];
    if !fill(&mut file, &mut magic)? || &magic != MAGIC {
        return Ok(Ending::Foreign);
    }
    if offset > MAGIC.len() as u64 {
        file.seek(SeekFrom::Start(offset))?;
    }
    let mut head = [0; HEAD_LEN];
    let mut body = Vec::new();
    while fill(&mut file, &mut head)? {
        let len = u32::from_le_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let crc = u32::from_le_bytes([head[4], head[5], head[6], head[7]]);
        // Room ahead of what was written is zeros.
        if head == [0; HEAD_LEN] {
            break;
        }
        if len == 0 || len > BODY_LEN_MAX {
            return Ok(Ending::Damaged);
        }
        body.clear();
        (&mut file).take(len as u64).read_to_end(&mut body)?;
        if body.len() < len || crc32c(&body) != crc {
            return Ok(Ending::Damaged);
        }
        let mut rest = body.as_slice();
        while let Some(entry) = entry(&mut rest) {
            visit(entry)?;
        }
    }
    Ok(Ending::Clean)
}

fn entry<'a>(rest: &mut &'a [u8]) -> Option<Entry<'a>> {
    let (kind, tail) = rest.split_first()?;
    *rest = tail;
    match *kind {
        PUT => Some(Entry::Put(take(rest)?, take(rest)?)),
        DELETE => Some(Entry::Delete(take(rest)?)),
        END => Some(Entry::End(u64::from_le_bytes(rest.get(..8)?.try_into().ok()?))),
        _ => None,
    }
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, tail) = rest.split_first_chunk::<4>()?;
    let (bytes, tail) = tail.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *rest = tail;
    Some(bytes)
}

/// False at the end of the file, also when it comes half way.
fn fill(file: &mut impl Read, buf: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buf) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(e) => Err(e),
    }
}

/// CRC-32C (Castagnoli), eight bytes a step.
pub(crate) fn crc32c(data: &[u8]) -> u32 {
    const TABLES: [[u32; 256]; 8] = tables();
    let mut crc = !0_u32;
    let mut chunks = data.chunks_exact(8);
    for chunk in &mut chunks {
        let low = crc ^ u32::from_le_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
        let [a, b, c, d] = low.to_le_bytes();
        crc = TABLES[7][a as usize]
            ^ TABLES[6][b as usize]
            ^ TABLES[5][c as usize]
            ^ TABLES[4][d as usize]
            ^ TABLES[3][chunk[4] as usize]
            ^ TABLES[2][chunk[5] as usize]
            ^ TABLES[1][chunk[6] as usize]
            ^ TABLES[0][chunk[7] as usize];
    }
    for byte in chunks.remainder() {
        crc = (crc >> 8) ^ TABLES[0][((crc ^ u32::from(*byte)) & 0xff) as usize];
    }
    !crc
}

const fn tables() -> [[u32; 256]; 8] {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let mut tables = [[0; 256]; 8];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        tables[0][i] = crc;
        i += 1;
    }
    let mut i = 0;
    while i < 256 {
        let mut t = 1;
        while t < 8 {
            let before = tables[t - 1][i];
            tables[t][i] = (before >> 8) ^ tables[0][(before & 0xff) as usize];
            t += 1;
        }
        i += 1;
    }
    tables
}
