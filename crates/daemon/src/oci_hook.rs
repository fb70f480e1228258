//! `gantryd oci-hook`: lets any program serve as an OCI hook.
//!
//! A hook gets the container's state on standard input; most programs want it in their arguments.
//! The state is read, `{{...}}` in arguments and environment is replaced, and the program takes
//! our place.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use gantry_errdefs::{Error, Result, ResultExt as _};
use serde::Deserialize;

/// Largest state document in bytes; annotations may be large, but not without end.
const STATE_LEN_MAX: u64 = 4 << 20;

/// The part of the OCI runtime state a template can name.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    id: String,
    status: String,
    pid: i64,
    bundle: String,
    annotations: BTreeMap<String, String>,
}

/// Reads the state from standard input and becomes `command`; returns only when that fails.
///
/// # Errors
/// InvalidArgument for a bad state or template; else what the system says.
pub fn run(command: &[String]) -> Result<std::convert::Infallible> {
    let mut text = Vec::new();
    std::io::stdin()
        .lock()
        .take(STATE_LEN_MAX)
        .read_to_end(&mut text)
        .context(|| "oci-hook: standard input")?;
    let state: State = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid_argument(format!("oci-hook: state of the container: {e}")))?;
    let rootfs = rootfs_of(&state)?;
    let args: Vec<String> =
        command.iter().map(|a| expand(a, &state, &rootfs)).collect::<Result<_>>()?;
    let (program, rest) = args
        .split_first()
        .ok_or_else(|| Error::invalid_argument("oci-hook: no program is named"))?;
    let mut child = Command::new(program);
    child.args(rest);
    for (key, value) in std::env::vars() {
        child.env(key, expand(&value, &state, &rootfs)?);
    }
    Err(Error::io(format!("oci-hook: {program}"), child.exec()))
}

fn rootfs_of(state: &State) -> Result<String> {
    #[derive(Deserialize)]
    struct Root {
        path: String,
    }
    #[derive(Deserialize)]
    struct Spec {
        root: Root,
    }
    let bundle = Path::new(&state.bundle);
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).context(|| format!("oci-hook: {}", path.display()))?;
    let spec: Spec = serde_json::from_slice(&text)
        .map_err(|e| Error::invalid_argument(format!("oci-hook: {}: {e}", path.display())))?;
    Ok(bundle.join(spec.root.path).to_string_lossy().into_owned())
}

/// Replaces every `{{...}}` of `text`.
pub(crate) fn expand(text: &str, state: &State, rootfs: &str) -> Result<String> {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let (name, tail) = after.split_once("}}").ok_or_else(|| {
            Error::invalid_argument(format!("oci-hook: template {text:?}: unclosed braces"))
        })?;
        out.push_str(&value_of(name.trim(), state, rootfs)?);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

fn value_of(name: &str, state: &State, rootfs: &str) -> Result<String> {
    if let Some(key) = name.strip_prefix("annotation") {
        let key = key.trim().trim_matches('"');
        return Ok(state.annotations.get(key).cloned().unwrap_or_default());
    }
    Ok(match name {
        "id" => state.id.clone(),
        "bundle" => state.bundle.clone(),
        "rootfs" => rootfs.to_owned(),
        "pid" => state.pid.to_string(),
        "status" => state.status.clone(),
        _ => {
            return Err(Error::invalid_argument(format!(
                "oci-hook: template {name:?}: unknown name"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{State, expand};

    #[test]
    fn expands_the_state() {
        let state = State {
            id: "c1".to_owned(),
            pid: 7,
            annotations: [("a.b".to_owned(), "x".to_owned())].into(),
            ..State::default()
        };
        let text = r#"{{id}}-{{ pid }}-{{annotation "a.b"}}-{{rootfs}}!"#;
        assert_eq!(expand(text, &state, "/r").unwrap(), "c1-7-x-/r!");
        assert!(expand("{{id", &state, "").unwrap_err().is_invalid_argument());
        assert!(expand("{{nope}}", &state, "").unwrap_err().is_invalid_argument());
    }
}
