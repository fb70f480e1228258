//! What every namespaced call carries: its namespace and its lease.

use std::fmt;

use gantry_errdefs::Result;

use crate::identifiers;

/// A validated namespace name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Namespace(String);

impl Namespace {
    /// Checks and takes a name.
    ///
    /// # Errors
    /// InvalidArgument when the name breaks the identifier rules.
    pub fn new(name: impl Into<String>) -> Result<Self> {
        let name = name.into();
        identifiers::validate("namespace", &name)?;
        Ok(Self(name))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The context of one call, from the headers `containerd-namespace` and `containerd-lease`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// The namespace the call works in.
    pub namespace: Namespace,
    /// The lease that new objects join, if the caller sent one.
    pub lease: Option<String>,
}

impl Context {
    /// A context without a lease.
    pub fn new(namespace: Namespace) -> Self {
        Self { namespace, lease: None }
    }

    /// The same context under `lease`.
    #[must_use]
    pub fn with_lease(mut self, lease: impl Into<String>) -> Self {
        self.lease = Some(lease.into());
        self
    }
}
