//! Our types to and from those on the wire.

use std::time::SystemTime;

use gantry_api::containerd::task::v2;
use gantry_api::containerd::types as wire;
use gantry_api::containerd::v1::types::{self as process, Status as WireStatus};
use gantry_core::Any;
use gantry_mount::Mount;
use prost_types::Timestamp;

use crate::{Exit, Io, ProcessInfo, State, Status};

pub(crate) fn to_wire(any: &Any) -> prost_types::Any {
    prost_types::Any { type_url: any.type_url.clone(), value: any.value.clone() }
}

pub(crate) fn from_wire(any: prost_types::Any) -> Any {
    Any { type_url: any.type_url, value: any.value }
}

pub(crate) fn mount_to_wire(mount: Mount) -> wire::Mount {
    wire::Mount {
        r#type: mount.kind,
        source: mount.source,
        target: mount.target,
        options: mount.options,
    }
}

/// None for Go's zero time, which shims send for a process that has not ended.
pub(crate) fn to_system_time(at: Timestamp) -> Option<SystemTime> {
    if at.seconds < 0 {
        return None;
    }
    SystemTime::try_from(at).ok()
}

pub(crate) fn state(from: v2::StateResponse) -> State {
    let status = match from.status() {
        WireStatus::Unknown => Status::Unknown,
        WireStatus::Created => Status::Created,
        WireStatus::Running => Status::Running,
        WireStatus::Stopped => Status::Stopped,
        WireStatus::Paused => Status::Paused,
        WireStatus::Pausing => Status::Pausing,
    };
    State {
        status,
        pid: from.pid,
        exit_status: from.exit_status,
        exited_at: from.exited_at.and_then(to_system_time),
        io: Io {
            stdin: from.stdin,
            stdout: from.stdout,
            stderr: from.stderr,
            terminal: from.terminal,
        },
    }
}

pub(crate) fn deleted(from: v2::DeleteResponse) -> Exit {
    Exit {
        pid: from.pid,
        status: from.exit_status,
        exited_at: from.exited_at.and_then(to_system_time),
    }
}

pub(crate) fn process_info(from: process::ProcessInfo) -> ProcessInfo {
    ProcessInfo { pid: from.pid, info: from.info.map(from_wire) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zero_time_of_go_is_none() {
        let zero = Timestamp { seconds: -62_135_596_800, nanos: 0 };
        assert_eq!(to_system_time(zero), None);
        let some = Timestamp { seconds: 1, nanos: 5 };
        let after = std::time::Duration::new(1, 5);
        assert_eq!(to_system_time(some), Some(SystemTime::UNIX_EPOCH + after));
    }
}
