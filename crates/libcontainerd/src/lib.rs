//! What a Docker-like engine needs of a containerd daemon, in the shape that Moby's libcontainerd
//! gave it.
//!
//! There are two forms of the same. The objects ([`Client`], [`Container`], [`Task`],
//! [`Process`]) are for programs that keep them; [`flat::FlatClient`] takes ids with every call
//! and keeps the objects itself. Either way the engine implements [`Backend`] and is told what
//! happens to its containers, in order for each of them, each exit once: also when the daemon was
//! restarted in between.
//!
//! ```no_run
//! use std::sync::Arc;
//! use gantry_libcontainerd::{Backend, Client, EventInfo, EventType, Options, Result};
//!
//! struct Engine;
//!
//! #[async_trait::async_trait]
//! impl Backend for Engine {
//!     async fn process_event(&self, id: &str, event: EventType, info: EventInfo) -> Result<()> {
//!         println!("{id}: {event} of {}, code {}", info.process_id, info.exit_code);
//!         Ok(())
//!     }
//! }
//!
//! # async fn story(spec: &gantry_libcontainerd::Spec) -> Result<()> {
//! let daemon = gantry_client::Client::connect("/run/gantry/gantry.sock")?.in_namespace("engine");
//! let client = Client::new(daemon, Options::new("/run/engine"), Arc::new(Engine)).await?;
//! let container = client.new_container("web", spec, "runc", |builder| builder).await?;
//! let task = container.new_task(false, None, |io| { drop(io); Ok(()) }).await?;
//! // The network is set up here: the process exists and does not run yet.
//! task.start().await?;
//! # Ok(())
//! # }
//! ```
#![forbid(unsafe_code)]

mod client;
mod container;
mod events;
pub mod flat;
mod process;
mod runtimes;
mod stdio;
mod task;
mod types;

pub use client::{Client, Options};
pub use container::Container;
pub use gantry_client::{ContainerBuilder, ExitStatus, ProcessStatus, TaskMetrics, Version};
pub use gantry_errdefs::{Error, Result};
pub use gantry_oci::{LinuxResources, Process as ProcessSpec, Spec};
pub use process::Process;
pub use runtimes::{RuntimeConfig, RuntimeEntry};
pub use stdio::{DirectIo, StdinPipe};
pub use task::Task;
pub use types::{
    BUNDLE_LABEL, Backend, EventInfo, EventType, INIT_PROCESS, Restored, Stats, Summary,
};
