//! Where a stream goes: the text of a request, parsed.

use std::path::PathBuf;

use gantry_errdefs::{Error, Result};

/// Where a stream goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Nowhere.
    Null,
    /// A FIFO of the client's, or another file that exists.
    Path(PathBuf),
    /// A file that is appended to and made when missing.
    File(PathBuf),
    /// A program that reads the output.
    Binary(Program),
}

/// A logging program and its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Program {
    /// The absolute path.
    pub path: PathBuf,
    /// Each query pair as two words.
    pub args: Vec<String>,
}

impl Target {
    /// Parses what a request names.
    ///
    /// # Errors
    /// InvalidArgument for a scheme nobody knows or a relative path.
    pub(super) fn parse(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return absolute(text, text).map(Self::Path);
        };
        // Whatever stands where a host would is not looked at: `file:///path`, `file://host/path`.
        let rest = rest.find('/').map_or("", |at| &rest[at..]);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = absolute(&unescape(path), text)?;
        match scheme {
            "fifo" => Ok(Self::Path(path)),
            "file" => Ok(Self::File(path)),
            "binary" | "binary-v2" => Ok(Self::Binary(Program { path, args: arguments(query) })),
            _ => Err(Error::invalid_argument(format!("stdio {text:?}: unknown scheme {scheme}"))),
        }
    }
}

fn absolute(path: &str, text: &str) -> Result<PathBuf> {
    if path.starts_with('/') {
        return Ok(PathBuf::from(path));
    }
    Err(Error::invalid_argument(format!("stdio {text:?}: not an absolute path")))
}

fn arguments(query: &str) -> Vec<String> {
    let mut out = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        out.push(unescape(&key.replace('+', " ")));
        out.push(unescape(&value.replace('+', " ")));
    }
    out
}

/// Percent decoding; what is not a valid escape stays as it is.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = (bytes[at] == b'%').then(|| bytes.get(at + 1..at + 3)).flatten();
        let byte = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .filter(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit()))
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        out.push(byte.unwrap_or(bytes[at]));
        at += if byte.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_understood() {
        let parse = |text| Target::parse(text).expect("parses");
        assert_eq!(parse(""), Target::Null);
        assert_eq!(parse("/run/x-stdout"), Target::Path("/run/x-stdout".into()));
        assert_eq!(parse("fifo:///run/x"), Target::Path("/run/x".into()));
        assert_eq!(parse("file:///var/log/a%20b"), Target::File("/var/log/a b".into()));
        let Target::Binary(program) = parse("binary:///bin/nerdctl?_NERDCTL=%2Fvar&x=a+b") else {
            panic!("a program")
        };
        assert_eq!(program.path, PathBuf::from("/bin/nerdctl"));
        assert_eq!(program.args, ["_NERDCTL", "/var", "x", "a b"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["relative", "ftp:///x", "file://", "binary://"] {
            let err = Target::parse(text).expect_err(text);
            assert!(err.is_invalid_argument(), "{text}: {err}");
        }
        assert_eq!(unescape("%zz%4"), "%zz%4");
    }
}
