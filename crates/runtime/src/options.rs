//! Options of old runtimes, translated for ours.
//!
//! Options are opaque and pass through byte for byte, with one exception: those of the first
//! Linux runtime (`containerd.linux.runc.*`), which came in two messages, one for the container
//! and one for the task. Our shim takes `containerd.runc.v1.Options`, which has both.

use gantry_api::containerd::linux::runc as old;
use gantry_api::containerd::runc::v1 as new;
use gantry_core::Any;
use gantry_errdefs::{Error, Result};
use prost::{Message, Name};

/// The options that `Create` carries: those of the task, or else the runtime's; for the old
/// messages both together.
///
/// # Errors
/// InvalidArgument when bytes are not what their type says.
pub(crate) fn for_task(runtime: Option<&Any>, task: Option<&Any>) -> Result<Option<Any>> {
    let run = decode::<old::RuncOptions>(runtime)?;
    let create = decode::<old::CreateOptions>(task)?;
    if run.is_some() || create.is_some() {
        let foreign = |any: Option<&Any>, known: bool| any.is_some_and(has_value) && !known;
        // One old message beside one of another kind: nothing sensible merges them.
        if !foreign(runtime, run.is_some()) && !foreign(task, create.is_some()) {
            return Ok(Some(merge(&run.unwrap_or_default(), &create.unwrap_or_default())));
        }
    }
    let chosen = task.filter(|any| has_value(any)).or(runtime);
    Ok(chosen.cloned())
}

/// The options that the shim gets when it starts.
///
/// # Errors
/// As [`for_task`].
pub(crate) fn for_start(runtime: Option<&Any>) -> Result<Option<Any>> {
    for_task(runtime, None)
}

/// The options that `Checkpoint` carries.
///
/// # Errors
/// As [`for_task`].
pub(crate) fn for_checkpoint(options: Option<Any>) -> Result<Option<Any>> {
    let Some(from) = decode::<old::CheckpointOptions>(options.as_ref())? else {
        return Ok(options);
    };
    Ok(Some(pack(&new::CheckpointOptions {
        exit: from.exit,
        open_tcp: from.open_tcp,
        external_unix_sockets: from.external_unix_sockets,
        terminal: from.terminal,
        file_locks: from.file_locks,
        empty_namespaces: from.empty_namespaces,
        cgroups_mode: from.cgroups_mode,
        image_path: from.image_path,
        work_path: from.work_path,
    })))
}

/// Whether the shim is to be put into a cgroup; its `start` verb does that.
pub(crate) fn has_shim_cgroup(start: Option<&Any>) -> bool {
    let options = decode::<new::Options>(start);
    options.is_ok_and(|options| options.is_some_and(|options| !options.shim_cgroup.is_empty()))
}

fn has_value(any: &Any) -> bool {
    !any.value.is_empty()
}

fn merge(run: &old::RuncOptions, create: &old::CreateOptions) -> Any {
    pack(&new::Options {
        no_pivot_root: create.no_pivot_root,
        no_new_keyring: create.no_new_keyring,
        shim_cgroup: create.shim_cgroup.clone(),
        io_uid: create.io_uid,
        io_gid: create.io_gid,
        binary_name: run.runtime.clone(),
        root: run.runtime_root.clone(),
        systemd_cgroup: run.systemd_cgroup,
        criu_image_path: create.criu_image_path.clone(),
        criu_work_path: create.criu_work_path.clone(),
        ..Default::default()
    })
}

/// `any` as `M`, if its type says so.
fn decode<M: Message + Name + Default>(any: Option<&Any>) -> Result<Option<M>> {
    let Some(any) = any else { return Ok(None) };
    let name = any.message_name();
    if name != M::full_name() {
        return Ok(None);
    }
    M::decode(any.value.as_slice())
        .map(Some)
        .map_err(|e| Error::invalid_argument(format!("options {name}: {e}")).with_source(e))
}

fn pack<M: Message + Name>(message: &M) -> Any {
    Any { type_url: M::full_name(), value: message.encode_to_vec() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_old_messages_become_one_new() {
        let run = old::RuncOptions {
            runtime: "crun".into(),
            runtime_root: "/run/x".into(),
            systemd_cgroup: true,
            ..Default::default()
        };
        let create = old::CreateOptions { io_uid: 7, no_pivot_root: true, ..Default::default() };
        let any = for_task(Some(&pack(&run)), Some(&pack(&create))).expect("fine").expect("some");
        assert_eq!(any.type_url, "containerd.runc.v1.Options");
        let got = new::Options::decode(any.value.as_slice()).expect("decodes");
        assert_eq!((got.binary_name.as_str(), got.root.as_str()), ("crun", "/run/x"));
        assert!(got.systemd_cgroup && got.no_pivot_root);
        assert_eq!(got.io_uid, 7);
        let start = for_start(Some(&pack(&run))).expect("fine").expect("some");
        assert_eq!(start.type_url, "containerd.runc.v1.Options");
    }

    #[test]
    fn other_options_pass_through() {
        let any = |url: &str, value: &[u8]| Any { type_url: url.into(), value: value.to_vec() };
        let (runtime, task) = (any("a.B", b"r"), any("a.B", b"t"));
        assert_eq!(for_task(Some(&runtime), Some(&task)).expect("fine"), Some(task.clone()));
        assert_eq!(for_task(Some(&runtime), None).expect("fine"), Some(runtime.clone()));
        let empty = any("a.B", b"");
        assert_eq!(for_task(Some(&runtime), Some(&empty)).expect("fine"), Some(runtime));
        assert_eq!(for_task(None, None).expect("fine"), None);
        assert_eq!(for_checkpoint(Some(task.clone())).expect("fine"), Some(task));
    }

    #[test]
    fn checkpoint_paths_change_places() {
        let from = old::CheckpointOptions {
            work_path: "/work".into(),
            image_path: "/image".into(),
            exit: true,
            ..Default::default()
        };
        let any = for_checkpoint(Some(pack(&from))).expect("fine").expect("some");
        let got = new::CheckpointOptions::decode(any.value.as_slice()).expect("decodes");
        assert_eq!((got.image_path.as_str(), got.work_path.as_str()), ("/image", "/work"));
        assert!(got.exit);
    }

    #[test]
    fn damaged_options_are_refused() {
        let bad = Any { type_url: old::RuncOptions::full_name(), value: vec![0xff] };
        assert!(for_task(Some(&bad), None).expect_err("bad").is_invalid_argument());
    }
}
