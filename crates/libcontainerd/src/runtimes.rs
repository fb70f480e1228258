//! Which shim runs a container, by the name that the engine's users know.

use std::collections::BTreeMap;

use gantry_api::containerd::linux::runc as old;
use gantry_api::containerd::runc::v1 as runc;
use gantry_client::typeurl;
use gantry_core::Any;
use gantry_errdefs::{Error, Result};

/// The shim of runtimes that take runc's command line.
const RUNC_SHIM: &str = "io.containerd.runc.v2";

/// The runtime of containerd 1.x, which today's daemons run as [`RUNC_SHIM`].
const LINUX_RUNTIME: &str = "io.containerd.runtime.v1.linux";

/// A shim and what it is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuntimeEntry {
    /// Name or path of the shim.
    pub shim: String,
    /// Its options.
    pub options: Option<Any>,
}

/// The runtimes of an engine. It begins with `runc`, `io.containerd.runc.v2` and
/// `io.containerd.runtime.v1.linux`; any other name with dots, or an absolute path, is taken as
/// that of a shim without options.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    entries: BTreeMap<String, RuntimeEntry>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let runc = RuntimeEntry { shim: RUNC_SHIM.to_owned(), options: None };
        let linux = RuntimeEntry { shim: LINUX_RUNTIME.to_owned(), options: None };
        let entries = [("runc", runc.clone()), (RUNC_SHIM, runc), (LINUX_RUNTIME, linux)];
        Self { entries: entries.map(|(name, entry)| (name.to_owned(), entry)).into() }
    }
}

impl RuntimeConfig {
    /// Where the stock runtimes keep their state, and whether systemd makes the cgroups.
    #[must_use]
    pub fn stock_options(mut self, root: &str, systemd_cgroup: bool) -> Self {
        let root = root.to_owned();
        let new = runc::Options { root: root.clone(), systemd_cgroup, ..Default::default() };
        let old = old::RuncOptions { runtime_root: root, systemd_cgroup, ..Default::default() };
        for name in ["runc", RUNC_SHIM] {
            self = self.custom(name, RUNC_SHIM, Some(typeurl::pack(&new)));
        }
        self.custom(LINUX_RUNTIME, LINUX_RUNTIME, Some(typeurl::pack(&old)))
    }

    /// Adds or replaces a runtime.
    #[must_use]
    pub fn custom(
        mut self,
        name: impl Into<String>,
        shim: impl Into<String>,
        options: Option<Any>,
    ) -> Self {
        self.entries.insert(name.into(), RuntimeEntry { shim: shim.into(), options });
        self
    }

    /// Adds or replaces a runtime that is a program with runc's command line.
    #[must_use]
    pub fn program(self, name: impl Into<String>, path: impl Into<String>) -> Self {
        let options = runc::Options { binary_name: path.into(), ..Default::default() };
        self.custom(name, RUNC_SHIM, Some(typeurl::pack(&options)))
    }

    /// The shim and options of a name; the empty one is `runc`.
    ///
    /// # Errors
    /// InvalidArgument for a name nobody knows.
    pub fn resolve(&self, name: &str) -> Result<RuntimeEntry> {
        let name = if name.is_empty() { "runc" } else { name };
        if let Some(entry) = self.entries.get(name) {
            return Ok(entry.clone());
        }
        if name.starts_with('/') || name.contains('.') {
            return Ok(RuntimeEntry { shim: name.to_owned(), options: None });
        }
        Err(Error::invalid_argument(format!("runtime {name:?}: unknown or invalid runtime name")))
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_shims() {
        let config = RuntimeConfig::default()
            .stock_options("/run/x", true)
            .program("crun", "/usr/bin/crun")
            .custom("own", "/bin/shim", None);
        for (name, shim) in [
            ("", RUNC_SHIM),
            ("runc", RUNC_SHIM),
            ("crun", RUNC_SHIM),
            (LINUX_RUNTIME, LINUX_RUNTIME),
            ("own", "/bin/shim"),
            ("/opt/shim", "/opt/shim"),
            ("com.example.shim.v1", "com.example.shim.v1"),
        ] {
            assert_eq!(config.resolve(name).unwrap().shim, shim, "{name}");
        }
        assert!(config.resolve("nothing").unwrap_err().is_invalid_argument());
        let options = config.resolve("runc").unwrap().options.unwrap();
        let runc = typeurl::unpack::<runc::Options>(&options).unwrap().unwrap();
        assert_eq!((runc.root.as_str(), runc.systemd_cgroup), ("/run/x", true));
        let options = config.resolve(LINUX_RUNTIME).unwrap().options.unwrap();
        let linux = typeurl::unpack::<old::RuncOptions>(&options).unwrap().unwrap();
        assert_eq!(linux.runtime_root, "/run/x");
        assert_eq!(config.names().count(), 5);
    }
}
