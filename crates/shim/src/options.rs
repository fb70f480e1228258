//! The options of a task, in any of the messages daemons send them in.

use std::path::Path;

use gantry_api::Payload as _;
use gantry_api::containerd::linux::runc as runctypes;
use gantry_api::containerd::runc::v1 as runc;
use gantry_errdefs::{Error, Result};
use prost::Message as _;
use prost_types::Any;

use crate::engine::{Checkpoint, RuncConfig};
use crate::state::TaskOptions;

/// Where the runtime keeps its records unless told otherwise; one directory per namespace below.
const RUNTIME_ROOT: &str = "/run/containerd/runc";
/// The runtime unless told otherwise.
const RUNTIME: &str = "runc";

/// The options of a task, decoded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// The runtime's program; empty is [`RUNTIME`].
    pub binary: String,
    /// The runtime's records; empty is [`RUNTIME_ROOT`].
    pub root: String,
    /// Cgroups through systemd.
    pub systemd_cgroup: bool,
    /// No `pivot_root`.
    pub no_pivot: bool,
    /// Keep the session keyring.
    pub no_new_keyring: bool,
    /// Owner of stdio pipes.
    pub io_uid: u32,
    /// Group of stdio pipes.
    pub io_gid: u32,
    /// Cgroup for the shim itself.
    pub shim_cgroup: String,
    /// Restore from here.
    pub criu_image: String,
    /// Work files of criu.
    pub criu_work: String,
    /// The criu to use.
    pub criu: String,
}

/// The one field of 1.x's `containerd.runc.v1.Options` that later versions have dropped.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct OldField {
    #[prost(string, tag = "8")]
    criu_path: String,
}

impl Options {
    /// Decodes an options message; nothing and an empty one are the defaults.
    ///
    /// # Errors
    /// InvalidArgument for a message that is not understood.
    pub(crate) fn decode(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        if let Some(options) = any.unpack::<runc::Options>()? {
            // It decodes: the rest of the message just has.
            let old = OldField::decode(any.value.as_slice()).unwrap_or_default();
            return Ok(Self { criu: old.criu_path, ..options.into() });
        }
        if let Some(options) = any.unpack::<runctypes::CreateOptions>()? {
            return Ok(options.into());
        }
        if let Some(options) = any.unpack::<runctypes::RuncOptions>()? {
            return Ok(options.into());
        }
        let kind = &any.type_url;
        Err(Error::invalid_argument(format!("unsupported option type {kind:?}")))
    }

    /// How to call the runtime for a container of `namespace`.
    pub(crate) fn runtime(&self, namespace: &str, bundle: &Path) -> RuncConfig {
        let saved = self.saved();
        runtime(&saved, namespace, bundle)
    }

    /// What is kept on disk.
    pub(crate) fn saved(&self) -> TaskOptions {
        let or = |text: &str, default: &str| {
            if text.is_empty() { default.to_owned() } else { text.to_owned() }
        };
        TaskOptions {
            version: crate::state::VERSION,
            binary: or(&self.binary, RUNTIME),
            root: or(&self.root, RUNTIME_ROOT),
            systemd_cgroup: self.systemd_cgroup,
            criu: self.criu.clone(),
        }
    }
}

/// How to call the runtime with options read back from disk.
pub(crate) fn runtime(saved: &TaskOptions, namespace: &str, bundle: &Path) -> RuncConfig {
    RuncConfig {
        binary: saved.binary.clone(),
        root: Path::new(&saved.root).join(namespace),
        systemd_cgroup: saved.systemd_cgroup,
        log: bundle.join("log.json"),
        criu: saved.criu.clone().into(),
    }
}

impl From<runc::Options> for Options {
    fn from(options: runc::Options) -> Self {
        Self {
            binary: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            shim_cgroup: options.shim_cgroup,
            criu_image: options.criu_image_path,
            criu_work: options.criu_work_path,
            criu: String::new(),
        }
    }
}

impl From<runctypes::CreateOptions> for Options {
    fn from(options: runctypes::CreateOptions) -> Self {
        Self {
            no_pivot: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            shim_cgroup: options.shim_cgroup,
            criu_image: options.criu_image_path,
            criu_work: options.criu_work_path,
            ..Self::default()
        }
    }
}

impl From<runctypes::RuncOptions> for Options {
    fn from(options: runctypes::RuncOptions) -> Self {
        Self {
            binary: options.runtime,
            root: options.runtime_root,
            systemd_cgroup: options.systemd_cgroup,
            criu: options.criu_path,
            ..Self::default()
        }
    }
}

/// Decodes how to checkpoint; `path` is the request's.
///
/// # Errors
/// InvalidArgument for a message that is not understood.
pub(crate) fn checkpoint(path: String, any: Option<&Any>) -> Result<Checkpoint> {
    let mut call = Checkpoint { image: path, ..Checkpoint::default() };
    let Some(any) = any.filter(|any| !any.type_url.is_empty()) else { return Ok(call) };
    // The two messages have the same fields but for the numbers of the two paths.
    macro_rules! fill {
        ($options:expr) => {{
            let options = $options;
            call.exit = options.exit;
            call.open_tcp = options.open_tcp;
            call.external_unix_sockets = options.external_unix_sockets;
            call.terminal = options.terminal;
            call.file_locks = options.file_locks;
            call.empty_namespaces = options.empty_namespaces;
            call.cgroups_mode = options.cgroups_mode;
            call.work = options.work_path;
            if call.image.is_empty() {
                call.image = options.image_path;
            }
            return Ok(call);
        }};
    }
    if let Some(options) = any.unpack::<runc::CheckpointOptions>()? {
        fill!(options)
    }
    if let Some(options) = any.unpack::<runctypes::CheckpointOptions>()? {
        fill!(options)
    }
    let kind = &any.type_url;
    Err(Error::invalid_argument(format!("unsupported checkpoint option type {kind:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_of_options_is_read() {
        assert_eq!(Options::decode(None).expect("none"), Options::default());
        let new = runc::Options { binary_name: "crun".into(), io_uid: 7, ..Default::default() };
        let decoded = Options::decode(Some(&Any::pack(&new))).expect("runc.v1");
        assert_eq!((decoded.binary.as_str(), decoded.io_uid), ("crun", 7));
        let old = runctypes::RuncOptions { runtime_root: "/r".into(), ..Default::default() };
        let decoded = Options::decode(Some(&Any::pack(&old))).expect("runctypes");
        assert_eq!(decoded.runtime("ns", Path::new("/b")).root, Path::new("/r/ns"));
        let other = Any { type_url: "x.Y".into(), value: Vec::new() };
        assert!(Options::decode(Some(&other)).expect_err("unknown").is_invalid_argument());
    }

    #[test]
    fn defaults_are_runcs() {
        let config = Options::default().runtime("k8s.io", Path::new("/b"));
        assert_eq!(config.binary, "runc");
        assert_eq!(config.root, Path::new("/run/containerd/runc/k8s.io"));
        assert_eq!(config.log, Path::new("/b/log.json"));
    }

    #[test]
    fn the_requests_path_wins_over_the_options() {
        let options =
            runc::CheckpointOptions { image_path: "/i".into(), exit: true, ..Default::default() };
        let any = Any::pack(&options);
        let call = checkpoint(String::new(), Some(&any)).expect("decodes");
        assert_eq!((call.image.as_str(), call.exit), ("/i", true));
        assert_eq!(checkpoint("/p".into(), Some(&any)).expect("decodes").image, "/p");
    }
}
