//! How to reach a shim: what it prints when it starts, and what we write down of it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use gantry_api::containerd::runtime::bootstrap::v1::BootstrapResult;
use gantry_errdefs::{Error, Result, ResultExt};
use gantry_ttrpc::Address;
use prost::Message;
use serde::{Deserialize, Serialize};

/// The newest task API that we speak.
const VERSION_MAX: u32 = 3;

/// File in the bundle with the JSON form.
const FILE: &str = "bootstrap.json";

/// File in the bundle with a bare address, written by shims themselves.
const ADDRESS_FILE: &str = "address";

/// The largest answer we take; an address is below 200 bytes.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Address and language of a running shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bootstrap {
    /// Version of the task API: 2 or 3.
    #[serde(default = "version_2")]
    pub(crate) version: u32,
    /// Where the shim listens.
    pub(crate) address: String,
    /// `ttrpc` or `grpc`.
    #[serde(default = "ttrpc")]
    pub(crate) protocol: String,
}

fn version_2() -> u32 {
    2
}

fn ttrpc() -> String {
    "ttrpc".to_owned()
}

impl Bootstrap {
    /// Reads what `<shim> start` printed: a message (2.3), JSON (2.0) or a bare address.
    ///
    /// # Errors
    /// Unknown when it is none of them, Unimplemented for a version or protocol that we do not
    /// speak.
    pub(crate) fn parse(answer: &[u8]) -> Result<Self> {
        let text = std::str::from_utf8(answer).ok().map(str::trim);
        let parsed = match text {
            Some(text) if text.starts_with('{') => serde_json::from_str(text)
                .map_err(|e| Error::unknown(format!("answer of the shim: {e}")).with_source(e))?,
            Some(text) if !text.is_empty() && !text.contains(|c: char| c.is_control()) => {
                Self { version: 2, address: text.to_owned(), protocol: ttrpc() }
            }
            _ => Self::from_message(answer)?,
        };
        parsed.check()
    }

    fn from_message(answer: &[u8]) -> Result<Self> {
        let message = BootstrapResult::decode(answer)
            .ok()
            .filter(|m| !m.address.is_empty())
            .ok_or_else(|| {
                let text = String::from_utf8_lossy(answer);
                Error::unknown(format!("answer of the shim: no address in {text:?}"))
            })?;
        Ok(Self {
            version: u32::try_from(message.version).unwrap_or(0),
            address: message.address,
            protocol: message.protocol,
        })
    }

    fn check(mut self) -> Result<Self> {
        if self.protocol.is_empty() {
            self.protocol = ttrpc();
        }
        if !(2..=VERSION_MAX).contains(&self.version) {
            return Err(Error::unimplemented(format!("shim of version {}", self.version)));
        }
        if self.protocol != "ttrpc" {
            return Err(Error::unimplemented(format!("shim protocol {:?}", self.protocol)));
        }
        if self.address.is_empty() {
            return Err(Error::unknown("answer of the shim: no address"));
        }
        Ok(self)
    }

    /// Writes it into `bundle`, whole or not at all. Blocks.
    ///
    /// # Errors
    /// The class of the I/O error.
    pub(crate) fn save(&self, bundle: &Path) -> Result<()> {
        let path = bundle.join(FILE);
        let text = serde_json::to_vec(self).expect("strings and a number");
        // Not fsynced: the state directory does not outlive the shim it speaks of.
        let staged = bundle.join(format!(".{FILE}"));
        gantry_failpoint::hit("bundle.bootstrap")
            .and_then(|()| std::fs::write(&staged, text))
            .and_then(|()| std::fs::rename(&staged, &path))
            .context(|| path.display().to_string())
    }

    /// Removes the socket of a shim that is gone; one that still answers, for another task, is
    /// left alone. Blocks.
    pub(crate) fn remove_stale_socket(&self) {
        let Ok(Address::Path(path)) = self.address.parse() else { return };
        let Err(err) = UnixStream::connect(&path) else { return };
        if err.kind() == std::io::ErrorKind::ConnectionRefused
            && let Err(err) = std::fs::remove_file(&path)
        {
            tracing::debug!(path = %path.display(), %err, "socket of a dead shim");
        }
    }

    /// Reads it back from `bundle`. Blocks.
    ///
    /// # Errors
    /// NotFound when no shim has been started there, or the errors of [`Bootstrap::parse`].
    pub(crate) fn load(bundle: &Path) -> Result<Self> {
        for name in [FILE, ADDRESS_FILE] {
            let path = bundle.join(name);
            match std::fs::read(&path) {
                Ok(text) => return Self::parse(&text).context(|| path.display().to_string()),
                Err(err) if err.kind() == std::io::ErrorKind::NotFound => {}
                Err(err) => return Err(Error::io(path.display(), err)),
            }
        }
        Err(Error::not_found(format!("address of the shim in {}", bundle.display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ours(version: u32, address: &str) -> Bootstrap {
        Bootstrap { version, address: address.into(), protocol: "ttrpc".into() }
    }

    #[test]
    fn all_three_forms_are_read() {
        let address = "unix:///run/containerd/s/0123";
        let bare = Bootstrap::parse(format!("{address}\n").as_bytes()).expect("bare");
        assert_eq!(bare, ours(2, address));
        let json = format!("{{\"version\":3,\"address\":\"{address}\",\"protocol\":\"ttrpc\"}}");
        assert_eq!(Bootstrap::parse(json.as_bytes()).expect("json"), ours(3, address));
        let message = BootstrapResult {
            version: 3,
            address: address.into(),
            protocol: "ttrpc".into(),
            ..Default::default()
        };
        let message = Bootstrap::parse(&message.encode_to_vec()).expect("message");
        assert_eq!(message, ours(3, address));
    }

    #[test]
    fn what_we_do_not_speak_is_refused() {
        let json = |v: u32, p: &str| {
            format!("{{\"version\":{v},\"address\":\"a\",\"protocol\":\"{p}\"}}").into_bytes()
        };
        for (version, protocol) in [(4, "ttrpc"), (1, "ttrpc"), (3, "grpc")] {
            let err = Bootstrap::parse(&json(version, protocol)).expect_err("refused");
            assert!(err.is_unimplemented(), "{err}");
        }
        for bad in [&b""[..], b"{", b"\x08\x03", b"\xff\xff", b"line\nline"] {
            assert!(Bootstrap::parse(bad).expect_err("refused").is_unknown(), "{bad:?}");
        }
    }

    #[test]
    fn it_is_found_again() {
        let dir = tempfile::tempdir().expect("dir");
        assert!(Bootstrap::load(dir.path()).expect_err("nothing yet").is_not_found());
        std::fs::write(dir.path().join(ADDRESS_FILE), "unix:///old").expect("written");
        assert_eq!(Bootstrap::load(dir.path()).expect("old"), ours(2, "unix:///old"));
        ours(3, "unix:///new").save(dir.path()).expect("saved");
        assert_eq!(Bootstrap::load(dir.path()).expect("new"), ours(3, "unix:///new"));
    }
}
