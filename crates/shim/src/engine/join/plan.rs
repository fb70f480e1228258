//! Whether an exec can be done here, and how.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use gantry_sys::enter::{self, Limit, Namespace};
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::record::{Capabilities, Config, Record};
use super::{Exec, FILTER_FILE};

/// Everything about an exec but its streams.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) namespaces: Vec<Namespace>,
    pub(super) cgroups: Vec<OwnedFd>,
    pub(super) oom_score_adj: Option<i32>,
    pub(super) limits: Vec<Limit>,
    pub(super) keyring: Option<CString>,
    pub(super) size: Option<(u16, u16)>,
    pub(super) no_new_privileges: bool,
    pub(super) seccomp: Option<Vec<u8>>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) capabilities: enter::Capabilities,
    pub(super) directory: CString,
    pub(super) candidates: Vec<CString>,
    pub(super) arguments: Vec<CString>,
    pub(super) environment: Vec<CString>,
    pub(super) home: Option<usize>,
}

/// An OCI `process`; one with a field that is not known here is the runtime's.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct Process {
    terminal: bool,
    console_size: Option<Size>,
    user: User,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: String,
    capabilities: Option<Capabilities>,
    rlimits: Option<Vec<NamedLimit>>,
    no_new_privileges: bool,
    apparmor_profile: String,
    selinux_label: String,
    /// Runtimes take the container's.
    #[serde(rename = "oomScoreAdj")]
    _oom_score_adj: IgnoredAny,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Size {
    height: u64,
    width: u64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
struct User {
    uid: u32,
    gid: u32,
    additional_gids: Option<Vec<u32>>,
    username: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamedLimit {
    #[serde(rename = "type")]
    kind: String,
    hard: u64,
    soft: u64,
}

/// Why the runtime has to do it.
type Why = &'static str;

/// Decides: how to do `call` for the container whose record is in `home`, or why not here.
pub(super) fn plan(home: &Path, call: &Exec<'_>) -> Result<Plan, Why> {
    let record = Record::read(home).ok_or("an unknown record")?;
    let process: Process =
        serde_json::from_slice(call.process).map_err(|_| "an unknown field of the process")?;
    understands(&record, &process, call.console.is_some())?;
    has_room(&record.cgroup_paths)?;
    let config = &record.config;
    let (environment, home) = environment(process.env.unwrap_or_default())?;
    let arguments = process.args.unwrap_or_default();
    Ok(Plan {
        namespaces: namespaces(config)?,
        cgroups: cgroups(&record.cgroup_paths)?,
        oom_score_adj: config.oom_score_adj,
        limits: limits(process.rlimits, config)?,
        keyring: (!config.no_new_keyring).then(|| text(format!("_ses.{}", call.id))).transpose()?,
        size: process.console_size.and_then(size),
        no_new_privileges: process.no_new_privileges,
        seccomp: seccomp(config, call.bundle)?,
        uid: process.user.uid,
        gid: process.user.gid,
        groups: process.user.additional_gids.unwrap_or_default(),
        capabilities: capabilities(process.capabilities.as_ref().or(config.capabilities.as_ref()))?,
        directory: text(process.cwd)?,
        candidates: candidates(arguments.first().map_or("", |arg| arg), &environment)?,
        arguments: arguments.into_iter().map(text).collect::<Result<_, _>>()?,
        environment: environment.into_iter().map(text).collect::<Result<_, _>>()?,
        home,
    })
}

fn understands(record: &Record, process: &Process, console: bool) -> Result<(), Why> {
    let config = &record.config;
    let reasons = [
        (record.rootless || config.rootless_euid || config.rootless_cgroups, "rootless"),
        (!record.intel_rdt_path.is_empty() || config.intel_rdt.is_some(), "resctrl"),
        (config.personality.is_some(), "personality"),
        (config.scheduler.is_some(), "scheduler"),
        (config.io_priority.is_some(), "I/O priority"),
        (config.exec_cpu_affinity.is_some(), "CPU affinity"),
        (!config.apparmor_profile.is_empty(), "AppArmor"),
        (!process.apparmor_profile.is_empty(), "AppArmor"),
        (!config.process_label.is_empty(), "SELinux"),
        (!process.selinux_label.is_empty(), "SELinux"),
        (!process.user.username.is_empty(), "a user by name"),
        (process.terminal != console, "a terminal that is not asked for alike"),
        (!process.cwd.starts_with('/'), "a relative working directory"),
        (process.args.as_ref().is_none_or(Vec::is_empty), "no arguments"),
    ];
    match reasons.into_iter().find(|(is_so, _)| *is_so) {
        Some((_, why)) => Err(why),
        None => Ok(()),
    }
}

fn namespaces(config: &Config) -> Result<Vec<Namespace>, Why> {
    let kind = |ns: &super::record::Namespace| {
        Ok(match ns.kind.as_str() {
            "NEWNS" => Namespace::Mount,
            "NEWPID" => Namespace::Pid,
            "NEWIPC" => Namespace::Ipc,
            "NEWUTS" => Namespace::Uts,
            "NEWNET" => Namespace::Network,
            "NEWCGROUP" => Namespace::Cgroup,
            // Of a user namespace, and of a time namespace, there is more to do.
            _ => return Err("a kind of namespace"),
        })
    };
    let all = config.namespaces.iter().map(kind).collect::<Result<Vec<_>, _>>()?;
    if all.contains(&Namespace::Mount) { Ok(all) } else { Err("no mount namespace") }
}

/// Refuses what the runtime has words for: a frozen container, and one with no process left.
fn has_room(cgroups: &BTreeMap<String, PathBuf>) -> Result<(), Why> {
    let read = |controller: &str, file: &str| {
        let directory = cgroups.get(controller).or_else(|| cgroups.get(""))?;
        std::fs::read_to_string(directory.join(file)).ok()
    };
    let frozen = read("freezer", "freezer.state").is_some_and(|state| state.trim() != "THAWED")
        || read("", "cgroup.freeze").is_some_and(|state| state.trim() != "0");
    if frozen {
        return Err("a frozen container");
    }
    let number = |text: Option<String>| text.and_then(|text| text.trim().parse::<u64>().ok());
    match number(read("pids", "pids.max")) {
        Some(max) if number(read("pids", "pids.current")).is_none_or(|now| now >= max) => {
            Err("no process is left of the limit")
        }
        _ => Ok(()),
    }
}

fn cgroups(paths: &BTreeMap<String, PathBuf>) -> Result<Vec<OwnedFd>, Why> {
    let mut all = Vec::with_capacity(paths.len());
    for path in paths.values() {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::open(path.join("cgroup.procs"), flags, Mode::empty()) {
            Ok(procs) => all.push(procs),
            Err(rustix::io::Errno::NOENT) => {}
            Err(_) => return Err("a cgroup that cannot be joined"),
        }
    }
    if all.is_empty() { Err("no cgroup") } else { Ok(all) }
}

/// Those of the process, or else the container's.
fn limits(own: Option<Vec<NamedLimit>>, config: &Config) -> Result<Vec<Limit>, Why> {
    let own = own.unwrap_or_default();
    if own.is_empty() {
        let limit =
            |l: &super::record::Limit| Limit { resource: l.resource, soft: l.soft, hard: l.hard };
        return Ok(config.rlimits.iter().flatten().map(limit).collect());
    }
    let limit = |l: &NamedLimit| {
        let resource =
            RESOURCES.iter().position(|name| l.kind.strip_prefix("RLIMIT_") == Some(name));
        let resource = resource.and_then(|n| u32::try_from(n).ok()).ok_or("a kind of limit")?;
        Ok(Limit { resource, soft: l.soft, hard: l.hard })
    };
    own.iter().map(limit).collect()
}

fn size(size: Size) -> Option<(u16, u16)> {
    let cells = |n: u64| u16::try_from(n).ok().filter(|n| *n != 0);
    Some((cells(size.height)?, cells(size.width)?))
}

fn seccomp(config: &Config, bundle: &Path) -> Result<Option<Vec<u8>>, Why> {
    let Some(seccomp) = &config.seccomp else { return Ok(None) };
    if seccomp.flags.as_ref().is_some_and(|flags| !flags.is_empty()) {
        return Err("flags of a seccomp filter");
    }
    if !seccomp.listener_path.is_empty() {
        return Err("a seccomp listener");
    }
    let filter = std::fs::read(bundle.join(FILTER_FILE));
    filter.map(Some).map_err(|_| "a seccomp filter that was not kept")
}

fn capabilities(named: Option<&Capabilities>) -> Result<enter::Capabilities, Why> {
    let Some(named) = named else { return Ok(enter::Capabilities::default()) };
    let set = |names: &Option<Vec<String>>| {
        names.iter().flatten().try_fold(0_u64, |set, name| {
            let bit =
                CAPABILITIES.iter().position(|known| name.strip_prefix("CAP_") == Some(known));
            bit.map(|bit| set | 1 << bit).ok_or("an unknown capability")
        })
    };
    Ok(enter::Capabilities {
        bounding: set(&named.bounding)?,
        effective: set(&named.effective)?,
        permitted: set(&named.permitted)?,
        inheritable: set(&named.inheritable)?,
        ambient: set(&named.ambient)?,
    })
}

/// The environment, each name once, with its last value in its first place; and the place of HOME
/// where that is to be found out.
fn environment(given: Vec<String>) -> Result<(Vec<String>, Option<usize>), Why> {
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    let mut all: Vec<String> = Vec::with_capacity(given.len() + 1);
    for pair in given {
        let name = match pair.split_once('=') {
            Some((name, _)) if !name.is_empty() => name.to_owned(),
            _ => return Err("a variable without a name"),
        };
        match places.get(&name).and_then(|place| all.get_mut(*place)) {
            Some(place) => *place = pair,
            None => {
                places.insert(name, all.len());
                all.push(pair);
            }
        }
    }
    let home = match places.get("HOME") {
        Some(place) => all.get(*place).is_some_and(|home| home == "HOME=").then_some(*place),
        None => {
            all.push("HOME=".to_owned());
            Some(all.len() - 1)
        }
    };
    Ok((all, home))
}

/// Where the program may be: as named, or in each directory of the container's PATH.
fn candidates(name: &str, environment: &[String]) -> Result<Vec<CString>, Why> {
    if name.is_empty() {
        return Err("an empty program name");
    }
    if name.contains('/') {
        // A relative path is resolved by the runtime, in its own way.
        let is_absolute = name.starts_with('/');
        return if is_absolute { Ok(vec![text(name.to_owned())?]) } else { Err("a relative path") };
    }
    let path = environment.iter().find_map(|pair| pair.strip_prefix("PATH=")).unwrap_or_default();
    let directories = path.split(':').map(|directory| {
        let is_plain = directory == "/"
            || directory
                .strip_prefix('/')
                .is_some_and(|rest| rest.split('/').all(|part| !matches!(part, "" | "." | "..")));
        if !is_plain {
            return Err("an unusual directory on PATH");
        }
        text(format!("{}/{name}", directory.trim_end_matches('/')))
    });
    directories.collect()
}

fn text(text: String) -> Result<CString, Why> {
    CString::new(text).map_err(|_| "a NUL in a text")
}

/// `RLIMIT_*` by number (asm-generic/resource.h, the same on x86-64, arm64 and riscv64).
const RESOURCES: [&str; 16] = [
    "CPU",
    "FSIZE",
    "DATA",
    "STACK",
    "CORE",
    "RSS",
    "NPROC",
    "NOFILE",
    "MEMLOCK",
    "AS",
    "LOCKS",
    "SIGPENDING",
    "MSGQUEUE",
    "NICE",
    "RTPRIO",
    "RTTIME",
];

/// `CAP_*` by number (linux/capability.h).
#[rustfmt::skip]
const CAPABILITIES: [&str; 41] = [
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID",
    "SETPCAP", "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW",
    "IPC_LOCK", "IPC_OWNER", "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT",
    "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD",
    "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
    "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE",
];

#[cfg(test)]
mod tests;
