//! Making mounts.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt as _};
use gantry_sys::loopdev::{self, LoopDevice};
use gantry_sys::mountattr::{Attributes, idmapped_tree, set_attributes_at};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MoveMountFlags, mount_bind, mount_bind_recursive, mount_change, mount_remount,
    move_mount,
};

use crate::options::Options;
use crate::unmount::{UnmountFlags, unmount};
use crate::{Mount, idmap, overlay};

/// Mounts `mounts` in order, each at `target` joined with its own `target`. When one fails, those
/// made before it are unmounted again.
///
/// # Errors
/// The failed mount's error, naming kind, source, target and the kernel's message.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (made, m) in mounts.iter().enumerate() {
        if let Err(err) = mount(m, target) {
            for m in mounts[..made].iter().rev() {
                let undone = place(m, target).and_then(|p| unmount(&p, UnmountFlags::DETACH));
                if let Err(err) = undone {
                    tracing::warn!(%err, "a mount of a failed set is left");
                }
            }
            return Err(err);
        }
    }
    Ok(())
}

/// Makes one mount at `target` joined with its own `target`; symbolic links in the latter do not
/// lead out of `target`.
///
/// # Errors
/// InvalidArgument for options that cannot be, else the kernel's error with what was tried.
pub fn mount(mount: &Mount, target: &Path) -> Result<()> {
    let what = || format!("mount {} {:?} on {}", mount.kind, mount.source, target.display());
    let options = Options::parse(&mount.options);
    let place = place(mount, target).context(what)?;
    make(mount, &options, &place).context(what)?;
    finish(&options, &place).map_err(|e| {
        // Half a mount (not read-only yet, say) must not stay.
        if !options.remount
            && let Err(err) = unmount(&place, UnmountFlags::DETACH)
        {
            tracing::warn!(%err, "a half-made mount is left");
        }
        e.context(what())
    })
}

fn make(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    if options.remount {
        let data = options.data_string();
        return mount_remount(target, options.flags, data.as_str())
            .map_err(|e| from_errno("remount", e));
    }
    let bind = match mount.kind.as_str() {
        "bind" => Some(options.bind.unwrap_or(false)),
        "rbind" => Some(true),
        _ => options.bind,
    };
    if let Some(recursive) = bind {
        return make_bind(mount, options, target, recursive);
    }
    if mount.kind == "overlay" {
        return overlay::mount(mount, options, target);
    }
    if options.uid_map.is_some() || options.gid_map.is_some() {
        let kind = &mount.kind;
        return Err(Error::invalid_argument(format!("{kind} mounts cannot be id-mapped")));
    }
    let data = options.data_string();
    if options.looped && IN_FILES.contains(&mount.kind.as_str()) {
        let source = Path::new(&mount.source);
        match plain_errno(source, &mount.kind, options, &data, target)? {
            // Kernels that want a device for it.
            Err(Errno::NOTBLK) => {}
            made => return made.map_err(|e| from_errno("mount", e)),
        }
    }
    // Held until mounted: from then on the mount keeps the device.
    let (source, _device) = source(mount, options)?;
    plain(&source, &mount.kind, options, &data, target)
}

/// Filesystems that newer kernels mount from a file as it is, without a loop device.
const IN_FILES: [&str; 1] = ["erofs"];

/// One `mount(2)` of a filesystem.
pub(crate) fn plain(
    source: &Path,
    kind: &str,
    options: &Options,
    data: &str,
    target: &Path,
) -> Result<()> {
    plain_errno(source, kind, options, data, target)?.map_err(|e| from_errno("mount", e))
}

/// The same, with what the kernel said.
fn plain_errno(
    source: &Path,
    kind: &str,
    options: &Options,
    data: &str,
    target: &Path,
) -> Result<rustix::io::Result<()>> {
    let data = std::ffi::CString::new(data)
        .map_err(|_| Error::invalid_argument("mount options contain a NUL byte"))?;
    Ok(rustix::mount::mount(source, target, kind, options.flags, data.as_c_str()))
}

fn make_bind(mount: &Mount, options: &Options, target: &Path, recursive: bool) -> Result<()> {
    let source = Path::new(&mount.source);
    if options.uid_map.is_some() || options.gid_map.is_some() {
        let userns = idmap::user_namespace(options)?;
        let tree = idmapped_tree(source, userns.as_fd(), recursive).context(|| "id-map")?;
        return attach(&tree, target);
    }
    let made =
        if recursive { mount_bind_recursive(source, target) } else { mount_bind(source, target) };
    made.map_err(|e| from_errno("bind", e))?;
    if !options.flags_given {
        return Ok(());
    }
    restrict(options, target).inspect_err(|_| {
        if let Err(err) = unmount(target, UnmountFlags::DETACH) {
            tracing::warn!(%err, "a half-made bind mount is left");
        }
    })
}

/// Gives a bind mount its flags: it starts with those of its source.
fn restrict(options: &Options, target: &Path) -> Result<()> {
    let (set, clear) = options.attributes();
    if set == 0 && clear == 0 {
        return Ok(());
    }
    match set_attributes_at(target, &Attributes { set, clear, ..Attributes::default() }, false) {
        Err(e) if e.raw_os_error() == Some(Errno::NOSYS.raw_os_error()) => {}
        other => return other.context(|| "set mount attributes"),
    }
    // Before Linux 5.12.
    mount_remount(target, options.flags | MountFlags::BIND, "")
        .map_err(|e| from_errno("remount the bind mount", e))
}

/// Attaches a detached mount tree at `target`.
pub(crate) fn attach(tree: &OwnedFd, target: &Path) -> Result<()> {
    move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| from_errno("attach", e))
}

fn finish(options: &Options, target: &Path) -> Result<()> {
    match options.propagation {
        Some(p) => mount_change(target, p).map_err(|e| from_errno("set propagation", e)),
        None => Ok(()),
    }
}

/// What to mount: the source itself or a loop device over it.
fn source(mount: &Mount, options: &Options) -> Result<(PathBuf, Option<LoopDevice>)> {
    if !options.looped {
        return Ok((PathBuf::from(&mount.source), None));
    }
    let read_only = options.flags.contains(MountFlags::RDONLY);
    let device =
        loopdev::attach(Path::new(&mount.source), read_only).context(|| "attach a loop device")?;
    Ok((device.path().to_owned(), Some(device)))
}

/// `target` joined with the mount's own target, resolved as if `target` were the root.
fn place(mount: &Mount, target: &Path) -> Result<PathBuf> {
    if mount.target.is_empty() || mount.target == "/" {
        return Ok(target.to_owned());
    }
    let what = || format!("target {:?}", mount.target);
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = openat(CWD, target, flags | OFlags::DIRECTORY, Mode::empty())
        .map_err(io::Error::from)
        .context(what)?;
    let fd = openat2(&root, mount.target.as_str(), flags, Mode::empty(), ResolveFlags::IN_ROOT)
        .map_err(io::Error::from)
        .context(what)?;
    // Its name as of now. The descriptor itself would not do: it goes on naming what lies below
    // the mount, so flags and propagation would go there.
    std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).context(what)
}

pub(crate) fn from_errno(what: &str, errno: Errno) -> Error {
    Error::io(what, errno.into())
}
