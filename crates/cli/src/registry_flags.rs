//! Flags about registries, shared by pull, push and fetch.

use std::path::PathBuf;

use clap::Args;
use gantry_client::{Credentials, HttpLog, RegistryOptions, TlsFiles};
use gantry_core::Reference;
use gantry_errdefs::{Error, Result};

use crate::{docker_config, output};

#[derive(Clone, Debug, Args)]
pub(crate) struct RegistryFlags {
    /// Use HTTP without TLS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Do not check the registry's certificate, for requests of this program
    #[arg(long, short = 'k')]
    pub(crate) skip_verify: bool,
    /// User and password, user[:password]
    #[arg(long, short = 'u', value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Refresh token for the authorization server
    #[arg(long, value_name = "TOKEN")]
    pub(crate) refresh: Option<String>,
    /// Directory with a hosts.toml per registry
    #[arg(long, value_name = "DIR", default_value = "")]
    pub(crate) hosts_dir: String,
    /// Certificates of authorities to trust, for requests of this program
    #[arg(long, value_name = "FILE")]
    pub(crate) tlscacert: Option<PathBuf>,
    /// Certificate to show registries, for requests of this program
    #[arg(long, value_name = "FILE", requires = "tlskey")]
    pub(crate) tlscert: Option<PathBuf>,
    /// Key of --tlscert
    #[arg(long, value_name = "FILE", requires = "tlscert")]
    pub(crate) tlskey: Option<PathBuf>,
    /// Show requests to registries and their answers, without secrets
    #[arg(long)]
    pub(crate) http_dump: bool,
    /// Show how requests to registries go
    #[arg(long)]
    pub(crate) http_trace: bool,
}

impl RegistryFlags {
    /// The flags as the daemon takes them, for the registry of `reference`. Without a user, docker's
    /// configuration is looked at.
    pub(crate) fn options(&self, reference: &str) -> Result<RegistryOptions> {
        self.options_and_source(reference).map(|(options, _)| options)
    }

    /// The same, and where the credentials come from.
    pub(crate) fn options_and_source(&self, reference: &str) -> Result<(RegistryOptions, String)> {
        let mut credentials_host = None;
        let (credentials, source) = match (&self.user, &self.refresh) {
            (_, Some(token)) => {
                let credentials = Credentials { username: String::new(), secret: token.clone() };
                (Some(credentials), "--refresh".to_owned())
            }
            (Some(user), None) => (Some(self.basic(user)?), "--user".to_owned()),
            (None, None) => {
                let registry = Reference::parse(reference)?.host().to_owned();
                let found = docker_config::find(&registry)?;
                let found = found.map(|found| (Some(found.credentials), found.source));
                credentials_host = found.is_some().then_some(registry);
                found.unwrap_or_else(|| (None, "none".to_owned()))
            }
        };
        let options = RegistryOptions {
            plain_http: self.plain_http,
            hosts_dir: self.hosts_dir.clone(),
            credentials,
            credentials_host,
            headers: Vec::new(),
            tls: self.tls(),
            http_log: (self.http_dump || self.http_trace).then(|| {
                let show = |line: String| output::error("http", &line);
                HttpLog::new(self.http_dump, self.http_trace, show)
            }),
        };
        Ok((options, source))
    }

    /// Whether only requests of this program can do what the flags say.
    pub(crate) fn needs_local(&self) -> bool {
        !self.tls().is_default()
    }

    fn tls(&self) -> TlsFiles {
        TlsFiles {
            ca: self.tlscacert.iter().cloned().collect(),
            client: self.tlscert.iter().map(|cert| (cert.clone(), self.tlskey.clone())).collect(),
            // A hosts.toml says for itself whom to trust.
            skip_verify: self.skip_verify && self.hosts_dir.is_empty() && !self.plain_http,
        }
    }

    fn basic(&self, user: &str) -> Result<Credentials> {
        let (name, secret) = match user.split_once(':') {
            Some((name, secret)) => (name, secret.to_owned()),
            None => (user, read_secret()?),
        };
        Ok(Credentials { username: name.to_owned(), secret })
    }
}

/// Reads the password from standard input, unseen when that is a terminal.
fn read_secret() -> Result<String> {
    use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
    let stdin = std::io::stdin();
    let before = tcgetattr(&stdin).ok();
    if let Some(before) = &before {
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        let _ = tcsetattr(&stdin, OptionalActions::Now, &quiet);
        crate::output::error("gantry", "password:");
    }
    let mut secret = String::new();
    let read = stdin.read_line(&mut secret);
    if let Some(before) = &before {
        let _ = tcsetattr(&stdin, OptionalActions::Now, before);
    }
    read.map_err(|e| Error::io("reading the password", e))?;
    Ok(secret.trim_end_matches('\n').to_owned())
}
