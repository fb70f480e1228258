//! Which hosts serve a registry, from `hosts.toml` directories.
//!
//! A directory tree has one directory per registry, tried in this order: `host_port_`,
//! `host:port` (both only with a port), `host`, `_default`. The first that exists is used: its
//! `hosts.toml`, or without that file its Docker-style certificate files (`*.crt`, and `*.cert`
//! with `*.key`). A registry with no directory is its own and only host.

mod certs;
mod file;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_errdefs::{Class, Error, Result, ResultExt};

pub use file::parse_hosts_toml;

use crate::client::TlsFiles;
use crate::limits::HOSTS_TOML_SIZE_MAX;

/// Where `docker.io` really is.
pub(crate) const DOCKER_ENDPOINT: &str = "registry-1.docker.io";

/// The API root on a host, unless `override_path` is set.
const API_ROOT: &str = "/v2";

/// How a host is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Plain.
    Http,
    /// Over TLS.
    Https,
}

impl Scheme {
    /// The scheme's name in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// What a host may be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Fetch by digest.
    pub pull: bool,
    /// Turn a tag into a digest; only for hosts trusted to say what a tag means.
    pub resolve: bool,
    /// Push.
    pub push: bool,
    /// List what refers to a digest.
    pub referrers: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { pull: true, resolve: true, push: true, referrers: true };
    /// Nothing.
    pub const NONE: Self = Self { pull: false, resolve: false, push: false, referrers: false };
}

/// One host that serves a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Plain or TLS.
    pub scheme: Scheme,
    /// Name and port.
    pub authority: String,
    /// The API root, `/v2` unless overridden; empty for the root of the server.
    pub path: String,
    /// What it may be asked for.
    pub capabilities: Capabilities,
    /// Headers sent with every request to it (and never to where it redirects).
    pub header: Vec<(String, String)>,
    /// Certificates and verification.
    pub tls: TlsFiles,
    /// Deadline of connecting; the default one when None.
    pub dial_timeout: Option<Duration>,
    /// The registry it stands in for, sent as `?ns=`; None for the registry itself.
    pub namespace: Option<String>,
}

impl Host {
    /// The host that serves `registry` when nothing is configured: `docker.io` at its real
    /// address, a loopback registry over plain HTTP (unless its port is 443 or not given), any
    /// other over TLS.
    pub fn default_for(registry: &str, plain_http: Option<bool>) -> Self {
        let plain = plain_http.unwrap_or_else(|| is_plain_by_default(registry));
        let authority = if registry == "docker.io" { DOCKER_ENDPOINT } else { registry };
        Self {
            scheme: if plain { Scheme::Http } else { Scheme::Https },
            authority: authority.to_owned(),
            path: API_ROOT.to_owned(),
            capabilities: Capabilities::ALL,
            header: Vec::new(),
            tls: TlsFiles::default(),
            dial_timeout: None,
            namespace: None,
        }
    }

    /// `scheme://authority`, as shown in errors and logs.
    pub fn origin(&self) -> String {
        format!("{}://{}", self.scheme.as_str(), self.authority)
    }
}

/// Where host configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct HostsOptions {
    /// Roots of `hosts.toml` trees, the first that knows a registry wins.
    pub config_dirs: Vec<PathBuf>,
    /// Whether registries without configuration are spoken to in plain HTTP; None decides by
    /// whether the registry is on loopback.
    pub plain_http: Option<bool>,
    /// TLS files used where the configuration of a host has none.
    pub tls: TlsFiles,
    /// Headers sent to every host.
    pub header: Vec<(String, String)>,
}

/// Finds the hosts of a registry.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    options: HostsOptions,
}

impl Hosts {
    /// Hosts by these options.
    pub fn new(options: HostsOptions) -> Self {
        Self { options }
    }

    /// Roots of `hosts.toml` trees.
    pub fn config_dirs(&self) -> &[PathBuf] {
        &self.options.config_dirs
    }

    /// The hosts of `registry` in the order they are tried. Files are read on every call, so that
    /// an edited configuration counts for the next pull. Does file I/O: call it where blocking is
    /// allowed.
    ///
    /// A `hosts.toml` that does not parse is logged as an error, and the directory's certificate
    /// files are used instead, as containerd does.
    ///
    /// # Errors
    /// InvalidArgument for broken certificate sets, I/O classes for unreadable files.
    pub fn lookup(&self, registry: &str) -> Result<Vec<Host>> {
        let mut hosts = match self.directory(registry)? {
            Some(dir) => self.load(&dir, registry)?,
            None => vec![self.default_host(registry)],
        };
        for host in &mut hosts {
            if host.tls.is_default() {
                host.tls = self.options.tls.clone();
            }
            let absent = |name: &str, h: &Host| !h.header.iter().any(|(n, _)| n == name);
            for (name, value) in &self.options.header {
                if absent(name, host) {
                    host.header.push((name.clone(), value.clone()));
                }
            }
        }
        Ok(hosts)
    }

    fn default_host(&self, registry: &str) -> Host {
        Host::default_for(registry, self.options.plain_http)
    }

    /// The directory that configures `registry`, if there is one.
    fn directory(&self, registry: &str) -> Result<Option<PathBuf>> {
        if registry.contains(['/', '\0']) || matches!(registry, "." | "..") {
            return Err(Error::invalid_argument(format!("registry host {registry:?}")));
        }
        let mut names = Vec::new();
        if let Some((host, port)) = registry.rsplit_once(':') {
            names.push(format!("{host}_{port}_"));
        }
        names.push(registry.to_owned());
        names.push("_default".to_owned());
        let roots = &self.options.config_dirs;
        let candidates = roots.iter().flat_map(|root| names.iter().map(|n| root.join(n)));
        Ok(candidates.into_iter().find(|dir| dir.is_dir()))
    }

    fn load(&self, dir: &Path, registry: &str) -> Result<Vec<Host>> {
        let path = dir.join("hosts.toml");
        let text = match read_small(&path) {
            Ok(text) => text,
            Err(e) if e.is_not_found() => {
                tracing::debug!(dir = %dir.display(), registry,
                    "directory without hosts.toml: using its certificate files only");
                String::new()
            }
            Err(e) => return Err(e),
        };
        if !text.trim().is_empty() {
            match parse_hosts_toml(&text, dir, registry, self.options.plain_http) {
                Ok(hosts) => return Ok(hosts),
                Err(e) => tracing::error!(path = %path.display(), error = %e,
                    "cannot use hosts.toml: going on with the directory's certificate files"),
            }
        }
        let mut host = self.default_host(registry);
        host.tls = certs::find(dir)?;
        Ok(vec![host])
    }
}

/// Whether requests to `host` on behalf of `registry` must name the registry.
fn is_mirror(host: &str, registry: &str) -> bool {
    host != registry && !(registry == "docker.io" && host == DOCKER_ENDPOINT)
}

/// Loopback registries on an unusual port are development registries without TLS.
fn is_plain_by_default(registry: &str) -> bool {
    let (name, port) = split_port(registry);
    let loopback = name == "localhost"
        || name.ends_with(".localhost")
        || name
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.is_loopback());
    loopback && !matches!(port, None | Some("443"))
}

fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    }
}

fn read_small(path: &Path) -> Result<String> {
    let size = std::fs::metadata(path).context(|| path.display().to_string())?.len();
    if size > HOSTS_TOML_SIZE_MAX {
        return Err(Error::new(
            Class::ResourceExhausted,
            format!("{}: {size} bytes, more than {HOSTS_TOML_SIZE_MAX}", path.display()),
        ));
    }
    std::fs::read_to_string(path).context(|| path.display().to_string())
}
