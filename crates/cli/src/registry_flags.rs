//! Flags about registries, shared by pull, push and fetch.

use clap::Args;
use gantry_client::{Credentials, RegistryOptions};
use gantry_core::Reference;
use gantry_errdefs::{Error, Result};

use crate::docker_config;

#[derive(Clone, Debug, Args)]
pub(crate) struct RegistryFlags {
    /// Use HTTP without TLS
    #[arg(long)]
    pub(crate) plain_http: bool,
    /// Do not check the registry's certificate
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
}

impl RegistryFlags {
    /// The flags as the daemon takes them, for the registry of `reference`. Without a user, docker's
    /// configuration is looked at.
    pub(crate) fn options(&self, reference: &str) -> Result<RegistryOptions> {
        self.options_and_source(reference).map(|(options, _)| options)
    }

    /// The same, and where the credentials come from.
    pub(crate) fn options_and_source(&self, reference: &str) -> Result<(RegistryOptions, String)> {
        if self.skip_verify && self.hosts_dir.is_empty() && !self.plain_http {
            return Err(Error::invalid_argument(
                "--skip-verify: say skip_verify = true in a hosts.toml, see --hosts-dir",
            ));
        }
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
        };
        Ok((options, source))
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
