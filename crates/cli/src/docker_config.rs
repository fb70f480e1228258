//! Credentials that docker keeps: in `config.json`, or with a helper.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gantry_client::Credentials;
use gantry_errdefs::{Error, Result, ResultExt};
use serde::Deserialize;

/// The address under which docker keeps what belongs to Docker Hub.
const HUB: &str = "https://index.docker.io/v1/";

/// The user name by which a helper says that its secret is a refresh token.
const TOKEN_USER: &str = "<token>";

/// What of docker's configuration is for us.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    auths: HashMap<String, Auth>,
    creds_store: String,
    cred_helpers: HashMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Auth {
    auth: String,
    identitytoken: String,
}

/// What a helper answers.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Credentials, and where they are from.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) credentials: Credentials,
    pub(crate) source: String,
}

/// The credentials for a registry, if docker knows any: in the directory `$DOCKER_CONFIG`, else
/// `~/.docker`.
///
/// # Errors
/// InvalidArgument for a file that cannot be understood, or a helper that fails.
pub(crate) fn find(registry: &str) -> Result<Option<Found>> {
    let dir = std::env::var_os("DOCKER_CONFIG")
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".docker")));
    match dir {
        Some(dir) => find_in(&dir.join("config.json"), registry),
        None => Ok(None),
    }
}

fn find_in(path: &Path, registry: &str) -> Result<Option<Found>> {
    let text = match std::fs::read(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        text => text.context(|| path.display().to_string())?,
    };
    let shown = path.display();
    let config: Config = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid_argument(format!("{shown}: {e}")))?;
    let keys = keys(registry);
    let helper = keys.iter().find_map(|key| config.cred_helpers.get(key));
    let store = Some(&config.creds_store).filter(|store| !store.is_empty());
    if let Some(helper) = helper.or(store) {
        let server = if registry == "docker.io" { HUB } else { registry };
        if let Some(credentials) = ask(helper, server)? {
            let source = format!("docker-credential-{helper}");
            return Ok(Some(Found { credentials, source }));
        }
    }
    let auth = config.auths.iter().find(|(key, _)| keys.iter().any(|k| k == host_of(key)));
    let Some((_, auth)) = auth else { return Ok(None) };
    let source = shown.to_string();
    if !auth.identitytoken.is_empty() {
        let secret = auth.identitytoken.clone();
        let credentials = Credentials { username: String::new(), secret };
        return Ok(Some(Found { credentials, source }));
    }
    if auth.auth.is_empty() {
        return Ok(None);
    }
    let broken = || Error::invalid_argument(format!("{shown}: auth of {registry} is malformed"));
    let decoded = STANDARD.decode(&auth.auth).map_err(|_| broken())?;
    let decoded = String::from_utf8(decoded).map_err(|_| broken())?;
    let (username, secret) = decoded.split_once(':').ok_or_else(broken)?;
    let secret = secret.trim_end_matches('\0').to_owned();
    let credentials = Credentials { username: username.to_owned(), secret };
    Ok(Some(Found { credentials, source }))
}

/// What a registry may be called in docker's tables.
fn keys(registry: &str) -> Vec<String> {
    let hub = ["index.docker.io", "registry-1.docker.io"].map(str::to_owned);
    let more = if registry == "docker.io" { hub.to_vec() } else { Vec::new() };
    [vec![registry.to_owned()], more].concat()
}

/// The host of a key of `auths`, which may be a whole address.
fn host_of(key: &str) -> &str {
    let rest = key.split_once("://").map_or(key, |(_, rest)| rest);
    rest.split('/').next().unwrap_or(rest)
}

/// Asks a helper; None when it knows nothing of the server.
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>> {
    let program = format!("docker-credential-{helper}");
    let failed = |why: String| Error::invalid_argument(format!("{program}: {why}"));
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .map_err(|e| failed(e.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that ends without reading says why by its answer.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child.wait_with_output().map_err(|e| failed(e.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stdout);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    // What it answers is secret: not even an error shows it.
    let answer: Answer =
        serde_json::from_slice(&output.stdout).map_err(|_| failed("no answer".to_owned()))?;
    let username = if answer.username == TOKEN_USER { String::new() } else { answer.username };
    Ok(Some(Credentials { username, secret: answer.secret }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(text: &str, registry: &str) -> Result<Option<(String, String)>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        let found = find_in(&path, registry)?;
        Ok(found.map(|f| (f.credentials.username, f.credentials.secret)))
    }

    #[test]
    fn auths_are_found_by_host() {
        let text = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
            "reg.example:5000": {"auth": "dXNlcjphOmI="},
            "token.example": {"auth": "dXNlcjphOmI=", "identitytoken": "refresh"},
            "empty.example": {}, "broken.example": {"auth": "!"}}}"#;
        let pair = |u: &str, s: &str| Some((u.to_owned(), s.to_owned()));
        assert_eq!(found(text, "docker.io").unwrap(), pair("hub", "pw"));
        assert_eq!(found(text, "reg.example:5000").unwrap(), pair("user", "a:b"));
        assert_eq!(found(text, "token.example").unwrap(), pair("", "refresh"));
        assert_eq!(found(text, "reg.example").unwrap(), None);
        assert_eq!(found(text, "empty.example").unwrap(), None);
        let err = found(text, "broken.example").unwrap_err();
        assert!(err.is_invalid_argument(), "{err}");
        assert!(find_in(Path::new("/none/config.json"), "docker.io").unwrap().is_none());
        assert!(found("{", "docker.io").is_err());
    }
}
