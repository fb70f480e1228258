//! Capability sets.

use gantry_errdefs::{Error, Result, ResultExt};
use oci_spec::runtime::{Capability, LinuxCapabilities};

/// Capabilities in the kernel's order: the position is the bit.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The capabilities of an ordinary container.
pub fn default_capabilities() -> Vec<&'static str> {
    vec![
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    ]
}

/// The effective capabilities of this process: all that a privileged container can be given.
///
/// # Errors
/// An I/O error, or Internal when `/proc/self/status` can't be read as expected.
pub fn current_capabilities() -> Result<Vec<&'static str>> {
    const STATUS: &str = "/proc/self/status";
    let status = std::fs::read_to_string(STATUS).context(|| STATUS)?;
    let bits = status
        .lines()
        .find_map(|l| l.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .ok_or_else(|| Error::internal(format!("{STATUS}: no CapEff line")))?;
    let known = ALL.iter().enumerate().filter(|(bit, _)| bits & (1 << bit) != 0);
    Ok(known.map(|(_, name)| *name).collect())
}

/// The name of a capability as the spec has it; `CAP_` and case are optional.
///
/// # Errors
/// InvalidArgument for an unknown capability.
pub(crate) fn parse(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
    full.strip_prefix("CAP_")
        .and_then(|short| short.parse().ok())
        .ok_or_else(|| Error::invalid_argument(format!("capability {name:?} is unknown")))
}

/// Bounding, effective and permitted set to `wanted`; inheritable and ambient stay empty.
pub(crate) fn sets_of(wanted: impl IntoIterator<Item = Capability>) -> LinuxCapabilities {
    let set: oci_spec::runtime::Capabilities = wanted.into_iter().collect();
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(None)
        .set_ambient(None);
    sets
}
