//! What one program hands to the next: everything that is not in the bundle.
//!
//! One JSON document in a sealed file in memory, whose descriptor the next program finds by the
//! flag `-state-fd`. Descriptors are numbers in it: they stay open over the exec. The version is
//! raised when a program that knows only the one before could not go on; fields that it may do
//! without are added without that, each with a default.

use std::os::fd::{AsFd as _, OwnedFd, RawFd};

use gantry_errdefs::{Error, Result};
use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::container::Settings;
use crate::fd;
use crate::process::Stage;
use crate::reaper::Exit;
use crate::sandbox::Pod;
use crate::stdio::{IoState, Streams};

/// The version written.
pub(crate) const STATE_VERSION: u32 = 1;
/// Output that nobody has read and arguments of execs are the largest parts, some kilobytes a
/// process.
const STATE_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A serving shim.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct State {
    /// [`STATE_VERSION`] of the writer.
    pub version: u32,
    /// The writer's own version.
    pub binary_version: String,
    /// The request that led here; the next program answers it.
    pub token: String,
    /// The listening socket.
    pub listener: RawFd,
    /// Its connections.
    pub connections: Vec<ConnectionState>,
    /// Events that were not taken yet, encoded envelopes in order.
    pub events: Vec<Vec<u8>>,
    /// The pod it is, if it is one.
    pub pod: Option<Pod>,
    /// Its containers.
    pub containers: Vec<ContainerState>,
}

/// A connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ConnectionState {
    /// Its socket.
    pub socket: RawFd,
    /// What was read of it and is to be read again.
    pub input: Vec<u8>,
}

/// A container. How its runtime is called is in its bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: std::path::PathBuf,
    /// Fixed at create.
    pub settings: Settings,
    /// Its cgroups, when they were found.
    pub cgroup: Option<Cgroup>,
    /// Kills for memory that were reported, while that is watched.
    pub kills_seen: Option<u64>,
    /// Its first process.
    pub init: ProcessState,
    /// The others.
    pub execs: Vec<ProcessState>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessState {
    /// Empty for the init.
    pub exec_id: String,
    /// As the client named them.
    pub streams: Streams,
    /// An exec's OCI `process`.
    pub spec: Vec<u8>,
    /// Where it is in its life.
    pub stage: Stage,
    /// Its pid; 0 before there is one.
    pub pid: u32,
    /// Its exit, if it has ended.
    pub exit: Option<Exit>,
    /// The client closed the input.
    pub input_closed: bool,
    /// What the shim holds for its streams.
    pub io: IoState,
}

impl State {
    /// Writes the state into a file in memory that nobody can change.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn to_file(&self) -> Result<OwnedFd> {
        let failed = |err: rustix::io::Errno| Error::io("state", err.into());
        let text =
            serde_json::to_vec(self).map_err(|err| Error::internal(format!("state: {err}")))?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("shim-state", flags).map_err(failed)?;
        fd::write_all(file.as_fd(), &text)?;
        let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(failed)?;
        rustix::fs::seek(&file, SeekFrom::Start(0)).map_err(failed)?;
        Ok(file)
    }

    /// Reads the state that another program has written.
    ///
    /// # Errors
    /// FailedPrecondition for a version that this program does not know, DataLoss for what is no
    /// state.
    pub(crate) fn from_file(file: &OwnedFd) -> Result<Self> {
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Any {
            version: u32,
        }
        let text = fd::read_from_start(file, STATE_BYTES_MAX)?;
        let broken = |err: serde_json::Error| Error::data_loss(format!("state: {err}"));
        let Any { version } = serde_json::from_slice(&text).map_err(broken)?;
        if version > STATE_VERSION {
            let why = format!("state: version {version}, this program knows {STATE_VERSION}");
            return Err(Error::failed_precondition(why));
        }
        serde_json::from_slice(&text).map_err(broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(stage: Stage) -> ProcessState {
        ProcessState {
            exec_id: "e1".into(),
            streams: Streams { stdout: "/run/fifo".into(), terminal: true, ..Streams::default() },
            spec: b"{\"args\":[]}".to_vec(),
            stage,
            pid: 42,
            exit: Some(Exit { status: 137, at: std::time::UNIX_EPOCH }),
            input_closed: true,
            io: IoState::default(),
        }
    }

    fn full() -> State {
        let container = ContainerState {
            id: "box".into(),
            bundle: "/b/box".into(),
            settings: Settings { io_uid: 7, restore: Some("/c".into()), ..Settings::default() },
            cgroup: Some(Cgroup::V1(vec![("memory".into(), "/m/box".into())])),
            kills_seen: Some(3),
            init: process(Stage::Running),
            execs: vec![process(Stage::Created), process(Stage::Stopped)],
        };
        State {
            version: STATE_VERSION,
            binary_version: "1.2.3".into(),
            token: "t".into(),
            listener: 9,
            connections: vec![ConnectionState { socket: 12, input: vec![0, 255, 10] }],
            events: vec![b"\x0a\x00".to_vec()],
            pod: None,
            containers: vec![container],
        }
    }

    #[test]
    fn state_comes_back_as_it_was() {
        let state = full();
        let file = state.to_file().expect("written");
        assert_eq!(State::from_file(&file).expect("reads"), state);
        let changed = rustix::io::write(&file, b"x");
        assert!(changed.is_err(), "it is sealed");
    }

    #[test]
    fn a_newer_version_is_refused_and_nonsense_too() {
        let newer = State { version: STATE_VERSION + 1, ..full() };
        let err = State::from_file(&newer.to_file().expect("written")).expect_err("newer");
        assert!(err.is_failed_precondition(), "{err}");
        let nonsense = crate::fd::memory("nonsense").expect("a file");
        crate::fd::write_all(nonsense.as_fd(), b"{}").expect("written");
        assert!(State::from_file(&nonsense).is_err());
    }

    /// What version 1 looks like on the wire must be read by every later program.
    #[test]
    fn version_1_is_read() {
        let text = r#"{"version":1,"binary_version":"0.1.0","token":"t","listener":7,
            "connections":[{"socket":8,"input":[1,2]}],"events":[],"pod":null,"containers":[
            {"id":"box","bundle":"/b","settings":{"io_uid":0,"io_gid":0,"hand_over":true,
            "kill_all":false,"mounted":true,"no_pivot":false,"no_new_keyring":false,
            "restore":null,"criu_work":"/b/work"},"cgroup":{"V2":"/sys/fs/cgroup/box"},
            "kills_seen":0,"init":{"exec_id":"","streams":{"stdin":"","stdout":"/f","stderr":"",
            "terminal":false},"spec":[],"stage":"Running","pid":5,"exit":null,
            "input_closed":false,"io":{"deferred":null,"stdin":null,"outputs":[10],
            "console":null,"input":null,"pumps":[{"from":11,"to":{"Ready":12},"left":[104]}],
            "logger":null}},"execs":[]}]}"#;
        let file = crate::fd::memory("old").expect("a file");
        crate::fd::write_all(file.as_fd(), text.as_bytes()).expect("written");
        let state = State::from_file(&file).expect("reads");
        assert_eq!(state.containers[0].init.pid, 5);
        assert_eq!(state.containers[0].init.io.outputs, [10]);
    }
}
