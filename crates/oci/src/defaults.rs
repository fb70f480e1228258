//! The spec a container gets when nothing is asked for.

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use crate::capabilities::default_capabilities;

/// The PATH of a process whose image sets none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Version of the runtime spec that is written; runc 1.0 and later take it.
const OCI_VERSION: &str = "1.0.2";

/// Open files of a process. containerd's clients ask for this, and so must we: the machine's own
/// limit may be lower or higher, and raising it needs CAP_SYS_RESOURCE.
const OPEN_FILES_LIMIT: u64 = 1024;

/// Character devices every container may use: null, zero, full, tty, random, urandom, console,
/// the ptys and ptmx.
const DEVICES: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (5, Some(0)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(1)),
    (136, None),
    (5, Some(2)),
];

/// The default Linux spec for container `id` of `namespace`, without arguments.
pub fn default_spec(namespace: &str, id: &str) -> Spec {
    let value = json!({
        "ociVersion": OCI_VERSION,
        "process": process(),
        "root": {"path": "rootfs"},
        "mounts": mounts(),
        "linux": {
            "resources": {"devices": device_rules()},
            "cgroupsPath": format!("/{namespace}/{id}"),
            "namespaces": [
                {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
                {"type": "mount"}, {"type": "network"},
            ],
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware",
                "/sys/devices/virtual/powercap", "/proc/scsi",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    });
    serde_json::from_value(value).expect("the default spec fits the types")
}

fn process() -> Value {
    let capabilities = default_capabilities();
    json!({
        "user": {"uid": 0, "gid": 0},
        "cwd": "/",
        "env": [format!("PATH={DEFAULT_PATH}")],
        "noNewPrivileges": true,
        "capabilities": {
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        },
        "rlimits": [
            {"type": "RLIMIT_NOFILE", "hard": OPEN_FILES_LIMIT, "soft": OPEN_FILES_LIMIT},
        ],
    })
}

fn mounts() -> Value {
    let tmpfs = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    json!([
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &tmpfs),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount("/run", "tmpfs", "tmpfs", &tmpfs),
    ])
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

fn device_rules() -> Value {
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    for (major, minor) in DEVICES {
        let mut rule = json!({"allow": true, "type": "c", "major": major, "access": "rwm"});
        if let Some(minor) = minor {
            rule["minor"] = minor.into();
        }
        rules.push(rule);
    }
    Value::Array(rules)
}
