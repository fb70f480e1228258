//! Compressed layers: detection by magic, inflating, deflating.

use std::io::{self, BufReader, Read, Write};
use std::str::FromStr;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;
use gantry_core::media_types;
use gantry_errdefs::{Error, Result};

/// Bytes read from the source at once; inflate calls are cheap above this.
const SOURCE_BUFFER_BYTES: usize = 128 << 10;

/// Largest zstd window accepted, as a power of two: 128 MiB, what the zstd command takes without
/// being asked to. A frame that wants more is refused, since memory follows the window.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// The gzip level written. Pinned: a layer diffed twice must give the same bytes.
const GZIP_LEVEL: u32 = 6;

/// The zstd level written. Pinned for the same reason.
const ZSTD_LEVEL: i32 = 3;

/// How a layer blob is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Plain tar.
    None,
    /// Gzip, possibly of several members.
    #[default]
    Gzip,
    /// Zstandard, possibly of several frames and skippable ones between.
    Zstd,
}

impl Compression {
    /// Bytes [`Compression::of_magic`] needs to see.
    pub const MAGIC_LEN: usize = 4;

    /// What the first bytes of a stream say; anything unknown, or too short, is plain.
    pub fn of_magic(head: &[u8]) -> Self {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            // A skippable frame, with which seekable zstd layers may begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The word that stands for it in options and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        }
    }

    /// The media type of a layer in this compression that in another has the type `old`; that of
    /// OCI with `oci`, else of the same family.
    pub fn layer_type_like(self, old: &str, oci: bool) -> String {
        let foreign = media_types::is_foreign(old);
        if old.starts_with("application/vnd.docker.") && !oci {
            let foreign = if foreign { "foreign." } else { "" };
            let end = match self {
                Self::None => "",
                Self::Gzip => ".gzip",
                Self::Zstd => ".zstd",
            };
            return format!("application/vnd.docker.image.rootfs.{foreign}diff.tar{end}");
        }
        let foreign = if foreign { "nondistributable." } else { "" };
        let end = match self {
            Self::None => "",
            Self::Gzip => "+gzip",
            Self::Zstd => "+zstd",
        };
        format!("application/vnd.oci.image.layer.{foreign}v1.tar{end}")
    }

    /// The compression a layer's media type promises, OCI or Docker; `None` when the type is not
    /// a layer's (or is one we cannot read, such as an encrypted one).
    pub fn of_media_type(media_type: &str) -> Option<Self> {
        if let Some(rest) = media_type.strip_prefix("application/vnd.oci.image.layer.") {
            let rest = rest.strip_prefix("nondistributable.").unwrap_or(rest);
            return match rest {
                "v1.tar" => Some(Self::None),
                "v1.tar+gzip" => Some(Self::Gzip),
                "v1.tar+zstd" => Some(Self::Zstd),
                _ => None,
            };
        }
        let rest = media_type.strip_prefix("application/vnd.docker.image.rootfs.")?;
        let rest = rest.strip_prefix("foreign.").unwrap_or(rest);
        match rest {
            "diff.tar" => Some(Self::None),
            "diff.tar.gzip" => Some(Self::Gzip),
            "diff.tar.zstd" => Some(Self::Zstd),
            _ => None,
        }
    }
}

impl FromStr for Compression {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        [Self::None, Self::Gzip, Self::Zstd]
            .into_iter()
            .find(|c| c.as_str() == s)
            .ok_or_else(|| Error::invalid_argument(format!("compression {s:?} is unknown")))
    }
}

type Source<R> = BufReader<io::Chain<io::Cursor<Vec<u8>>, R>>;

/// Reads a stream in any compression as plain bytes.
///
/// Damage shows as an I/O error of kind InvalidData; a stream that ends early as UnexpectedEof.
/// Errors of the source itself pass unchanged.
pub struct Decompressor<R: Read> {
    inner: Inner<R>,
    compression: Compression,
}

enum Inner<R: Read> {
    None(Source<R>),
    Gzip(Box<MultiGzDecoder<Source<R>>>),
    Zstd(Box<zstd::Decoder<'static, Source<R>>>),
}

impl<R: Read> Decompressor<R> {
    /// Reads the first bytes of `reader` and picks the decoder they ask for.
    ///
    /// # Errors
    /// The error of the reader.
    pub fn detect(mut reader: R) -> io::Result<Self> {
        let mut head = Vec::with_capacity(Compression::MAGIC_LEN);
        reader.by_ref().take(Compression::MAGIC_LEN as u64).read_to_end(&mut head)?;
        let compression = Compression::of_magic(&head);
        let source =
            BufReader::with_capacity(SOURCE_BUFFER_BYTES, io::Cursor::new(head).chain(reader));
        let inner = match compression {
            Compression::None => Inner::None(source),
            Compression::Gzip => Inner::Gzip(Box::new(MultiGzDecoder::new(source))),
            Compression::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(source)?;
                decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Self { inner, compression })
    }

    /// The compression that was found.
    pub fn compression(&self) -> Compression {
        self.compression
    }
}

impl<R: Read> Read for Decompressor<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.inner {
            Inner::None(r) => r.read(buf),
            Inner::Gzip(r) => r.read(buf).map_err(damage),
            Inner::Zstd(r) => r.read(buf).map_err(damage),
        }
    }
}

/// Gives the decoders' complaints one kind. They report damage as InvalidInput (flate2) or Other
/// (zstd); a source reports neither.
fn damage(err: io::Error) -> io::Error {
    match err.kind() {
        io::ErrorKind::InvalidInput | io::ErrorKind::Other if err.raw_os_error().is_none() => {
            io::Error::new(io::ErrorKind::InvalidData, err)
        }
        _ => err,
    }
}

/// Writes plain bytes as a stream in a chosen compression, the same bytes every time.
pub struct Compressor<W: Write>(Sink<W>);

enum Sink<W: Write> {
    None(W),
    Gzip(Box<GzEncoder<W>>),
    Zstd(Box<zstd::Encoder<'static, W>>),
}

impl<W: Write> Compressor<W> {
    /// Starts a stream.
    ///
    /// # Errors
    /// The encoder could not be made (memory).
    pub fn new(writer: W, compression: Compression) -> io::Result<Self> {
        Ok(Self(match compression {
            Compression::None => Sink::None(writer),
            Compression::Gzip => {
                let level = flate2::Compression::new(GZIP_LEVEL);
                Sink::Gzip(Box::new(GzEncoder::new(writer, level)))
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(writer, ZSTD_LEVEL)?;
                encoder.include_checksum(true)?;
                Sink::Zstd(Box::new(encoder))
            }
        }))
    }

    /// Ends the stream and hands the writer back, flushed by the caller if need be.
    ///
    /// # Errors
    /// The error of the writer.
    pub fn finish(self) -> io::Result<W> {
        match self.0 {
            Sink::None(w) => Ok(w),
            Sink::Gzip(e) => e.finish(),
            Sink::Zstd(e) => e.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Sink::None(w) => w.write(buf),
            Sink::Gzip(w) => w.write(buf),
            Sink::Zstd(w) => w.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Sink::None(w) => w.flush(),
            Sink::Gzip(w) => w.flush(),
            Sink::Zstd(w) => w.flush(),
        }
    }
}

#[cfg(test)]
mod tests;
