//! The text of `hosts.toml`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use gantry_errdefs::{Error, Result};
use toml::{Table, Value};
use url::Url;

use super::{API_ROOT, Capabilities, DOCKER_ENDPOINT, Host, Scheme, is_mirror};
use crate::client::TlsFiles;

/// Reads the text of a `hosts.toml` for `registry`: the `[host."url"]` tables in the order of the
/// file, then the server, which is the registry itself when `server` is not set (`plain_http` is
/// for that case, as in [`super::HostsOptions`]). Relative paths are relative to `dir`. Unknown
/// keys are logged and ignored.
///
/// # Errors
/// InvalidArgument naming the key and what it must be.
pub fn parse_hosts_toml(
    text: &str,
    dir: &Path,
    registry: &str,
    plain_http: Option<bool>,
) -> Result<Vec<Host>> {
    let table: Table = text.parse().map_err(|e: toml::de::Error| {
        let line = e.span().map_or(0, |s| text[..s.start].lines().count().max(1));
        bad(&format!("line {line}"), e.message())
    })?;
    let reader = Reader { dir, registry, plain_http };
    let mut hosts = Vec::new();
    match table.get("host") {
        None => {}
        Some(Value::Table(tables)) => {
            for (url, value) in tables {
                let at = format!("host.{url:?}");
                let Value::Table(table) = value else { return Err(bad(&at, "must be a table")) };
                hosts.push(reader.host(Some(url), table, &at, &[])?);
            }
        }
        Some(_) => return Err(bad("host", "must be tables, [host.\"https://...\"]")),
    }
    let server = text_of(&table, "server", "server")?.filter(|s| !s.is_empty());
    hosts.push(reader.host(server, &table, "server", &["server", "host"])?);
    Ok(hosts)
}

fn bad(at: &str, why: &str) -> Error {
    Error::invalid_argument(format!("hosts.toml: {at}: {why}"))
}

struct Reader<'a> {
    dir: &'a Path,
    registry: &'a str,
    plain_http: Option<bool>,
}

impl Reader<'_> {
    /// One host; `url` None stands for the registry itself, `also` lists further known keys.
    fn host(&self, url: Option<&str>, table: &Table, at: &str, also: &[&str]) -> Result<Host> {
        const KNOWN: [&str; 7] = [
            "capabilities",
            "ca",
            "client",
            "skip_verify",
            "header",
            "override_path",
            "dial_timeout",
        ];
        for key in
            table.keys().filter(|k| !KNOWN.contains(&k.as_str()) && !also.contains(&k.as_str()))
        {
            tracing::warn!(key, at, registry = self.registry, "hosts.toml: unknown key is ignored");
        }
        let override_path = bool_of(table, "override_path", at)?.unwrap_or(false);
        let mut host = match url {
            Some(url) => self.parse_url(url, override_path, at)?,
            None => Host::default_for(self.registry, self.plain_http),
        };
        host.capabilities = capabilities(table, at)?;
        host.header = headers(table, at)?;
        host.tls = TlsFiles {
            ca: self.paths(table, "ca", at)?,
            client: self.client_pairs(table, at)?,
            skip_verify: bool_of(table, "skip_verify", at)?.unwrap_or(false),
        };
        host.dial_timeout = match text_of(table, "dial_timeout", at)? {
            Some(text) => Some(duration(text).ok_or_else(|| {
                bad(
                    &format!("{at}: dial_timeout"),
                    "must be a duration such as \"1.5s\" or \"500ms\"",
                )
            })?),
            None => None,
        };
        host.namespace =
            is_mirror(&host.authority, self.registry).then(|| self.registry.to_owned());
        Ok(host)
    }

    fn parse_url(&self, text: &str, override_path: bool, at: &str) -> Result<Host> {
        let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
        let url = Url::parse(&full).map_err(|e| bad(at, &format!("{text:?} is no URL: {e}")))?;
        let scheme = match url.scheme() {
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            other => return Err(bad(at, &format!("unsupported scheme {other:?}"))),
        };
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad(at, "credentials do not belong into the URL"));
        }
        let Some(name) = url.host_str().filter(|h| !h.is_empty()) else {
            return Err(bad(at, "the URL has no host"));
        };
        let name = if name == "docker.io" { DOCKER_ENDPOINT } else { name };
        let authority = url.port().map_or_else(|| name.to_owned(), |p| format!("{name}:{p}"));
        let mut path = url.path().trim_end_matches('/').to_owned();
        if !override_path && !path.ends_with(API_ROOT) {
            path.push_str(API_ROOT);
        }
        Ok(Host { scheme, authority, path, ..Host::default_for(self.registry, self.plain_http) })
    }

    fn absolute(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    fn paths(&self, table: &Table, key: &str, at: &str) -> Result<Vec<PathBuf>> {
        let wrong = || bad(&format!("{at}: {key}"), "must be a path or a list of paths");
        match table.get(key) {
            None => Ok(Vec::new()),
            Some(Value::String(path)) => Ok(vec![self.absolute(path)]),
            Some(Value::Array(list)) => {
                let path = |v: &Value| v.as_str().map(|p| self.absolute(p)).ok_or_else(wrong);
                list.iter().map(path).collect()
            }
            Some(_) => Err(wrong()),
        }
    }

    /// `client` is one file with certificate and key, a list of such files, or a list of
    /// `[certificate, key]` pairs; entries of both kinds may be mixed.
    fn client_pairs(&self, table: &Table, at: &str) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
        let wrong = || {
            bad(
                &format!("{at}: client"),
                "must be a path, a list of paths, or of [cert, key] pairs",
            )
        };
        let one = |value: &Value| match value {
            Value::String(file) => Ok((self.absolute(file), None)),
            Value::Array(pair) => match pair.as_slice() {
                [Value::String(cert), Value::String(key)] => {
                    let key = (!key.is_empty()).then(|| self.absolute(key));
                    Ok((self.absolute(cert), key))
                }
                _ => Err(wrong()),
            },
            _ => Err(wrong()),
        };
        match table.get("client") {
            None => Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => Ok(vec![one(value)?]),
        }
    }
}

fn capabilities(table: &Table, at: &str) -> Result<Capabilities> {
    let at = format!("{at}: capabilities");
    let list = match table.get("capabilities") {
        None => return Ok(Capabilities::ALL),
        Some(Value::Array(list)) if list.is_empty() => return Ok(Capabilities::ALL),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(bad(&at, "must be a list")),
    };
    let mut capabilities = Capabilities::NONE;
    for value in list {
        match value.as_str() {
            Some("pull") => capabilities.pull = true,
            Some("resolve") => capabilities.resolve = true,
            Some("push") => capabilities.push = true,
            Some("referrers") => capabilities.referrers = true,
            _ => return Err(bad(&at, &format!("unknown capability {value}"))),
        }
    }
    Ok(capabilities)
}

fn headers(table: &Table, at: &str) -> Result<Vec<(String, String)>> {
    let at = format!("{at}: header");
    let headers = match table.get("header") {
        None => return Ok(Vec::new()),
        Some(Value::Table(headers)) => headers,
        Some(_) => return Err(bad(&at, "must be a table")),
    };
    let mut out = Vec::new();
    for (name, value) in headers {
        let wrong = || bad(&at, &format!("{name:?} must be a text or a list of texts"));
        let mut add = |value: &Value| -> Result<()> {
            let value = value.as_str().ok_or_else(wrong)?;
            let name_ok = http::HeaderName::try_from(name.as_str()).is_ok();
            if !name_ok || http::HeaderValue::try_from(value).is_err() {
                return Err(bad(&at, &format!("{name:?} is not a valid header")));
            }
            out.push((name.clone(), value.to_owned()));
            Ok(())
        };
        match value {
            Value::Array(list) => list.iter().try_for_each(&mut add)?,
            value => add(value)?,
        }
    }
    Ok(out)
}

fn text_of<'t>(table: &'t Table, key: &str, at: &str) -> Result<Option<&'t str>> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(bad(&format!("{at}: {key}"), "must be a text")),
    }
}

fn bool_of(table: &Table, key: &str, at: &str) -> Result<Option<bool>> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::Boolean(b)) => Ok(Some(*b)),
        Some(_) => Err(bad(&format!("{at}: {key}"), "must be true or false")),
    }
}

/// A duration as Go writes it: numbers with units, `1h2m3.5s`.
fn duration(text: &str) -> Option<Duration> {
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_len = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_len] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
        rest = &rest[unit_len..];
    }
    (!text.is_empty()).then_some(total)
}
