//! Root filesystems on this machine: mounted, for a while or for a look or a change of owners.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use gantry_errdefs::{Error, Result, ResultExt};
use gantry_mount::UnmountFlags;
use gantry_oci::UserDatabase;
use rustix::fs::{AtFlags, CWD, Gid, Uid};

use crate::convert::Mount;

/// Directories within directories that a change of owners follows; a path longer than this is
/// beyond what the kernel takes.
const DEPTH_MAX: usize = 2048;

/// One range of ids: `size` of them, from `inside` on within the container, from `outside` on on
/// the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdMap {
    /// First id within the container.
    pub inside: u32,
    /// First id on the host.
    pub outside: u32,
    /// How many.
    pub size: u32,
}

/// The id on the host of `id` within; ids outside every range stay as they are.
fn mapped(maps: &[IdMap], id: u32) -> u32 {
    let range = maps.iter().find(|m| id >= m.inside && id - m.inside < m.size);
    range.map_or(id, |m| m.outside.saturating_add(id - m.inside))
}

/// Mounts snapshots at `target`, which is there.
///
/// # Errors
/// Those of the mounts; then nothing is left mounted.
pub async fn mount(mounts: &[Mount], target: impl Into<PathBuf>) -> Result<()> {
    let (mounts, target) = (converted(mounts), target.into());
    blocking(move || gantry_mount::mount_all(&mounts, &target)).await
}

/// Unmounts everything at `target`; nothing there is success.
///
/// # Errors
/// The kernel's.
pub async fn unmount(target: impl Into<PathBuf>) -> Result<()> {
    let target = target.into();
    blocking(move || gantry_mount::unmount_all(&target, UnmountFlags::default())).await
}

/// Reads the users of the root filesystem in `mounts`, mounted read-only for the moment.
///
/// # Errors
/// Those of the mounts; as [`UserDatabase::from_rootfs`].
pub async fn users(mounts: &[Mount]) -> Result<UserDatabase> {
    let mounts: Vec<_> = converted(mounts).iter().map(gantry_mount::Mount::read_only).collect();
    blocking(move || {
        let dir = TempDir::make()?;
        gantry_mount::mount_all(&mounts, &dir.0)?;
        UserDatabase::from_rootfs(&dir.0)
    })
    .await
}

/// Reads the users of the root filesystem that is this directory.
pub(crate) async fn users_of(root: PathBuf) -> Result<UserDatabase> {
    blocking(move || UserDatabase::from_rootfs(&root)).await
}

/// Gives every file in `mounts` to the ids on the host that its own stand for.
pub(crate) async fn remap(mounts: &[Mount], uids: Vec<IdMap>, gids: Vec<IdMap>) -> Result<()> {
    let mounts = converted(mounts);
    blocking(move || {
        let dir = TempDir::make()?;
        gantry_mount::mount_all(&mounts, &dir.0)?;
        let maps = Maps { uids, gids };
        maps.change(&dir.0)?;
        maps.change_below(&dir.0, 0)
    })
    .await
}

struct Maps {
    uids: Vec<IdMap>,
    gids: Vec<IdMap>,
}

impl Maps {
    fn change_below(&self, dir: &Path, depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            let why = format!("{}: deeper than {DEPTH_MAX} directories", dir.display());
            return Err(Error::resource_exhausted(why));
        }
        for entry in std::fs::read_dir(dir).context(|| dir.display().to_string())? {
            let entry = entry.context(|| dir.display().to_string())?;
            let path = entry.path();
            self.change(&path)?;
            // Never through a symbolic link: the type is that of the entry itself.
            if entry.file_type().context(|| path.display().to_string())?.is_dir() {
                self.change_below(&path, depth + 1)?;
            }
        }
        Ok(())
    }

    fn change(&self, path: &Path) -> Result<()> {
        let what = || path.display().to_string();
        let meta = std::fs::symlink_metadata(path).context(what)?;
        let (uid, gid) = (mapped(&self.uids, meta.uid()), mapped(&self.gids, meta.gid()));
        if (uid, gid) == (meta.uid(), meta.gid()) {
            return Ok(());
        }
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| Error::io(path.display(), e.into()))?;
        // A change of owner takes the setuid and setgid bits away.
        let mode = meta.permissions().mode();
        if mode & 0o6000 != 0 && meta.is_file() {
            std::fs::set_permissions(path, meta.permissions()).context(what)?;
        }
        Ok(())
    }
}

/// A fresh directory; on drop what is mounted there is unmounted and the directory removed.
struct TempDir(PathBuf);

impl TempDir {
    fn make() -> Result<Self> {
        let name: String = std::iter::repeat_with(fastrand::alphanumeric).take(12).collect();
        let path = std::env::temp_dir().join(format!("gantry-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .context(|| format!("making {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let unmounted = gantry_mount::unmount_all(&self.0, UnmountFlags::default())
            .or_else(|_| gantry_mount::unmount_all(&self.0, UnmountFlags::DETACH));
        // Never recursively: if the unmount failed, that would empty the snapshot.
        if unmounted.is_ok() {
            let _ = std::fs::remove_dir(&self.0);
        }
    }
}

fn converted(mounts: &[Mount]) -> Vec<gantry_mount::Mount> {
    mounts
        .iter()
        .cloned()
        .map(|m| gantry_mount::Mount {
            kind: m.kind,
            source: m.source,
            target: m.target,
            options: m.options,
        })
        .collect()
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Error::internal(format!("root filesystem: {e}")))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_mapped_by_range() {
        let maps = [
            IdMap { inside: 0, outside: 100_000, size: 10 },
            IdMap { inside: 10, outside: 5, size: 1 },
        ];
        assert_eq!([0, 9, 10, 11].map(|id| mapped(&maps, id)), [100_000, 100_009, 5, 11]);
    }
}
