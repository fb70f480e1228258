//! Proxy plugins: snapshotters, content stores, differs and sandbox controllers that another
//! process serves on a unix socket, as `[proxy_plugins]` names them.
//!
//! [`Plugin`] is the connection. [`ProxySnapshotter`], [`ProxyStore`] and [`ProxyDiffer`] stand
//! for what it serves, behind the same traits as what is built in, so nobody above knows the
//! difference. The wire is containerd's own: any process that serves containerd as a plugin
//! serves us.
//!
//! * **Lazy.** Nothing is connected before the first call, and a broken connection is made anew by
//!   the next one. A plugin that is down costs its own callers an Unavailable.
//! * **Bounded.** Every call has a deadline from [`gantry_core::deadlines`], the wait for its turn
//!   included; at most [`CALLS_MAX`] run at a time.
//! * **Named.** An error of the way there (Unavailable, DeadlineExceeded) says which plugin it is;
//!   one that the plugin itself answers keeps its class and text.
//! * **Namespaces.** The header carries the namespace that a snapshot's key begins with. Blobs are
//!   shared by all namespaces in our model, so a content plugin sees [`CONTENT_NAMESPACE`].
#![forbid(unsafe_code)]

mod content;
mod convert;
mod differ;
mod plugin;
mod snapshotter;

pub use content::{CONTENT_NAMESPACE, ProxyStore};
pub use differ::ProxyDiffer;
pub use plugin::{CALLS_MAX, Plugin};
pub use snapshotter::{NamespaceList, ProxySnapshotter};
