//! Every unsafe system call of the project, behind safe functions; and the few file-system idioms
//! (durable rename, directory sync, tree walks by descriptor) that more than one crate needs.
//!
//! All other crates forbid unsafe code. What `rustix` offers safely is used from there directly
//! and not wrapped again. One file per topic; every unsafe block says why it is sound.

pub mod btrfs;
pub mod durable;
pub mod enter;
pub mod exec;
pub mod loopdev;
pub mod machine;
pub mod memory;
pub mod mountattr;
pub mod program;
pub mod quota;
pub mod seccomp;
pub mod thread;
pub mod tree;
pub mod userns;
pub mod verity;
pub mod xattr;
