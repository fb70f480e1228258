//! `-v` and `-info`.

use std::io::Read as _;
use std::process::{Command, Stdio};

use gantry_api::containerd::types::{RuntimeInfo, RuntimeVersion};
use gantry_errdefs::Result;
use prost::Message as _;
use prost_types::Any;

use crate::options::Options;

/// The type under which the runtime's features travel, as JSON.
const FEATURES_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";
/// Options are a few hundred bytes.
const INPUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The text of `-v`.
pub(crate) fn version() -> String {
    // A daemon of ours asks how to pass the parameters of `start`, and whether it needs `start`.
    let version = crate::VERSION;
    let lines = "Bootstrap: protobuf\n  Socket: stdin";
    format!("containerd-shim-runc-v2:\n  Version:  {version}\n  {lines}\n")
}

/// The answer to `-info`: this shim, the options it was asked with, and what the runtime they name
/// can do. A runtime that cannot tell has no features.
///
/// # Errors
/// The options are not understood.
pub(crate) fn runtime() -> Result<Vec<u8>> {
    let mut input = Vec::new();
    // No input is no options.
    if { std::io::stdin().take(INPUT_BYTES_MAX) }.read_to_end(&mut input).is_err() {
        input.clear();
    }
    let any = Any::decode(input.as_slice()).unwrap_or_default();
    let options = Options::decode(Some(&any))?;
    let binary = options.saved().binary;
    let asked = Command::new(&binary).arg("features").stdin(Stdio::null()).output();
    let features = asked
        .ok()
        .filter(|out| out.status.success())
        .map(|out| Any { type_url: FEATURES_URL.to_owned(), value: out.stdout });
    let info = RuntimeInfo {
        name: "io.containerd.runc.v2".to_owned(),
        version: Some(RuntimeVersion {
            version: crate::VERSION.to_owned(),
            revision: String::new(),
        }),
        options: Some(any).filter(|any| !any.type_url.is_empty()),
        features,
        ..RuntimeInfo::default()
    };
    Ok(info.encode_to_vec())
}
