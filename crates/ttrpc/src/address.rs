//! Where a ttrpc server listens.

use std::fmt;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use gantry_errdefs::{Error, Result};

/// The address of a unix socket, in the forms that shims print.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A socket in the file system: `unix:///run/x.sock`.
    Path(PathBuf),
    /// A name in the kernel's abstract space: `@name`, or anything without a scheme, as shims
    /// of containerd 1.3 and before print it.
    Abstract(String),
}

impl FromStr for Address {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.is_empty() {
            return Err(Error::invalid_argument("socket address: empty"));
        }
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Path(path.into()));
        }
        if let Some((scheme, _)) = text.split_once("://") {
            return Err(Error::unimplemented(format!("socket address {text:?}: scheme {scheme}")));
        }
        if let Some(name) = text.strip_prefix(['@', '\0']) {
            return Ok(Self::Abstract(name.to_owned()));
        }
        if text.starts_with('/') && Path::new(text).exists() {
            return Ok(Self::Path(text.into()));
        }
        Ok(Self::Abstract(text.to_owned()))
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "@{name}"),
        }
    }
}

impl Address {
    /// Connects; a unix socket answers at once or not at all.
    ///
    /// # Errors
    /// Unavailable, whatever the reason.
    pub(crate) fn connect(&self) -> Result<UnixStream> {
        self.socket_address()
            .and_then(|address| UnixStream::connect_addr(&address))
            .and_then(|stream| stream.set_nonblocking(true).map(|()| stream))
            .map_err(|e| Error::unavailable(format!("connect to {self}: {e}")).with_source(e))
    }

    /// Listens, without blocking; ready for `tokio::net::UnixListener::from_std`.
    ///
    /// # Errors
    /// AlreadyExists when the address is in use, else the class of the I/O error.
    pub fn listen(&self) -> Result<UnixListener> {
        self.socket_address()
            .and_then(|address| UnixListener::bind_addr(&address))
            .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
            .map_err(|e| {
                if e.kind() == std::io::ErrorKind::AddrInUse {
                    return Error::already_exists(format!("listen on {self}")).with_source(e);
                }
                Error::io(format!("listen on {self}"), e)
            })
    }

    fn socket_address(&self) -> std::io::Result<SocketAddr> {
        match self {
            Self::Path(path) => SocketAddr::from_pathname(path),
            Self::Abstract(name) => SocketAddr::from_abstract_name(name),
        }
    }
}
